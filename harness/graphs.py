"""Training steps on CUDA: captured once as a graph, then replayed without Python in between."""

import torch


def captured(step, device):
    """A training step, a function of a few tensors (or None); on CUDA replayed as a graph, without Python in between.

    What the step reads besides its arguments must keep its memory address. It may neither make tensors of host values
    nor read or print values. On a GPU its results are overwritten by the next call.
    """
    return Captured(step) if device.type == "cuda" else step


class Captured:
    """A step that is run a few times, then captured, then replayed. Batches of another shape are run as they are."""

    WARM_UP = 3  # steps of one shape in a row, on a stream of their own, in which memory and optimiser states are made

    def __init__(self, step):
        self.step, self.shapes, self.calls, self.static = step, None, 0, None

    def __call__(self, *given):
        shapes = [value if value is None else value.shape for value in given]
        if self.static is None and shapes != self.shapes:
            self.shapes, self.calls = shapes, 0
        if shapes != self.shapes:
            return self.step(*given)
        self.calls += 1
        if self.calls <= self.WARM_UP:
            return on_side_stream(self.step, given)
        if self.static is None:
            self.static = [value if value is None else value.clone() for value in given]
            self.replay, self.results = capture(self.step, self.static)
        for buffer, value in zip(self.static, given):
            if value is not None:
                buffer.copy_(value)
        self.replay()
        return self.results


def on_side_stream(step, given):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = step(*given)
    torch.cuda.current_stream().wait_stream(stream)
    return results


def capture(step, static):
    """Capture `step(*static)` as a CUDA graph: what replays it, and where its results lie."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*static)
    return graph.replay, results
