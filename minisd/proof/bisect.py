"""Where two configurations of one recipe part: the first step, and in it the first module.

    a, b = Configuration(sd), Configuration(other_sd)
    parting = bisect(Recipe("fire", steps=4, seed=1), a, b)
    parting.line()     # they part at step 1 in unet.middle_block.0.in_layers.2: ...

Differences grow from module to module, so where two runs are far apart says little about where the
first difference came from. Here A alone is run. Each of its modules passes its inputs to B's module
of the same name too, and the two outputs are compared. A module is named only if it gives another
output for the same input. Modules that contain others come after them: if one is named, its parts
agree, and the order in which it uses them does not.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minisd.exact_mode import exact
from minisd.images import Picture
from minisd.observe.trace import Trace
from minisd.recipes import Recipe, prepare
from minisd.run import Decoded, Encoded, Event, Noised
from minisd.samplers import Step
from minisd.stable_diffusion import StableDiffusion

PARTS = ("text_encoder", "vae", "unet")
# Relative to the largest value of an output: what rounding can do in one module, by its dtype.
ROUNDING = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float64: 1e-12}
# PyTorch's switches, by their names here. TF32 has two: one for products, one for convolutions.
FLAGS = {
    "tf32": ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")),
    "mkldnn": ((torch.backends.mkldnn, "enabled"),),
    "cudnn": ((torch.backends.cudnn, "enabled"),),
    "benchmark": ((torch.backends.cudnn, "benchmark"),),
}


@dataclass(frozen=True)
class Configuration:
    """A model, and the arithmetic that it is run with."""

    sd: StableDiffusion
    exact: bool = False
    threads: int | None = None  # None: as they are
    flags: Mapping[str, bool] = field(default_factory=dict)  # names of FLAGS

    @property
    def dtype(self) -> torch.dtype:
        return next(self.sd.unet.parameters()).dtype

    @property
    def arithmetic(self) -> tuple:
        """Equal for two configurations that round in the same way."""
        flags = tuple(sorted(self.flags.items()))
        return (self.exact, self.threads, flags, self.dtype, self.sd.device.type)

    @contextmanager
    def applied(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        places = {place: value for name, value in self.flags.items() for place in FLAGS[name]}
        saved = {place: getattr(*place) for place in places}
        with ExitStack() as stack:
            if self.exact:
                stack.enter_context(exact())
            try:
                torch.set_num_threads(self.threads or threads)
                for place, value in places.items():
                    setattr(*place, value)
                yield
            finally:
                torch.set_num_threads(threads)
                for place, value in saved.items():
                    setattr(*place, value)


@dataclass(frozen=True)
class Compared:
    """One call of a module of A: how far B's output for the same input is from A's."""

    path: str  # the module's name in the checkpoint, after the part: unet.out.2
    place: str  # the step, or `the prompt`, `the init image`, `the decoder`
    distance: float  # relative to the largest value of A's output; inf for another shape


@dataclass(frozen=True)
class Parting:
    compared: list[Compared]  # in the order of A's calls, up to the first that differs
    tolerance: float
    n_steps: int  # that A ran

    @property
    def first(self) -> Compared | None:
        """The first module with another output. None: they do not part."""
        last = self.compared[-1] if self.compared else None
        return last if last is not None and last.distance > self.tolerance else None

    def line(self) -> str:
        limit = "by a single bit" if self.tolerance == 0 else f"by more than {self.tolerance:g}"
        if self.first is None:
            largest = max((entry.distance for entry in self.compared), default=0.0)
            calls = f"{len(self.compared):,} calls of modules"
            return f"they do not part {limit}: {calls}, the largest difference is {largest:.1e}"
        where = f"at {self.first.place} in {self.first.path}"
        distance = f"its output differs by {self.first.distance:.1e} of the largest value"
        return f"they part {where}: for the same input, {distance}"


class Stop(Exception):
    """The first difference: the run is stopped there."""


def bisect(
    recipe: Recipe,
    a: Configuration,
    b: Configuration,
    image: Picture | Tensor | None = None,
    mask: Picture | None = None,
    tolerance: float | None = None,
) -> Parting:
    """Run the recipe in A, and compare each module with B's.

    tolerance  the distance that counts as rounding. The default is 0 if both round in the same way,
               and otherwise ROUNDING of A's dtype

    Raises ValueError if the two models do not have the same modules.
    """
    if a.arithmetic == b.arithmetic:
        tolerance = 0.0 if tolerance is None else tolerance
    tolerance = ROUNDING[a.dtype] if tolerance is None else tolerance
    pairs = module_pairs(a.sd, b.sd)
    compared: list[Compared] = []
    place = Place()

    def compare(name: str, other: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple, output: Any) -> None:
            if place.is_busy or not isinstance(output, Tensor):
                return
            place.is_busy = True  # B's modules have no hooks, but A and B may share some
            try:
                with torch.inference_mode(), b.applied():
                    result = other(*(moved(x, b.sd, name) for x in args))
            finally:
                place.is_busy = False
            compared.append(Compared(name, place.name(name), distance(output, result)))
            if compared[-1].distance > tolerance:
                raise Stop

        return hook

    handles = [module.register_forward_hook(compare(name, other)) for name, module, other in pairs]
    try:
        with a.applied():
            prepare(recipe, a.sd, image, mask).draw(place)
    except Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return Parting(compared, tolerance, place.steps)


class Place:
    """An observer that knows how far the run is."""

    def __init__(self) -> None:
        self.steps, self.is_encoded, self.is_busy = 0, False, False

    def __call__(self, event: Event) -> None:
        match event:
            case Encoded() | Noised() | Decoded():
                self.is_encoded = True
            case Step():
                self.steps = event.i + 1

    def name(self, path: str) -> str:
        if path.startswith("text_encoder"):
            return "the prompt"
        if path.startswith("unet"):
            return f"step {self.steps + 1}"
        return "the decoder" if self.is_encoded else "the init image"


def module_pairs(a: StableDiffusion, b: StableDiffusion) -> list[tuple[str, nn.Module, nn.Module]]:
    """(name, A's module, B's module), each one once."""
    pairs = []
    for part in PARTS:
        of_a, of_b = (dict(getattr(sd, part).named_modules()) for sd in (a, b))
        if of_a.keys() != of_b.keys():
            name = min(of_a.keys() ^ of_b.keys())
            raise ValueError(f"only one of the models has {part}.{name}: they cannot be compared")
        for path, module in of_a.items():
            # Lists have no forward of their own, and the parts' wholes are called by other names.
            if type(module).forward is not nn.Module.forward and not is_list(module):
                pairs.append((f"{part}.{path}".rstrip("."), module, of_b[path]))
    return pairs


def is_list(module: nn.Module) -> bool:
    return type(module) in (nn.ModuleList, nn.ModuleDict) or isinstance(module, nn.Identity)


def moved(x: Any, sd: StableDiffusion, path: str) -> Any:
    """A's input for B's module of this name: on its device, with its part's dtype."""
    if not isinstance(x, Tensor):
        return x
    dtype = next(getattr(sd, path.split(".", maxsplit=1)[0]).parameters()).dtype
    is_half = x.dtype in (torch.float16, torch.bfloat16) or dtype in (torch.float16, torch.bfloat16)
    return x.to(sd.device, dtype if x.is_floating_point() and is_half else x.dtype)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of a."""
    if not isinstance(b, Tensor) or a.shape != b.shape:
        return math.inf
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    if torch.equal(a, b):
        return 0.0
    largest = float(a.abs().max())
    off = float((a - b).abs().max())
    return off / largest if largest > 0 and math.isfinite(off) else math.inf


# ---- growth --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growing:
    """How far A's and B's own runs are apart after each module of one step's first call."""

    paths: list[str]
    distances: list[float]


def growth(
    recipe: Recipe,
    a: Configuration,
    b: Configuration,
    step: int = 1,
    image: Picture | Tensor | None = None,
    mask: Picture | None = None,
) -> Growing:
    """Run both, and compare the outputs of the UNet's modules in this step (counted from 1)."""
    outputs: dict[str, Tensor] = {}
    paths: list[str] = []
    distances: list[float] = []
    for configuration in (a, b):
        place, seen_paths = Place(), set()
        unet = configuration.sd.unet

        def see(
            path: str,
            output: Any,
            place: Place = place,
            seen_paths: set[str] = seen_paths,
            is_b: bool = configuration is b,
        ) -> None:
            if place.steps + 1 != step or path in seen_paths or not isinstance(output, Tensor):
                return
            seen_paths.add(path)
            if path not in outputs:
                outputs[path] = output.detach().float().cpu()
            elif is_b:
                paths.append(f"unet.{path}")
                distances.append(distance(outputs[path], output))

        handles = [
            module.register_forward_hook(lambda _, args, output, path=path: see(path, output))
            for path, module in unet.named_modules()
            if not list(module.children()) and not is_list(module)
        ]
        try:
            with configuration.applied():
                prepare(recipe, configuration.sd, image, mask).draw(place)
        finally:
            for handle in handles:
                handle.remove()
    return Growing(paths, distances)


def first_step_apart(a: Trace, b: Trace, tolerance: float) -> int | None:
    """The first step (from 1) at whose start x is further apart than the tolerance, relatively.

    None if no step is; the step after the last stands for the final latent. Raises ValueError if
    the two have other noise levels or sizes: then they are not runs of one recipe.
    """
    if len(a.sigma) != len(b.sigma) or any(
        abs(s - t) > 1e-3 * max(s, t) for s, t in zip(a.sigma, b.sigma)
    ):
        raise ValueError("the two have other noise levels: they are not runs of one recipe")
    rows = list(zip(a.x, b.x, strict=True))
    if a.latent is not None and b.latent is not None:
        rows.append((a.latent, b.latent))
    for i, (x, y) in enumerate(rows):
        if distance(x, y) > tolerance:
            return i + 1
    return None
