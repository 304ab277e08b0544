"""What a program does with a recipe: its Course, fixed by the settings before a network runs.

minisd's img2img is one rule among several. Programs differ in the list of levels, and in where a
run starts on it. They differ in the factors of picture and noise, in the timestep that the network
gets, in the random numbers, and in what the decoder gets. A Course says all of that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minisd.dialects.noise import CARD, threads_of
from minisd.recipes.recipe import Recipe
from minisd.samplers import Sampler


@dataclass(frozen=True)
class Draws:
    """Which draw of which random numbers goes where."""

    source: str = "CPU"  # of the noise that is added to the picture: SOURCES in noise.py
    card: str | int = CARD  # for GPU
    before: int = 0  # draws of the same stream before that noise
    between: int = 0  # draws of it between that noise and the first step's
    batch: int = 1  # pictures of one draw
    # The steps' noise: the same stream goes on, or a new one has this seed, from this source.
    step_seed: Callable[[int], int] | None = None
    step_source: str | None = None
    tree: tuple[float, float] | None = None  # or it follows a Brownian tree over these levels
    varied: bool = True  # whether the noise of other seeds (-V) reaches the picture
    posterior: int | None = None  # the draw that the encoder uses (0 is the first); None: the mean


@dataclass(frozen=True)
class Course:
    """A run, as the program would do it. All states are in sigma space, x = x0 + sigma * noise."""

    levels: list[float]  # the whole list that the program makes
    sigmas: list[float]  # those of the run. The first call is at sigmas[0]
    sampler: Sampler  # with its options
    timestep: Callable[[float], float]  # sigma -> t for the network
    draws: Draws
    inserted: float  # the level at which the noise is added; it should be sigmas[0]
    image_gain: float = 1.0  # x at sigmas[0] is image_gain * x0 + noise_gain * noise
    noise_gain: float | None = None  # None: sigmas[0]
    scaled_back: bool = False  # the decoder gets x / sqrt(1 + sigmas[-1]^2)
    notes: list[str] = field(default_factory=list)  # what is wrong on purpose, or cannot be known

    @property
    def gain(self) -> float:
        """The noise's factor in x."""
        return self.sigmas[0] if self.noise_gain is None else self.noise_gain


def scaled_start(inserted: float, sigma: float, extra: float = 0.0) -> dict[str, float]:
    """A state of variance 1 at the level `inserted`, which the first call takes as one of `sigma`.

    In it the picture has the factor 1 / sqrt(1 + inserted^2). extra: more noise, in units of it.
    """
    factor = ((1 + sigma**2) / (1 + inserted**2)) ** 0.5
    return {
        "inserted": inserted,
        "image_gain": factor,
        "noise_gain": factor * (inserted + extra),
    }


def unit_start(sigma: float) -> dict[str, float]:
    """Noise of variance 1 as a state of the level sigma, without a picture."""
    return {"inserted": sigma, "image_gain": 0.0, "noise_gain": (1 + sigma**2) ** 0.5}


# ---- options -------------------------------------------------------------------------------------


class Option(NamedTuple):
    """A setting of the program that changes the picture. It stands in a recipe's `options`."""

    default: Any  # None: what the program does by itself
    values: tuple[Any, ...]  # those that it can have, or the limits of a number
    help: str


CARD_OPTION = Option(CARD, (), "the graphics card of noise_source GPU: its name, or its threads")


def noise_options(default: str, sources: tuple[str, ...] = ("CPU", "GPU")) -> dict[str, Option]:
    """The options that every program has."""
    text = "whose random numbers: the CPU's generator, or a GPU's (emulated)"
    return {"noise_source": Option(default, sources, text), "card": CARD_OPTION}


def settings_of(recipe: Recipe, options: Mapping[str, Option]) -> dict[str, Any]:
    """Every option of the dialect: the recipe's value, or the default. Raises ValueError."""
    values = {name: option.default for name, option in options.items()}
    for name, value in recipe.options.items():
        if name not in options:
            known = ", ".join(options)
            raise ValueError(f"the dialect {recipe.dialect} has no option {name!r}; it has {known}")
        values[name] = checked(name, value, options[name])
    return values


def checked(name: str, value: Any, option: Option) -> Any:
    allowed = option.values
    if name == "card":
        threads_of(value)
        return value
    if value is None and option.default is None:
        return value
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in allowed):
        whole_number = all(isinstance(v, int) for v in allowed)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not allowed[0] <= value <= allowed[1] or (whole_number and value % 1):
            noun = "a whole number" if whole_number else "a number"
            raise ValueError(f"{name} must be {noun} from {allowed[0]} to {allowed[1]}: {value!r}")
        return int(value) if whole_number else float(value)
    if isinstance(value, int | float) and isinstance(option.default or allowed[-1], str):
        value = str(value)  # a version such as 1.5, or a year
    if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


def own_name(kind: str, name: Any, known: Mapping[str, Any], program: str) -> str:
    """The name, if the program has it. Raises ValueError."""
    if name in known:
        return name
    choices = ", ".join(known)
    raise ValueError(f"no {kind} {name!r} of {program} is spoken here; choose from {choices}")
