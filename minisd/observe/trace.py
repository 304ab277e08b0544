"""The trace: a run recorded step by step.

    with Trace(sd) as trace:
        img2img(sd, "fire", "drawing.png", observe=trace)
    trace.x0[3]                            # the clean latent as predicted at the fourth step
    save_trace(trace, "fire.safetensors")  # trace_file.py

A trace holds copies of the tensors, on the device that they were on. Its steps take no more than
`limit` bytes of memory. When they would take more, every second of the kept steps is dropped, and
from there on only every second one (then every fourth, ...) is kept. The first and the last step
are always kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image
from torch import Tensor

from minisd.observe.tiles import NO_BIAS, data_uri, latent_tile
from minisd.observe.watch import Watcher
from minisd.run import Decoded, Encoded, Event, Noised
from minisd.samplers import Step
from minisd.schedule import sigma_to_t
from minisd.stable_diffusion import SD1_LATENT_RGB, StableDiffusion


@dataclass(frozen=True)
class TracedStep(Step):
    """A recorded Step, with the network's calls in it. Values that were not recorded are None.

    `x_next` is one of them: it is the next step's x, or the trace's latent. Traces of other
    programs may also lack `eps`, and then `x0`.
    """

    eps: Tensor | None = None
    x_next: None = None
    eps_uncond: Tensor | None = None  # predicted without the prompt; None at guidance 1
    eps_cond: Tensor | None = None  # predicted for the prompt
    calls: int | None = None  # how often the network was called in this step

    @property
    def x0(self) -> Tensor | None:
        return None if self.eps is None else self.x - self.sigma * self.eps

    @property
    def t(self) -> float:
        return sigma_to_t(self.sigma)

    @property
    def x_in(self) -> Tensor:
        """x as the network gets it, scaled to variance 1."""
        return self.x / (self.sigma**2 + 1) ** 0.5


class Trace(Watcher):
    """The observer. Its lists have an entry for each kept step."""

    def __init__(
        self,
        sd: StableDiffusion | None = None,
        settings: Mapping[str, Any] | None = None,
        limit: int = 256 << 20,
    ):
        """settings: what to keep with the trace, such as the prompt; as JSON can hold it.

        What is needed to show the trace without the model is added, if `sd` is given.
        """
        super().__init__(sd)
        self.settings = dict(settings or {}) | ({} if sd is None else model_settings(sd))
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget the run that was recorded."""
        self.steps: list[TracedStep] = []
        self.stride = 1  # which steps are kept: every one, every second, every fourth, ...
        self.n_steps = 0  # steps run
        self.encoded: Tensor | None = None  # (1, 4, h, w), the init image's latent
        self.noise: Tensor | None = None  # (B, 4, h, w), as it was drawn
        self.noised: Tensor | None = None  # (B, 4, h, w), encoded + noised_sigma * noise
        self.noised_sigma: float | None = None
        self.latent: Tensor | None = None  # (B, 4, h, w), x after the last step
        self.image: Tensor | None = None  # (B, 3, H, W), the decoded picture, about in [-1, 1]
        self.first_eps: Tensor | None = None  # of the step that is running
        self.calls = 0  # in the step that is running

    @property
    def x(self) -> list[Tensor]:
        return [step.x for step in self.steps]

    @property
    def x0(self) -> list[Tensor | None]:
        return [step.x0 for step in self.steps]

    @property
    def eps(self) -> list[Tensor | None]:
        return [step.eps for step in self.steps]

    @property
    def eps_uncond(self) -> list[Tensor | None]:
        return [step.eps_uncond for step in self.steps]

    @property
    def eps_cond(self) -> list[Tensor | None]:
        return [step.eps_cond for step in self.steps]

    @property
    def sigma(self) -> list[float]:
        return [step.sigma for step in self.steps]

    @property
    def sigma_next(self) -> list[float]:
        return [step.sigma_next for step in self.steps]

    @property
    def t(self) -> list[float]:
        return [step.t for step in self.steps]

    def __call__(self, event: Event) -> None:
        match event:
            case Encoded():
                self.clear()
                self.encoded = copied(event.x0)
            case Noised():
                if self.noised is not None:  # a second run, and it has no init image
                    self.clear()
                self.noised, self.noise = copied(event.x), copied(event.noise)
                self.noised_sigma = event.sigma
            case Step():
                self.record(event)
            case Decoded():
                self.image = copied(event.image)

    def record(self, step: Step) -> None:
        if self.steps and self.steps[-1].i % self.stride:
            self.steps.pop()  # it was kept as the last step so far
        eps_uncond, eps_cond = None, self.first_eps
        if eps_cond is not None and len(eps_cond) == 2 * len(step.x):
            eps_uncond, eps_cond = eps_cond.chunk(2)
        self.steps.append(
            TracedStep(
                step.i,
                step.sigma,
                step.sigma_next,
                copied(step.x),
                copied(step.eps),
                eps_uncond=eps_uncond,
                eps_cond=eps_cond,
                calls=self.calls or None,
            )
        )
        self.first_eps, self.calls = None, 0
        self.latent = copied(step.x_next)
        self.n_steps = step.i + 1
        while len(self.steps) > 2 and sum(map(n_bytes, self.steps)) > self.limit:
            self.stride *= 2
            kept = [traced for traced in self.steps[:-1] if traced.i % self.stride == 0]
            self.steps = [*kept, self.steps[-1]]

    def see_call(self, x_in: Tensor, t: Tensor, context: Tensor, eps: Tensor) -> None:
        self.calls += 1
        if self.calls == 1:  # a sampler's first call in a step is the one at x
            self.first_eps = copied(eps)

    def tile(self, latent: Tensor, size: int, bias: bool = True) -> Image.Image:
        """A latent in the colours of the trace's model, enlarged to about `size` pixels a side.

        Without the bias zero is grey: use that for eps, which is not a picture.
        """
        factors = self.settings.get("latent_rgb", SD1_LATENT_RGB)
        offset = self.settings.get("latent_rgb_bias", NO_BIAS) if bias else NO_BIAS
        return latent_tile(latent, size, factors, offset)

    def __repr__(self) -> str:
        return f"<Trace of {self.n_steps} steps: {self.settings_text()}>"

    def settings_text(self) -> str:
        """The settings that are short: words and numbers."""
        short = {
            name: value
            for name, value in self.settings.items()
            if isinstance(value, str | int | float) and value != "" and name != "factor"
        }
        return ", ".join(f"{name} {value}" for name, value in short.items())

    def _repr_html_(self) -> str:
        """For notebooks: the settings, and a tile for each step's x and x0."""
        settings = escape(self.settings_text())
        rows = []
        for name, latents in (("x", self.x), ("x0", self.x0)):
            uris = [data_uri(self.tile(y, 64), exact=True) for y in latents if y is not None]
            tiles = "".join(f"<img style='display:inline;margin:1px' src='{uri}'>" for uri in uris)
            rows.append(f"<div style='white-space:nowrap;overflow-x:auto'>{name}<br>{tiles}</div>")
        head = f"<b>{self.n_steps} steps</b> {settings}"
        return f"<div style='font:13px sans-serif'>{head}{''.join(rows)}</div>"


def model_settings(sd: StableDiffusion) -> dict[str, Any]:
    return {
        "model": sd.name,
        "latent_rgb": [list(map(float, row)) for row in sd.latent_rgb],
        "latent_rgb_bias": list(map(float, sd.latent_rgb_bias)),
        "factor": sd.vae.factor,  # pixels of the picture for each of the latent, a side
    }


def copied(x: Tensor) -> Tensor:
    return x.detach().clone()


def n_bytes(step: TracedStep) -> int:
    tensors = (step.x, step.eps, step.eps_uncond, step.eps_cond)
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)
