"""The training transform of CIFAR: torchvision's RandomResizedCrop and horizontal flip, for whole batches at once."""

import torch
import torch.nn.functional as F

CROP_AREA, CROP_RATIO, CROP_ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop


def draw_crops(count, side, rng):
    """RandomResizedCrop's boxes and horizontal flips for `count` square images of `side` pixels, a whole epoch at once.

    Returns (count, 5): top, left, height, width in pixels, and flip (0 or 1). As in torchvision, the first of ten
    attempts that fits is taken, else the whole image. `rng` is on the CPU.
    """
    area = side * side * torch.empty(count, CROP_ATTEMPTS).uniform_(*CROP_AREA, generator=rng)
    log_ratio = torch.log(torch.tensor(CROP_RATIO))
    aspect = torch.exp(torch.empty(count, CROP_ATTEMPTS).uniform_(*log_ratio.tolist(), generator=rng))
    width = torch.sqrt(area * aspect).round()
    height = torch.sqrt(area / aspect).round()
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    first = fits.int().argmax(1, keepdim=True)
    width, height = (torch.where(fits.any(1), v.gather(1, first).squeeze(1), side) for v in (width, height))
    top, left = ((torch.rand(count, generator=rng) * (side - v + 1)).floor() for v in (height, width))
    flip = torch.rand(count, generator=rng) < 0.5
    return torch.stack([top, left, height, width, flip.float()], 1)


def crop_and_flip(x, crops):
    """Cut the boxes out of the images, resize them to the images' own size, flip where asked, as torchvision does."""
    side = x.shape[-1]
    top, left, height, width, flip = crops.unsqueeze(2).unbind(1)  # (B, 1) each
    centre = (torch.arange(side, device=x.device) + 0.5) / side
    ys = (top + centre * height - 0.5).clamp(min=top, max=top + height - 1)
    xs = (left + torch.where(flip > 0, 1 - centre, centre) * width - 0.5).clamp(min=left, max=left + width - 1)
    ys, xs = ((2 * v + 1) / side - 1 for v in (ys, xs))
    grid = torch.stack([xs[:, None, :].expand(-1, side, -1), ys[:, :, None].expand(-1, -1, side)], 3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
