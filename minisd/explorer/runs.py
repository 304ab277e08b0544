"""One init image, drawn at several strengths, with everything that happened during each run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from minisd.observe.attention_maps import AttentionMaps
from minisd.observe.finite import NotFinite, stop_at_nan
from minisd.observe.ledger import Ledger
from minisd.observe.watch import together
from minisd.prompts.syntax import parse
from minisd.recipes import DIALECTS, Job
from minisd.run import Encoded, Event, Observer, ignore
from minisd.samplers import Step


@dataclass(frozen=True)
class Run:
    """The record of a run at one strength."""

    strength: float
    ledger: Ledger
    maps: AttentionMaps
    image: Image.Image  # the result
    latent: Tensor  # (1, 4, h, w), the result's
    encoded: Tensor  # (1, 4, h, w), the init image's
    steps: list[Step]
    # The pictures of `encoded` and of each step's x0: the results if the run had ended there.
    decoded: list[Tensor]  # (1, 3, H, W) each


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
    for strength in strengths:
        recipe = replace(job.recipe, strength=strength)
        yield draw(replace(job, recipe=recipe), observe)


@torch.inference_mode()
def draw(job: Job, observe: Observer) -> Run:
    sd, strength = job.sd, job.recipe.strength
    events: list[Event] = []
    observers = (stop_at_nan(sd), events.append, observe)
    spoken = DIALECTS[job.recipe.dialect] is not None
    # The words' places follow from the syntax of the prompt, and that is a dialect's own.
    words = [] if spoken else prompt_texts(job.recipe.prompt)
    with AttentionMaps(sd, words) as maps, Ledger(sd, spoken=spoken) as ledger:
        try:
            result = job.draw(together(*observers, maps, ledger))
        except NotFinite as error:
            raise NotFinite(f"strength {strength:g}, {error}") from None
    encoded = next(event.x0 for event in events if isinstance(event, Encoded))
    steps = [event for event in events if isinstance(event, Step)]
    decoded = [sd.vae.decode(x0) for x0 in (encoded, *(step.x0 for step in steps))]
    return Run(strength, ledger, maps, result.image, result.latent, encoded, steps, decoded)
