"""The small pictures that the pages show of a run, frame by frame.

Frame 0 is the init image, frame k is step k, and the frame after the last step is the result.
"""

from collections.abc import Iterable

from PIL import Image
from torch import Tensor

from minisd.explorer.runs import Run, shrunk
from minisd.figures.attention import heat
from minisd.observe.tiles import NO_BIAS, latent_image
from minisd.stable_diffusion import StableDiffusion

MAX_WORDS = 12  # words whose attention is shown


def words_of_run(run: Run) -> list[str]:
    return [word.text for word in run.maps.words][:MAX_WORDS]


def latent_tiles(run: Run, frame: int) -> dict[str, Image.Image]:
    """The tiles of a frame that need no decoder, by the names of their views.

    x and x0 are in every frame; eps and words in the steps only. `words` is a column of tiles, one
    for each word.
    """
    sd, i = run.job.sd, frame - 1
    if not 0 <= i < len(run.steps):
        tile = preview(sd, run.latent if frame else run.encoded)
        return {"x": tile, "x0": tile}
    step = run.steps[i]
    tiles = {
        "x": preview(sd, step.x / (step.sigma**2 + 1) ** 0.5),  # as the network gets it
        "x0": preview(sd, step.x0),
        # without the bias, which belongs to latents of pictures: zero noise is grey
        "eps": preview(sd, step.eps, NO_BIAS),
    }
    if words := words_of_run(run):
        tiles["words"] = grid([[heat(run.maps.word(j, i))] for j in range(len(words))])
    return tiles


def picture_tile(run: Run, frame: int) -> Image.Image:
    """The frame as a picture: the decoder's work."""
    if frame == len(run.steps) + 1:
        assert run.image is not None
        return shrunk(run.image)
    return run.picture(frame)


def preview(
    sd: StableDiffusion, latent: Tensor | None, bias: Iterable[float] | None = None
) -> Image.Image:
    """The latent in the model's colours, without the decoder."""
    assert latent is not None
    return latent_image(latent, sd.latent_rgb, sd.latent_rgb_bias if bias is None else bias)


def word_shares(run: Run, frame: int) -> list[float]:
    """The share of all attention that each word has in this step."""
    words = range(len(words_of_run(run)))
    return [round(float(run.maps.word(j, frame - 1).mean()), 4) for j in words]


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of tiles of one size as one picture."""
    w, h = rows[0][0].size
    image = Image.new("RGB", (w * len(rows[0]), h * len(rows)))
    for j, row in enumerate(rows):
        for i, tile in enumerate(row):
            image.paste(tile, (i * w, j * h))
    return image
