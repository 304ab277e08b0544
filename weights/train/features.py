"""A feature space to tell what a picture shows: the nearest training picture's label counts.

No network is in it, least of all the one that is judged. It is what recognised things before
networks did: histograms of gradients' directions (Dalal & Triggs 2005), here at two scales, for
shape, and a coarse map of colours. The subject is first cut out of its background and scaled to
fill the frame, so that place and size do not matter. Directions in which pictures of one emoji
differ from style to style are then shrunk (`Space`), as in Fisher's discriminant, by statistics of
the training pictures alone.

The parts' shares were chosen on real pictures, before any drawn one was looked at: a held-out
picture should be nearest to a training picture, in another style by necessity, with its own label.
In pixels 64 wide that holds for 72 % of them, for 90 % among the nearest five, and for 80 and 89 %
of the line drawings (without shrinking: 65, 81, 65 and 79 %). Evaluation reports it beside every
accuracy: a perfect model could not do much better on held-out pairs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weights.train.data import outside

SIDE, BINS = 64, 9
SHARES = {"fine": 1.0, "coarse": 0.5, "colour": 1.0}


def cut_out(rgb: Tensor) -> Tensor:
    """(B, 3, S, S) in 0..1 -> (B, 3, SIDE, SIDE): on white, scaled to its own bounding box."""
    rgb = torch.where(outside(rgb, 0.06), 1.0, rgb)
    ink = (rgb.amin(1) < 0.93).float()  # (B, S, S)
    size, done = rgb.shape[-1], []
    for picture, marks in zip(rgb, ink):
        ys, xs = (marks.amax(dim).nonzero().flatten() for dim in (1, 0))
        if not len(ys):
            ys = xs = torch.tensor([0, size - 1])
        cy, cx = (float(v[0] + v[-1] + 1) / 2 for v in (ys, xs))
        half = max(float(v[-1] - v[0] + 1) for v in (ys, xs)) / 2 * 1.06
        axis = (torch.arange(SIDE, device=rgb.device) + 0.5) * 2 / SIDE - 1
        v, u = ((c + half * axis) * 2 / size - 1 for c in (cy, cx))
        grid = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)[None]
        inked = F.grid_sample(1 - picture[None], grid, align_corners=False)  # outside: white
        done.append(1 - inked)
    return torch.cat(done)


def gradients(grey: Tensor, cells: int) -> Tensor:
    """(B, 1, S, S) -> (B, BINS * cells * cells), each cell's histogram of length about 1."""
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    angle = torch.atan2(dy, dx) / torch.pi % 1 * BINS  # a line has no front and back
    low = angle.floor()
    up = angle - low
    length = torch.hypot(dx, dy)
    bins = torch.arange(BINS, device=grey.device)[:, None, None]
    votes = length * ((low == bins) * (1 - up) + ((low + 1) % BINS == bins) * up)  # (B, BINS, S, S)
    side = grey.shape[-1] // cells
    pooled = F.avg_pool2d(votes, 2 * side, stride=side, padding=side // 2)  # cells overlap by half
    around = F.avg_pool2d(pooled.square().sum(1, keepdim=True), 3, 1, 1).sqrt()
    return (pooled / (around + 0.02)).clamp(max=0.5).flatten(1)


def features(rgb: Tensor) -> Tensor:
    """(B, 3, S, S) in 0..1 -> (B, D) of length 1: their dot product is the likeness."""
    picture = cut_out(rgb.float())
    grey = picture.mean(1, keepdim=True)
    half = F.avg_pool2d(grey, 2)
    small = F.avg_pool2d(picture, 8)
    parts = {
        "fine": gradients(grey, 8),
        "coarse": gradients(half, 4),
        "colour": (1 - small).flatten(1),
    }
    scaled = [SHARES[name] * F.normalize(part, dim=1) for name, part in parts.items()]
    return F.normalize(torch.cat(scaled, dim=1), dim=1)


class Space:
    """The training pictures in this space, and the labels of those nearest to others."""

    def __init__(self, rgb: Tensor, labels: list[str]):
        """rgb (N, 3, S, S) in 0..1; labels: one that stands for the emoji, whatever its style."""
        x = torch.cat([features(some) for some in rgb.split(256)])  # (N, D)
        self.labels, self.mean = np.array(labels), x.mean(0)
        _, group = np.unique(self.labels, return_inverse=True)
        group = torch.from_numpy(group).to(x.device)
        sums = torch.zeros(int(group.max()) + 1, x.shape[1], device=x.device).index_add_(
            0, group, x
        )
        within = (x - (sums / group.bincount()[:, None])[group]).double()
        values, vectors = torch.linalg.eigh(within.T @ within / len(x))
        scale = (values.clamp(min=0) + 0.1 * values.mean() + 1e-9).rsqrt()
        self.shrink = (vectors * scale).float()
        self.points = self.place(x)

    def place(self, x: Tensor) -> Tensor:
        return F.normalize((x - self.mean) @ self.shrink, dim=1)

    def nearest(self, rgb: Tensor, k: int = 5) -> np.ndarray:
        """(B, k) labels of the training pictures nearest to each picture."""
        x = torch.cat([self.place(features(some)) for some in rgb.split(256)])
        return self.labels[(x @ self.points.T).topk(k, dim=1).indices.cpu().numpy()]
