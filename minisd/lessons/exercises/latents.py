"""The exercises of lesson 9: what a latent is."""

import torch
from torch import Tensor

from minisd.lessons.checks import Exercise, latent, which


def scale_factor(latents: list[Tensor]) -> float:
    return float(1 / torch.cat([z.flatten() for z in latents]).std())


RAW = [20.0 + latent(12, 5.0), 9 * latent(13), -3.0 + 0.5 * latent(14)]
FACTOR = Exercise(
    scale_factor,
    [
        (
            "that is the standard deviation. The factor is one over it",
            lambda zs: 1 / scale_factor(zs),
        ),
        ("one over the variance: take the square root", lambda zs: scale_factor(zs) ** 2),
        (
            "each latent has a factor of its own, and these are averaged. The factor is one number "
            "for all latents together",
            lambda zs: float(sum(1 / z.std() for z in zs) / len(zs)),
        ),
        (
            "the standard deviations are averaged. A mean of roots is not the root of a mean: "
            "put all numbers together first",
            lambda zs: float(len(zs) / sum(z.std() for z in zs)),
        ),
        (
            "the mean of the squares is taken, but the mean is not subtracted: use the standard "
            "deviation",
            lambda zs: float(1 / torch.cat([z.flatten() for z in zs]).square().mean() ** 0.5),
        ),
        ("only the first latent is used", lambda zs: float(1 / zs[0].std())),
    ],
    "with this factor the numbers of all latents together have the standard deviation 1",
    [{"latents": RAW}, {"latents": RAW[:2]}],
    tolerance=0.01,
)


def rgb_map(latents: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares with a column of ones."""
    columns = torch.cat([latents, torch.ones(len(latents), 1).to(latents)], dim=1)
    solution = torch.linalg.lstsq(columns, colours).solution
    return solution[:4], solution[4]


def reverse_map(latents: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    columns = torch.cat([colours, torch.ones(len(colours), 1).to(colours)], dim=1)
    solution = torch.linalg.lstsq(columns, latents).solution
    return solution[:3], solution[3]


POINTS = latent(15, size=8).flatten(2)[0].T + torch.tensor([0.5, -1.0, 0.2, 0.0]).double()
COLOURS = (
    POINTS @ latent(16, 0.3, 2).flatten()[:12].view(4, 3)
    + torch.tensor([0.6, 0.5, 0.1]).double()
    + 0.05 * latent(17, size=8).flatten()[:192].view(64, 3)
)
RGB = Exercise(
    rgb_map,
    [
        (
            "there is no bias: a latent of zeros would have to be grey. Add a column of ones",
            lambda z, c: (torch.linalg.lstsq(z, c).solution, torch.zeros(3).double()),
        ),
        (
            "the bias is the mean colour. But the latents have a mean too, and it is counted twice",
            lambda z, c: (rgb_map(z, c)[0], c.mean(0)),
        ),
        (
            "the factors are transposed: they have 4 rows and 3 columns",
            lambda z, c: (rgb_map(z, c)[0].T, rgb_map(z, c)[1]),
        ),
        ("latents and colours have changed places: this maps colours to latents", reverse_map),
    ],
    "a colour for each place of the latent, without the decoder: the previews are made so",
    [{"latents": POINTS, "colours": COLOURS}],
    tolerance=1e-5,
)  # fmt: skip


UNDIVIDED = Exercise(
    ("C", 0.18215),
    [
        ("B starts one step earlier. That is another strength, not a mistake", ("B", 1.0)),
        ("that is how much too large it would have to be. C's is too small", ("C", 5.49)),
        ("1 is right: in C the decoder's input is smaller. By which factor?", ("C", 1.0)),
    ],
    "C decodes a scaled latent as if it were not scaled. diffusers' unconditional pipeline forgot "
    "this division until September 2023",
    diagnose=which("C", "divide the spread of C's input by the spread of A's"),
    tolerance=0.02,
)

EXERCISES = {
    "scale_factor": FACTOR,
    "rgb_map": RGB,
    "undivided": UNDIVIDED,
}
