"""Own models and data from Python: what `camu.compare` takes, refuses and returns."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

import camu
import data
from data import Images
from harness.compare import check, chosen, trained_references
from harness.samples import read_samples
from harness.store import UserError
from models import Represented

HIDDEN = "2"  # the layer whose output `Rows` reads its logits from


def make_net(classes=10):
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes))


@pytest.fixture(scope="module")
def digits():
    """(x, y) of 600 training and 300 test samples, a table of numbers, and a net trained on them."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float() / 16, torch.from_numpy(y)
    torch.manual_seed(0)
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(40):
        for rows in torch.randperm(600).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net, (x[:600], y[:600]), (x[600:900], y[600:900])


def test_all_methods_forget_a_class_of_a_table_and_are_audited(digits):
    net, train, test = digits
    before = [weight.clone() for weight in net.parameters()]
    methods = ("Original", "NegGrad", "Boundary", "T-S", "SCRUB", "SISA", "Unroll", "CaMU", "Retrain")
    given = {"layer": HIDDEN, "train": train, "test": test, "classes": [3], "build": make_net, "progress": False}
    result = camu.compare(net, **given, methods=methods, references=2, epochs=20)
    table = result.table
    assert tuple(table.index) == methods and tuple(result.models) == methods
    assert {"A_ts_f", "MIA", "RMIA_AUC", "JS_f", "churn", "gap", "ToW", "time_s"} <= set(table)
    assert table.A_ts_f["Original"] > 90 and table.A_ts_f["CaMU"] <= 5 and table.A_ts_f["Retrain"] == 0
    assert table.A_ts_r["CaMU"] >= 0.95 * table.A_ts_r["Original"]
    assert np.isnan(table.gap["Retrain"]) and table.JS_f["Original"] > table.JS_f["CaMU"]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    assert isinstance(result.models["CaMU"], nn.Sequential) and not result.models["CaMU"].training
    assert list(result.models["CaMU"].state_dict()) == list(net.state_dict())
    again = camu.compare(net, **given, methods=("CaMU",), references=2, epochs=20)
    same = [name for name in again.table if name != "time_s"]
    assert again.table.loc["CaMU", same].equals(table.loc["CaMU", same])


@pytest.mark.parametrize("count", [1, 33])
def test_single_samples_are_forgotten_behind_batch_norm_too(digits, count):
    net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    methods = ("NegGrad", "Boundary", "T-S", "SCRUB", "Unroll", "CaMU", "Retrain")
    _, train, test = digits

    def build(classes):
        return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, classes))

    given = {"layer": "2", "train": train, "test": test, "forget": range(count), "build": build, "progress": False}
    with pytest.warns(UserWarning, match=f"MIA attacks {count} samples: it, RMIA and gap are noise, ± "):
        result = camu.compare(net, **given, methods=methods, epochs=1, override=("CaMU.epochs=1", "CaMU.repeats=2"))
    assert not result.table.drop(columns="time_s").loc["CaMU"].isna().any()


def test_a_reference_model_of_ones_own_serves_the_audit(digits):
    net, train, test = digits
    given = {"layer": HIDDEN, "train": train, "test": test, "forget": range(50), "progress": False}
    before = torch.get_rng_state()
    references = [(make_net(), range(300, 600))]
    torch.set_rng_state(before)
    result = camu.compare(net, **given, methods=("Original",), references=references, build=make_net)
    assert torch.equal(torch.get_rng_state(), before)  # what the user draws next is the same
    assert 0 <= result.table.RMIA_AUC["Original"] <= 100
    with pytest.raises(UserError, match="a reference model needs fresh weights: give build"):
        camu.compare(net, **given, methods=("Original",), references=1)


class TextNet(nn.Module):
    """A small transformer in Hugging Face's manner: named arguments, a mask, and an object that has the logits."""

    def __init__(self, classes=4):
        super().__init__()
        self.embedding = nn.Embedding(40, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.pooler, self.classifier = nn.Sequential(nn.Linear(32, 32), nn.Tanh()), nn.Linear(32, classes)

    def forward(self, input_ids=None, attention_mask=None):
        z = self.encoder(self.embedding(input_ids), src_key_padding_mask=~attention_mask)
        mean = (z * attention_mask[:, :, None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return SimpleNamespace(logits=self.classifier(self.pooler(mean)))


class Sentences(Dataset):
    """Sentences of 6 to 12 words; three words of each, somewhere, are of its class's ten."""

    def __init__(self, count, seed):
        rng = torch.Generator().manual_seed(seed)
        self.y = torch.arange(count) % 4
        self.ids = torch.randint(40, (count, 12), generator=rng)
        words = self.y[:, None] * 10 + torch.randint(10, (count, 3), generator=rng)
        self.ids.scatter_(1, torch.rand(count, 6, generator=rng).argsort(1)[:, :3], words)
        self.mask = torch.arange(12) < torch.randint(6, 13, (count, 1), generator=rng)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.y[i]}


def trained(net, inputs_of, data, epochs):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(inputs_of(net, rows), data.y[rows]).backward()
            optimizer.step()
    return net.eval()


def test_a_text_classifier_forgets_a_class_with_every_method():
    train, test = Sentences(400, 0), Sentences(200, 1)
    torch.manual_seed(0)
    net = trained(TextNet(), lambda net, rows: net(train.ids[rows], train.mask[rows]).logits, train, 15)
    methods = ("Retrain", "Original", "NegGrad", "Boundary", "T-S", "SCRUB", "SISA", "Unroll", "CaMU")
    given = {"layer": "pooler", "classes": [2], "inputs": "embedding", "epochs": 5, "progress": False}
    table = camu.compare(net, train=train, test=test, **given, methods=methods, build=TextNet).table
    assert tuple(table.index) == methods and table.A_ts_f["Retrain"] == 0
    assert table.A_ts["Original"] > 75 and table.A_ts_f["CaMU"] <= 5
    assert table.A_ts_r["CaMU"] >= 0.95 * table.A_ts_r["Original"]
    train, test = (TensorDataset(part.ids, part.mask, part.y) for part in (train, test))
    again = camu.compare(net, train=train, test=test, **given, methods=("Boundary",)).table
    same = [name for name in again if name != "time_s"]
    assert again.loc["Boundary", same].equals(table.loc["Boundary", same])


@pytest.mark.parametrize(
    "net, x, inputs, message",
    [
        (nn.Linear(2, 2), torch.rand(4, 2), "tokens", "inputs 'tokens' is unknown; there are values, embedding"),
        (nn.Linear(2, 2), torch.rand(4, 2), "embedding", "the net has no nn.Embedding"),
        (TextNet(), torch.rand(4, 2), "embedding", 'is torch.float32; inputs "embedding" is for whole numbers'),
        (TextNet(), torch.ones(4, 2, dtype=int), "values", 'train is torch.int64: for tokens say inputs="embedding"'),
        (TextNet(), (torch.rand(4, 2), torch.rand(4, 2)), "values", "train is of 2 parts: for tokens say"),
        (TextNet(), (torch.ones(4, 2).long(), torch.ones(3, 2).long()), "embedding", "x have 3 and 4 samples"),
    ],
)
def test_inputs_that_take_no_noise_are_named(net, x, inputs, message):
    with pytest.raises(UserError, match=message):
        camu.compare(net, layer="0", train=(x, [0, 1, 0, 1]), test=(x, [0, 1, 0, 1]), forget=[0], inputs=inputs)


def test_sentences_of_different_length_are_refused():
    class Ragged(Sentences):
        def __getitem__(self, i):
            return self.ids[i, : 6 + i % 2], self.y[i]

    with pytest.raises(UserError, match="train: samples cannot be put together, pad or resize them"):
        read_samples(Ragged(8, 0), "train", progress=False)


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


def test_samples_come_from_whatever_holds_them():
    x, y = torch.rand(7, 3), torch.arange(7, dtype=torch.int32) % 3
    ways = [(x, y), [x.numpy(), y.numpy()], (x, y.tolist()), TensorDataset(x, y), Rows(x, y)]
    ways += [Subset(Rows(torch.cat([x, x]), torch.cat([y, y])), range(7)), DataLoader(Rows(x, y), 2, shuffle=True)]
    for way in ways:
        found_x, found_y = read_samples(way, "train", progress=False)
        assert torch.equal(found_x, x) and found_y.tolist() == y.tolist() and found_y.dtype == torch.int64


class Scaled(TensorDataset):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return 2 * x, y


class Listed(Rows):
    """As Hugging Face's data sets give samples."""

    def __getitem__(self, i):
        return {"ids": self.x[i].tolist(), "label": int(self.y[i])}


def test_what_a_data_set_or_loader_does_to_samples_is_kept():
    x, y = torch.rand(7, 3), torch.arange(7) % 3
    assert torch.equal(read_samples(Scaled(x, y), "train", False)[0], 2 * x)
    tripled = DataLoader(TensorDataset(x, y), collate_fn=lambda items: (3 * torch.stack([a for a, _ in items]), y))
    assert torch.equal(read_samples(tripled, "train", False)[0], 3 * x)
    assert torch.allclose(read_samples(Listed(x, y), "train", False)[0]["ids"], x)
    parts = Subset(TensorDataset(x, x + 1, y), range(4))
    found, labels = read_samples(parts, "train", False)
    assert torch.equal(found[1], x[:4] + 1) and labels.tolist() == [0, 1, 2, 0]
    mirrored = read_samples((x.numpy()[:, ::-1], y.numpy().astype(">i4")), "train", False)
    assert torch.equal(mirrored[0], x.flip(1)) and mirrored[1].tolist() == y.tolist()
    with pytest.raises(UserError, match="train: a DataLoader with a sampler of its own; give a Subset"):
        read_samples(DataLoader(TensorDataset(x, y), sampler=SubsetRandomSampler(range(3))), "train", False)


class Turned(Sentences):
    def __getitem__(self, i):
        return dict(reversed(super().__getitem__(i).items()))


def test_parts_are_matched_by_name():
    train, net = Sentences(200, 0), TextNet().eval()
    given = {"layer": "pooler", "classes": [2], "inputs": "embedding", "progress": False, "methods": ("Original",)}
    found = [camu.compare(net, train=train, test=test, **given).table for test in (Sentences(100, 1), Turned(100, 1))]
    assert found[0].drop(columns="time_s").equals(found[1].drop(columns="time_s"))


def test_the_test_sets_order_does_not_matter_to_the_attack(digits):
    """An image folder's samples come sorted by class, and the attack reads the first."""
    net, train, (x, y) = digits
    order = y.argsort()
    given = {"layer": HIDDEN, "train": train, "forget": range(100), "methods": ("Original",), "progress": False}
    found = [camu.compare(net, test=part, **given).table.MIA["Original"] for part in ((x, y), (x[order], y[order]))]
    assert abs(found[0] - found[1]) < 8


def test_members_that_every_reference_has_seen_are_left_out(digits):
    net, train, test = digits
    given = {"layer": HIDDEN, "train": train, "test": test, "forget": range(100), "progress": False}
    table = camu.compare(net, **given, methods=("Original",), references=[(net, range(600))]).table
    assert "RMIA_AUC" not in table
    table = camu.compare(net, **given, methods=("Original",), references=[(net, range(50))]).table
    assert table.RMIA_TPR1["Original"] < 100
    seen = trained_references(4, Dataset_of(train), 0, {"retrain_epochs": 1, "lr": 1e-3}, False)
    counts = torch.bincount(torch.cat([half for _, half in seen]))
    assert counts.tolist() == [2] * 600


def Dataset_of(train):
    part = Images(*train)
    fresh = lambda classes: Represented(make_net(classes), HIDDEN)  # noqa: E731
    return data.Dataset("own", fresh, part, part, tuple("abcdefghij"))


def test_nets_that_change_values_in_place_or_are_compiled_forget_too(digits):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, x):
            x -= 0.5
            return self.net(x)

    _, (x, y), test = digits
    compiled = torch.compile(make_net(), backend="eager")
    compiled(x[:3])
    for net, layer in ((InPlace(), "net.2"), (compiled, "_orig_mod.2")):
        given = {"layer": layer, "train": (x.clone(), y), "test": test, "forget": range(100), "progress": False}
        with torch.no_grad():
            table = camu.compare(net, **given, methods=("Boundary",)).table
        assert table.A_r.notna().all()


@pytest.mark.parametrize(
    "samples, message",
    [
        (Rows(["a"], torch.zeros(1)), r"train must be \(x, y\), or hold \(tensor, label\)"),
        (3, r"train must be \(x, y\), or hold"),
    ],
)
def test_what_holds_no_samples_is_refused(samples, message):
    with pytest.raises(UserError, match=message):
        read_samples(samples, "train", progress=False)


def test_more_than_fits_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr("harness.samples.free_memory", lambda: 10)
    with pytest.raises(UserError, match=r"train needs 0.0 GB of memory, and 0.0 GB are free"):
        read_samples(Rows(torch.rand(7, 3), torch.zeros(7)), "train", progress=False)


X, Y = torch.rand(6, 4), torch.arange(6) % 3


def net(head):
    return nn.Sequential(nn.Identity(), head)


@pytest.mark.parametrize(
    "head, train, message",
    [
        (nn.Linear(4, 3), (X, Y[:5]), r"train: x is of \(6, 4\) and has 5 labels"),
        (nn.Linear(4, 3), (X[:0], Y[:0]), r"train: x is of \(0, 4\) and has 0 labels"),
        (nn.Linear(4, 3), (torch.where(X[2, 1] == X, torch.nan, X), Y), "train: sample 2 holds nan or infinity"),
        (nn.Linear(4, 3).half(), (X, Y), "train is torch.float32 and the net's weights are torch.float16"),
        (nn.Linear(4, 1), (X, Y), r"the net's output is \(6, 1\) for 6 samples"),
        (nn.Linear(5, 3), (X, Y), r"train: the net cannot be run on samples of \(4,\): .*shapes"),
        (nn.Linear(4, 3), (X, Y + 1), "train: labels go up to 3; the net has classes 0 to 2"),
        (nn.Linear(4, 3), (X, Y - 1), "train: label -1 is below 0"),
        (nn.Linear(4, 3), (X, torch.rand(6)), "train: labels are torch.float32"),
        (nn.Linear(4, 3), (X, Y[:, None]), r"train: labels are torch.int64 of \(6, 1\)"),
        (nn.Linear(4, 3), (X, Y * 0 + 2), "all labels are 2: unlearning needs at least two classes"),
    ],
)
def test_samples_that_do_not_fit_the_net_are_refused_before_any_work(head, train, message):
    with pytest.raises(UserError, match=message):
        check(Represented(net(head), "0"), Images(*train), Images(X, Y))


def test_a_test_set_is_checked_as_the_training_set_is():
    f_o = Represented(net(nn.Linear(4, 3)), "0")
    with pytest.raises(UserError, match=r"test: the net cannot be run on samples of \(5,\)"):
        check(f_o, Images(X, Y), Images(torch.rand(6, 5), Y))
    with pytest.raises(UserError, match="test: the test set holds 2 samples"):
        check(f_o, Images(X, Y), Images(X[:2], Y[:2]))
    with torch.no_grad():
        f_o.model[1].bias[0] = torch.nan
    with pytest.raises(UserError, match="train: the net's outputs hold nan or infinity"):
        check(f_o, Images(X, Y), Images(X, Y))


@pytest.mark.parametrize(
    "head, train, message",
    [
        (nn.Linear(4, 3), (X, Y * 2 % 4), "class 1 has no training sample: are the labels without gaps"),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), (X, Y), "give logits, not a softmax"),
    ],
)
def test_what_is_odd_is_warned_of(head, train, message):
    with pytest.warns(UserWarning, match=message):
        assert check(Represented(net(head), "0"), Images(*train), Images(X, Y)) == 3


FROZEN = net(nn.Linear(4, 3)).requires_grad_(False)
NET = net(nn.Linear(4, 3))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"net": FROZEN}, "every parameter of the net is frozen"),
        ({"net": torch.jit.script(NET)}, "the net is a TorchScript module"),
        ({"methods": ()}, "no method ''"),
        ({"methods": "CaM"}, "no method 'CaM'"),
        ({"override": "CaMU.lr=1"}, "CaMU has no 'lr'"),
        ({"override": "CaMU.epochs=1"}, "override CaMU.epochs=1: its method is not among the methods"),
        ({"methods": "CaMU", "override": ["CaMU.epochs=1", "CaMU.epochs=2"]}, "CaMU.epochs is there twice"),
        ({"references": -1}, "references -1: must be from 0"),
        ({"train": (X.byte(), Y), "test": (X.byte(), Y)}, "train is torch.uint8: .*else give floats"),
        ({"logits": "scores"}, "logits is 'scores'; it must be a function"),
        ({"epochs": 0}, "epochs 0: must be whole, from 1"),
        ({"epochs": 1.5}, "epochs 1.5: must be whole, from 1"),
        ({"lr": 0}, "lr 0: must be above 0"),
        ({"references": (NET, [1])}, "references must be a number, or .net, positions"),
        ({"references": [(NET, [9])]}, "there is no training sample 9, only 0 to 5"),
        ({"build": lambda classes: NET}, "build returns the net itself"),
        ({"build": lambda classes: net(nn.Linear(4, 7))}, r"build.3. returns a net of 7 classes; the net has 3"),
        ({"build": lambda: None}, "build.3. fails: .*takes 0 positional"),
        ({"build": lambda classes: net(nn.Linear(9, 3))}, r"build: the net cannot be run on samples of \(4,\)"),
        ({"train": (X, ["a", "b"] * 3)}, "train must be numbers"),
        ({"train": ([[1.0], [1.0, 2.0]], [0, 1])}, "train must be numbers"),
        ({"test": (X.double(), Y)}, "they must be alike"),
        ({"test": (X[:, :3], Y)}, "they must be alike"),
        ({"test": ((X, X), Y)}, "they must be alike"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_any_work(changes, message):
    given = {"net": NET, "layer": "0", "train": (X, Y), "test": (X, Y), "forget": [0], "progress": False} | changes
    with pytest.raises(UserError, match=message):
        camu.compare(given.pop("net"), **given, **({} if "methods" in changes else {"methods": ("Original",)}))


LABELS = torch.tensor([0, 1, 1, 2, 0])


@pytest.mark.parametrize(
    "forget, classes, expected",
    [
        ([1, 3], None, [1, 3]),
        (np.array([1, 3], dtype=np.uint8), None, [1, 3]),
        (torch.tensor([3, 1], dtype=torch.int16), None, [3, 1]),
        (torch.tensor([False, True, False, True, False]), None, [1, 3]),
        (np.array([False, True, False, True, False]), None, [1, 3]),
        (None, [1], [1, 2]),
        (None, 0, [0, 4]),
        (None, torch.tensor(0), [0, 4]),
        (pd.Series([1, 3]), None, [1, 3]),
        (pd.Series([False, True, False, True, False]), None, [1, 3]),
        ({3, 1}, None, [3, 1]),
        (None, {1, 2}, [1, 2, 3]),
    ],
)
def test_what_to_forget_is_said_in_any_way(forget, classes, expected):
    assert sorted(chosen(forget, classes, LABELS).tolist()) == sorted(expected)


@pytest.mark.parametrize(
    "forget, classes, message",
    [
        (None, None, "give either forget"),
        ([1], [1], "give either forget"),
        (None, [5], "no training sample is of class 5"),
        (torch.ones(3, dtype=torch.bool), None, r"the mask of what to forget is \(3,\); there are 5 training samples"),
        ([0.5], None, "what to forget is torch.float32"),
        (torch.zeros(2, 2, dtype=int), None, r"what to forget is torch.int64 of \(2, 2\)"),
        ([5], None, "there is no training sample 5, only 0 to 4"),
        (None, ["1"], "what to forget must be whole numbers"),
    ],
)
def test_what_names_no_samples_is_refused(forget, classes, message):
    with pytest.raises(UserError, match=message):
        chosen(forget, classes, LABELS)


def test_names_of_methods_and_missing_fresh_weights_are_refused_first():
    given = {"layer": "0", "train": None, "test": None}
    with pytest.raises(UserError, match="no method 'Scrub'; there are Retrain, Original"):
        camu.compare(nn.Linear(2, 2), **given, methods=("Scrub",))
    with pytest.raises(UserError, match="T-S needs fresh weights: give build"):
        camu.compare(nn.Linear(2, 2), **given, methods=("CaMU", "T-S"))


class Token(nn.Module):
    """(B, 4) -> what `wrap` makes of the logits; a representation of (B, 5, 4)."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.head, self.wrap = nn.Identity(), nn.Linear(4, 3), wrap

    def forward(self, x):
        z = self.body(torch.stack([x * k for k in range(1, 6)], 1))
        return self.wrap(self.head(z[:, 0]))


@pytest.mark.parametrize(
    "wrap", [lambda y: y, lambda y: (y, None), lambda y: {"logits": y}, lambda y: SimpleNamespace(logits=y, loss=None)]
)
def test_logits_are_found_in_what_a_forward_returns(wrap):
    net = Token(wrap)
    logits, z = Represented(net, "body", pool="first")(X)
    assert torch.equal(logits, net.head(X)) and torch.equal(z, X)
    assert torch.allclose(Represented(net, "body", pool="mean")(X)[1], 3 * X)
    assert Represented(net, "body", pool="mean", logits=lambda output: X)(X)[0] is X


def test_a_feature_map_is_pooled_over_its_pixels():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    x = torch.rand(5, 1, 4, 4)
    assert torch.allclose(Represented(net, "0", pool="mean")(x)[1], net[0](x).mean((2, 3)))


class Twice(nn.Module):
    def __init__(self, count, output):
        super().__init__()
        self.body, self.head, self.count = nn.Identity(), nn.Linear(4, 3), count
        self.body.forward = lambda x: output(x)

    def forward(self, x):
        for _ in range(self.count):
            self.body(x)
        return self.head(x)


@pytest.mark.parametrize(
    "net, pool, message",
    [
        (Twice(0, lambda x: x), "flatten", "layer 'body' ran 0 times in a forward pass; it must run once"),
        (Twice(2, lambda x: x), "flatten", "layer 'body' ran 2 times"),
        (Twice(1, lambda x: (x, x)), "flatten", "layer 'body' returns a tuple; it must return a tensor"),
        (Twice(1, lambda x: x[:, :, None, None, None]), "first", "it must be .B, d"),
        (Token(lambda y: {"scores": y}), "first", "the forward returns a dict: name a function that takes the logits"),
    ],
)
def test_a_layer_that_gives_no_representation_is_named(net, pool, message):
    with pytest.raises(UserError, match=message):
        Represented(net, "body", pool=pool)(X)


def test_what_is_no_model_or_gives_no_logits_is_named():
    with pytest.raises(UserError, match=r"the model is a str; it must be an nn.Module"):
        Represented("resnet", "0")
    with pytest.raises(UserError, match="the logits are int; they must be a tensor"):
        Represented(NET, "0", logits=lambda output: 3)(X)
    with pytest.raises(UserError, match=r"the logits are .6,.; they must be a tensor"):
        Represented(nn.Sequential(nn.Identity(), nn.Linear(4, 1), nn.Flatten(0)), "0")(X)


def test_an_unknown_pool_is_named():
    with pytest.raises(UserError, match="pool 'max' is unknown; there are flatten, mean, first"):
        Represented(nn.Sequential(nn.Identity()), "0", pool="max")
