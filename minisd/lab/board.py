"""The board: how far samplers end from a run of 1000 steps, by network calls.

Three models (a network, and two that are known exactly), two starts (pure noise, and img2img of
strength 0.7), several cases (texts and seeds). Each sampler takes as many steps as 5, 7, 10, 15, 20
or 30 calls allow, on Karras's schedule. The error is the root mean square of the difference of the
latents; its interval is the 95 % one of the mean over the cases.

A sampler without noise is compared with k_dpmpp_2. One that draws noise, or guides in a way of its
own (CFG++), solves another equation: it is compared with 1000 steps of itself, on one Brownian
path.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minisd.guidance import Guided
from minisd.lab.paths import SampledPath
from minisd.lab.quality import PROMPTED
from minisd.lab.subject import MIXTURE, Recorder, Subject, all_steps, latent, rms
from minisd.samplers import PredictEps, Sampler, k_dpmpp_2
from minisd.schedule import SIGMAS
from minisd.stable_diffusion import StableDiffusion

CALLS = (5, 7, 10, 15, 20, 30)
STARTS = {"noise": 1.0, "strength 0.7": 0.7}
TEXTS = ("fire", "red heart", "house")
SEEDS = (1, 2)
GUIDANCE, CFG_PP_GUIDANCE = 4.0, 0.6
STUDENT = {2: 12.706, 6: 2.571}  # the 97.5 % quantile of Student's t, by cases


@dataclass(frozen=True)
class Entry:
    """One number of the board."""

    model: str
    start: str
    sampler: str
    calls: int  # allowed
    calls_used: int
    steps: int
    reference: str  # whose 1000 steps it is compared with: k_dpmpp_2, or itself
    error: float  # the mean over the cases
    interval: float  # half of the 95 % interval of the mean


@dataclass(frozen=True)
class Bench:
    """A model with the cases that are drawn on it."""

    name: str
    predict: Callable[[float], PredictEps]  # the model with this guidance
    guidance: float
    noise: Tensor  # (cases, 4, h, w)
    plain: Mapping[str, Tensor]  # what each start's run of 1000 steps gives; may be empty
    pictures: Tensor | None = None  # the clean latents that img2img starts from


# ---- models --------------------------------------------------------------------------------------


class ExactGuided:
    """MIXTURE without the prompt, one normal with it, and guidance: all is known exactly."""

    def __init__(self, guidance: float):
        self.guidance = guidance

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return MIXTURE(x, sigma), PROMPTED(x, sigma)

    def guide(self, eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        return eps_uncond + self.guidance * (eps_cond - eps_uncond)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.guide(*self.both(x, sigma), x, sigma)


def exact_benches() -> list[Bench]:
    """Two exact models: a mixture of two normals, and the same with guidance."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(len(TEXTS) * len(SEEDS), 4, 8, 8, generator=rng).double()
    return [
        Bench("mixture", lambda guidance: MIXTURE, 1.0, noise, {}),
        Bench("guided mixture", ExactGuided, GUIDANCE, noise, {}),
    ]


def network_bench(sd: StableDiffusion, plain: Mapping[str, Tensor]) -> Bench:
    """A checkpoint with TEXTS and SEEDS at its native size."""
    context = torch.cat([sd.text_states(text) for text in TEXTS for _ in SEEDS])
    uncond = sd.text_states("")
    side = sd.native_size // sd.vae.factor
    rngs = [torch.Generator().manual_seed(seed) for _ in TEXTS for seed in SEEDS]
    noise = torch.cat([torch.randn(1, 4, side, side, generator=rng) for rng in rngs]).to(sd.device)

    def predict(guidance: float) -> PredictEps:
        return Guided(sd.unet, context, uncond, guidance)

    return Bench(sd.name, predict, GUIDANCE, noise, plain)


# ---- measuring -----------------------------------------------------------------------------------


def levels_from(high: float, steps: int) -> list[float]:
    """Karras's schedule from `high` to 0.0292, then 0: from 14.61 it is `karras`."""
    low = float(SIGMAS[0])
    ramp = np.linspace(high ** (1 / 7), low ** (1 / 7), steps)
    return [float(root) ** 7 for root in ramp] + [0.0]


def start_level(strength: float) -> float:
    """The level where img2img starts: with many steps it is this share down Karras's schedule."""
    high, low = (float(SIGMAS[i]) ** (1 / 7) for i in (-1, 0))
    return (high + (1 - strength) * (low - high)) ** 7


def steps_within(sampler: Sampler, high: float, calls: int) -> tuple[int, int]:
    """The most steps that make at most so many calls, and the calls; (0, 0) if one step is more."""
    best = (0, 0)
    for steps in range(1, calls + 1):
        used = calls_of(sampler, high, steps)
        if used > calls:
            break
        best = (steps, used)
    return best


@lru_cache(maxsize=1024)
def calls_of(sampler: Sampler, high: float, steps: int) -> int:
    model = Recorder(MIXTURE)
    all_steps(sampler, model, latent(high, size=1), levels_from(high, steps))
    return len(model.calls)


@torch.inference_mode()
def reference_of(
    bench: Bench,
    start: str,
    sampler: Sampler,
    guidance: float,
    path: SampledPath | None,
    steps: int,
) -> Tensor:
    high = start_level(STARTS[start])
    predict_eps = bench.predict(guidance)
    return run(sampler, predict_eps, begin(bench, start), levels_from(high, steps), path)


def begin(bench: Bench, start: str) -> Tensor:
    """The noisy latents of all cases. img2img starts from the pictures of other cases."""
    noise = start_level(STARTS[start]) * bench.noise
    if start == "noise":
        return noise
    assert bench.pictures is not None
    return bench.pictures.roll(len(SEEDS), 0).to(noise) + noise


def run(
    sampler: Sampler,
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    path: SampledPath | None = None,
) -> Tensor:
    return all_steps(sampler, predict_eps, x, sigmas, path)[-1].x_next


def with_references(bench: Bench, steps: int = 1000) -> Bench:
    """The bench with the results of k_dpmpp_2's long runs. They are computed once."""
    plain = dict(bench.plain)
    for start in STARTS:  # noise first: its results are the pictures that img2img starts from
        if start not in plain:
            pictures = plain.get("noise")
            ready = Bench(bench.name, bench.predict, bench.guidance, bench.noise, plain, pictures)
            plain[start] = reference_of(ready, start, k_dpmpp_2, bench.guidance, None, steps)
    return Bench(bench.name, bench.predict, bench.guidance, bench.noise, plain, plain["noise"])


@torch.inference_mode()
def measure(
    bench: Bench,
    name: str,
    sampler: Sampler,
    reference_steps: int = 1000,
    own_reference: bool = True,
) -> Iterator[Entry]:
    """The sampler's numbers on a bench that has references, one by one.

    Without own_reference there are none for a sampler that is compared with itself.
    """
    uses_both = asks_for_both(sampler)
    guidance = CFG_PP_GUIDANCE if uses_both and bench.guidance > 1 else bench.guidance
    draws = Subject(sampler).draws
    own = draws or guidance != bench.guidance
    if own and not own_reference:
        return
    for start, strength in STARTS.items():
        high, x = start_level(strength), begin(bench, start)
        path = SampledPath(x, high=high) if draws else None
        predict_eps = bench.predict(guidance)
        if own:
            reference = reference_of(bench, start, sampler, guidance, path, reference_steps)
        else:
            reference = bench.plain[start]
        for calls in CALLS:
            steps, used = steps_within(sampler, high, calls)
            if steps == 0:
                continue
            end = run(sampler, predict_eps, x, levels_from(high, steps), path)
            errors = [rms(x_end - exact) for x_end, exact in zip(end, reference.to(end))]
            mean = sum(errors) / len(errors)
            spread = math.sqrt(sum((e - mean) ** 2 for e in errors) / (len(errors) - 1))
            half = STUDENT[len(errors)] * spread / math.sqrt(len(errors))
            compared = "itself" if own else "k_dpmpp_2"
            yield Entry(bench.name, start, name, calls, used, steps, compared, mean, half)


def asks_for_both(sampler: Sampler) -> bool:
    """Whether it uses the predictions with and without the prompt apart, as CFG++ does."""
    asked = False

    class Spy(ExactGuided):
        def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            nonlocal asked
            asked = True
            return super().both(x, sigma)

        def __call__(self, x: Tensor, sigma: float) -> Tensor:
            return MIXTURE(x, sigma)

    all_steps(sampler, Spy(1.0), latent(2.0, size=1), [2.0, 1.0])
    return asked


# ---- tables --------------------------------------------------------------------------------------


def to_csv(entries: Iterable[Entry]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(Entry)], lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        values = asdict(entry) | {
            "error": f"{entry.error:.6g}",
            "interval": f"{entry.interval:.3g}",
        }
        writer.writerow(values)
    return text.getvalue()


def from_csv(text: str) -> list[Entry]:
    """Raises ValueError if the text is not a board's."""
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
    try:
        return [
            Entry(
                row["model"],
                row["start"],
                row["sampler"],
                int(row["calls"]),
                int(row["calls_used"]),
                int(row["steps"]),
                row["reference"],
                float(row["error"]),
                float(row["interval"]),
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is not a board's table: {error}") from error


def place(entries: Iterable[Entry], entry: Entry) -> tuple[int, int]:
    """The entry's place among the samplers that were measured in the same way, and their number."""
    rivals = [
        other.error
        for other in entries
        if key_of(other) == key_of(entry) and other.sampler != entry.sampler
    ]
    return 1 + sum(error < entry.error for error in rivals), len(rivals) + 1


def key_of(entry: Entry) -> tuple[str, str, str, int]:
    return entry.model, entry.start, entry.reference, entry.calls


def rows_of(entries: Iterable[Entry], model: str, start: str, reference: str) -> list[list[str]]:
    """Rows of a table: a sampler each, the best at 10 calls first, a column for each of CALLS."""
    chosen = [e for e in entries if key_of(e)[:3] == (model, start, reference)]
    samplers = dict.fromkeys(e.sampler for e in chosen)
    by_place = {(e.sampler, e.calls): e for e in chosen}

    def at_ten(sampler: str) -> float:
        entry = by_place.get((sampler, 10))
        return entry.error if entry and math.isfinite(entry.error) else math.inf

    rows = []
    for sampler in sorted(samplers, key=at_ten):
        cells = [by_place.get((sampler, calls)) for calls in CALLS]
        rows.append([sampler, *(f"{e.error:.3f} ± {e.interval:.3f}" if e else "" for e in cells)])
    return rows
