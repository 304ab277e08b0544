"""A run, recorded step by step: an observer that remembers what it is shown.

    trace = Trace()
    img2img(sd, "fire", "drawing.png", observe=trace)
    trace.x0[3]                            # what the network believed at the fourth step

    result, trace = traced(img2img, sd, "fire", "drawing.png", strength=0.7)  # guidance's parts too
    save_trace(trace, "fire.safetensors")  # with all settings

In memory a trace holds clones of tensors, on the device they were on, and of the steps no more than
`limit` bytes: when they would take more, every second one of those kept is forgotten, and from
there on only every second (then fourth, ...) is kept. The first and the last always are.
"""

import base64
import inspect
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.schedule import sigma_to_t
from minisd.step import Step
from minisd.trace.tiles import latent_tile
from minisd.trace.watch import together, watching

FORMAT = "1"
KEY = "minisd_trace"  # in the file's metadata


@dataclass(frozen=True)
class Seen:
    """What was seen of a step: x at sigma, and the network's guess of the noise there."""

    i: int
    sigma: float
    sigma_next: float
    x: Tensor  # (B, 4, h, w)
    eps: Tensor | None = None  # with guidance; None in traces of programs that don't tell
    eps_uncond: Tensor | None = None  # the guess without the prompt; None where nobody watched
    eps_cond: Tensor | None = None  # the guess for the prompt
    calls: int | None = None  # of the network, in this step; None where nobody watched

    @property
    def t(self) -> float:
        return sigma_to_t(self.sigma)

    @property
    def x0(self) -> Tensor | None:
        """The clean latent as the network sees it from here."""
        return None if self.eps is None else self.x - self.sigma * self.eps

    @property
    def x_in(self) -> Tensor:
        """x as the network is given it, of variance 1."""
        return self.x / (self.sigma**2 + 1) ** 0.5


@dataclass
class Trace:
    """The observer. What it has seen is in its attributes; the lists have an entry a kept step."""

    settings: dict[str, Any] = field(default_factory=dict)  # what JSON can hold
    limit: int = 256 << 20  # bytes of steps, see above
    steps: list[Seen] = field(default_factory=list)
    stride: int = 1  # which steps are kept: every one, every second, every fourth ...
    n_steps: int = 0  # steps that were run
    encoded: Tensor | None = None  # (B, 4, h, w), the init image's latent
    noise: Tensor | None = None  # what was drawn
    noised: Tensor | None = None  # the image that SD sees: encoded + sigma * noise
    noised_sigma: float | None = None
    latent: Tensor | None = None  # x after the last step
    image: Tensor | None = None  # (B, 3, H, W), the decoded result, in [-1, 1]
    watched: list[Tensor] = field(default_factory=list, repr=False)  # since the last step

    x = property(lambda self: [step.x for step in self.steps])
    x0 = property(lambda self: [step.x0 for step in self.steps])
    eps = property(lambda self: [step.eps for step in self.steps])
    eps_uncond = property(lambda self: [step.eps_uncond for step in self.steps])
    eps_cond = property(lambda self: [step.eps_cond for step in self.steps])
    sigma = property(lambda self: [step.sigma for step in self.steps])
    sigma_next = property(lambda self: [step.sigma_next for step in self.steps])
    t = property(lambda self: [step.t for step in self.steps])

    def __call__(self, name: str, **values: Any) -> None:
        if name == "encoded":
            self.encoded = copied(values["x0"])
        elif name == "noised":
            self.noised, self.noise = copied(values["x"]), copied(values["noise"])
            self.noised_sigma = values["sigma"]
        elif name == "step":
            self.keep(values["step"])
        elif name == "decoded":
            self.image = copied(values["image"])

    def keep(self, step: Step) -> None:
        if self.steps and self.steps[-1].i % self.stride:
            self.steps.pop()  # it was there as the last one
        eps_uncond, eps_cond = None, None
        if self.watched:  # of a sampler's calls in a step, the first is the one at x
            eps_cond = self.watched[0]
            if len(eps_cond) == 2 * len(step.x):
                eps_uncond, eps_cond = eps_cond.chunk(2)
        seen = Seen(
            step.i,
            step.sigma,
            step.sigma_next,
            copied(step.x),
            copied(step.eps),
            eps_uncond,
            eps_cond,
            len(self.watched) or None,
        )
        self.steps.append(seen)
        self.watched.clear()
        self.latent = copied(step.x_next)
        self.n_steps = step.i + 1
        while len(self.steps) > 2 and sum(map(n_bytes, self.steps)) > self.limit:
            self.stride *= 2
            self.steps = [s for s in self.steps[:-1] if s.i % self.stride == 0] + self.steps[-1:]

    @contextmanager
    def watch(self, unet: nn.Module) -> Iterator["Trace"]:
        """See the network's calls too, meanwhile: what it says with and without the prompt."""

        def see(x_in: Tensor, t: Tensor, context: Tensor, eps: Tensor) -> None:
            if not self.watched:
                self.watched.append(copied(eps))
            else:
                self.watched.append(eps.new_empty(0))  # of the other calls, the number is kept

        with watching(unet, see):
            yield self

    def _repr_html_(self) -> str:
        """For notebooks: the settings, and strips of x and x0."""
        shown = {name: value for name, value in self.settings.items() if is_short(value)}
        told = ", ".join(f"{name} {value}" for name, value in shown.items())
        rows = []
        for what in ("x", "x0"):
            latents = [latent for latent in getattr(self, what) if latent is not None]
            tiles = "".join(html_image(latent_tile(self, latent, 64)) for latent in latents)
            rows.append(f"<div style='white-space:nowrap;overflow-x:auto'>{what}<br>{tiles}</div>")
        head = f"<b>{self.n_steps} steps</b> {escape(told)}"
        return f"<div style='font:13px sans-serif'>{head}{''.join(rows)}</div>"


def is_short(value: Any) -> bool:
    return isinstance(value, str | int | float) and value != ""


def html_image(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f"<img style='display:inline;margin:1px' src='data:image/png;base64,{data}'>"


def copied(x: Tensor) -> Tensor:
    return x.detach().clone()


def n_bytes(step: Seen) -> int:
    tensors = (step.x, step.eps, step.eps_uncond, step.eps_cond)
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def traced(draw: Callable[..., Any], sd: Any, *args: Any, **settings: Any) -> tuple[Any, Trace]:
    """Run `draw`, which is img2img, txt2img or inpaint, and record it with all of its settings."""
    given = inspect.signature(draw).bind(sd, *args, **settings)
    given.apply_defaults()
    trace = Trace({"command": draw.__name__})
    for name, value in given.arguments.items():
        plain = str(value) if isinstance(value, Path) else value
        if callable(value):  # a sampler or schedule of your own
            plain = getattr(value, "__name__", str(value))
        if isinstance(plain, str | int | float) and name not in ("sd", "observe"):
            trace.settings[name] = plain
    trace.settings |= model_settings(sd)
    observe = settings.pop("observe", None)
    with trace.watch(sd.unet):
        result = draw(sd, *args, **settings, observe=together(trace, observe) if observe else trace)
    trace.settings["seed"] = result.seed
    return result, trace


def model_settings(sd: Any) -> dict[str, Any]:
    """What a trace must know of the model, to be shown without it."""
    return {
        "model": sd.name,
        "latent_rgb": [list(map(float, row)) for row in sd.latent_rgb],
        "latent_rgb_bias": list(map(float, sd.latent_rgb_bias)),
        "factor": sd.vae.factor,  # pixels of a latent's pixel, a side
    }


# ---- files -------------------------------------------------------------------------------------


def save_trace(trace: Trace, path: str | Path) -> Path:
    """Write it as one .safetensors: tensors of all kept steps stacked (n, B, 4, h, w), and as text
    the settings. Another program's latents can be brought into this form: `x`, `sigma` will do."""
    tensors = {"i": torch.tensor([step.i for step in trace.steps], dtype=torch.int64)}
    for name in ("sigma", "sigma_next"):
        tensors[name] = torch.tensor(getattr(trace, name), dtype=torch.float64)
    for name in ("x", "eps", "eps_uncond", "eps_cond"):
        parts = getattr(trace, name)
        if parts and all(part is not None for part in parts):
            tensors[name] = torch.stack(parts)
    if trace.steps and all(step.calls for step in trace.steps):
        tensors["calls"] = torch.tensor([step.calls for step in trace.steps], dtype=torch.int64)
    for name in ("encoded", "noise", "noised", "latent", "image"):
        if (tensor := getattr(trace, name)) is not None:
            tensors[name] = tensor
    about = {
        "format": FORMAT,
        "settings": trace.settings,
        "n_steps": trace.n_steps,
        "stride": trace.stride,
        "noised_sigma": trace.noised_sigma,
    }
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        whole = {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}
        save_file(whole, part, {KEY: json.dumps(about)})
        os.replace(part, path)  # whole or not at all
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(f"could not write {path}: {error}") from None
    return path


def load_trace(path: str | Path) -> Trace:
    """Read what save_trace wrote, or another program's `x` (n, 4, h, w) or (n, B, 4, h, w) with
    `sigma` (n,). Raises ValueError where the file is none, OSError where it can't be read."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no trace that can be read: {error}") from None
    if "sigma" not in found or (len(found["sigma"]) and "x" not in found):
        raise ValueError(f"{path} is no trace: it needs the tensors x and sigma")
    sigmas = found["sigma"].double().tolist()
    n = len(sigmas)
    lists: dict[str, list[Any]] = {
        "i": list(range(n)),
        "sigma": sigmas,
        "sigma_next": [*sigmas[1:], 0.0],
    }
    for name in ("i", "sigma_next", "calls"):
        if name in found:
            lists[name] = found[name].tolist()
    for name in ("x", "eps", "eps_uncond", "eps_cond"):
        if name in found:
            tensor = found[name]
            lists[name] = list(tensor if tensor.ndim == 5 else tensor[:, None])
    if wrong := [name for name, values in lists.items() if len(values) != n]:
        raise ValueError(
            f"{path} is no trace: {', '.join(wrong)} should have {n} entries, as sigma"
        )
    steps = [Seen(**{name: values[i] for name, values in lists.items()}) for i in range(n)]
    trace = Trace(about.get("settings", {}), steps=steps, stride=about.get("stride", 1))
    trace.n_steps, trace.noised_sigma = about.get("n_steps", n), about.get("noised_sigma")
    for name in ("encoded", "noise", "noised", "latent", "image"):
        setattr(trace, name, found.get(name))
    return trace
