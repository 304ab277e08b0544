"""One init image, drawn at several strengths, with everything that happened during each run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from minisd.images import to_pil
from minisd.observe.attention_maps import AttentionMaps
from minisd.observe.finite import NotFinite, stop_at_nan
from minisd.observe.ledger import Ledger
from minisd.observe.watch import together
from minisd.prompts.syntax import parse
from minisd.recipes import DIALECTS, Job
from minisd.run import Encoded, Event, Observer, ignore
from minisd.samplers import Step

TILE = 256  # the largest side of the pictures of steps, in pixels


class Run:
    """A run at one strength, and its record. Its frames are the init image, the steps, the result.

    An observer of `draw` is called with each event after the record has it.
    """

    def __init__(self, job: Job, words: Sequence[str]):
        """words: the texts whose attention is recorded, as prompt_texts gives them."""
        self.job, self.strength = job, job.recipe.strength
        spoken = DIALECTS[job.recipe.dialect] is not None
        self.ledger = Ledger(job.sd, spoken=spoken)
        self.maps = AttentionMaps(job.sd, words)
        self.encoded: Tensor | None = None  # (1, 4, h, w), the init image's
        self.steps: list[Step] = []
        self.latent: Tensor | None = None  # (1, 4, h, w), the result's
        self.image: Image.Image | None = None  # the result
        self.pictures: dict[int, Image.Image] = {}  # by frame; those that were decoded so far

    def __call__(self, event: Event) -> None:
        if isinstance(event, Encoded):
            self.encoded = event.x0
        elif isinstance(event, Step):
            self.steps.append(event)

    @torch.inference_mode()
    def draw(self, observe: Observer = ignore) -> "Run":
        """Draw it. Raises NotFinite, and what `observe` raises."""
        with self.maps, self.ledger:
            observers = (stop_at_nan(self.job.sd), self.maps, self.ledger, self, observe)
            result = self.job.draw(together(*observers))
        self.image, self.latent = result.image, result.latent
        return self

    @torch.inference_mode()
    def picture(self, frame: int) -> Image.Image:
        """The picture of a frame before the result, at most TILE pixels a side.

        Frame 0 is the encoded init image; frame k is x0 at step k, the result if the run had ended
        there.
        """
        if frame not in self.pictures:
            x0 = self.steps[frame - 1].x0 if frame else self.encoded
            self.pictures[frame] = shrunk(to_pil(self.job.sd.vae.decode(x0)))
        return self.pictures[frame]


def shrunk(image: Image.Image) -> Image.Image:
    """The picture, scaled down if a side is longer than TILE."""
    image = image.copy()
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return image


def prompt_texts(prompt: str) -> list[str]:
    """The texts of a prompt that the tokenizer encodes separately, for AttentionMaps.

    Raises ValueError for a blend: each token position holds words of several texts then.
    """
    parts = parse(prompt).parts
    if len(parts) > 1:
        raise ValueError("attention to the words of a blend cannot be separated: give one prompt")
    return [fragment.text for fragment in parts[0].fragments]


def draw_all(job: Job, strengths: Iterable[float], observe: Observer = ignore) -> Iterator[Run]:
    """A Run for each strength, which replaces the recipe's own.

    Each strength is a run of its own, so that the page shows what `minisd img2img` draws, to the
    last bit. One batch for all strengths that are at the same sigma would save 30 % of the
    network's time on a CPU. Its results would differ by 2e-5, because matrix products are summed in
    another order for another batch size.

    Raises ValueError for a blend, NotFinite for a run that computes NaN or Inf.
    """
    spoken = DIALECTS[job.recipe.dialect] is not None
    # The words' places follow from the syntax of the prompt, and that is a dialect's own.
    words = [] if spoken else prompt_texts(job.recipe.prompt)
    for strength in strengths:
        run = Run(replace(job, recipe=replace(job.recipe, strength=strength)), words)
        try:
            yield run.draw(observe)
        except NotFinite as error:
            raise NotFinite(f"strength {strength:g}, {error}") from None
