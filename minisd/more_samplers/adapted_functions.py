"""Functions with the signature of k-diffusion's and ComfyUI's samplers, as samplers of minisd.

Such a function runs to its end before it returns. Here it runs in a thread of its own, which waits
at each network call and at each call of `callback`. So its steps can be watched one by one, and
the network runs in the caller's thread.
"""

import inspect
from collections.abc import Callable, Iterator
from inspect import Parameter, Signature
from itertools import pairwise
from queue import SimpleQueue
from threading import Thread
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minisd.samplers import PredictEps, Rng, Sampler, Step, fresh_noise
from minisd.schedule import SIGMAS

# The parameters that the programs fill in; all others are options.
SHARED = ("extra_args", "callback", "disable", "noise_sampler")


def is_function(function: Callable[..., Any]) -> bool:
    """Whether it has k-diffusion's signature for a list of noise levels."""
    names = list(inspect.signature(function).parameters)
    return len(names) > 3 and names[2] == "sigmas" and {"extra_args", "callback"} <= {*names}


def adapted_function(original: Callable[..., Any]) -> Sampler:
    """The sampler as one of minisd's. Its noise, if it takes a noise_sampler, is fresh_noise."""
    others = list(inspect.signature(original).parameters.values())[3:]
    shared = [p.name for p in others if p.name in SHARED]
    options = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in others if p.name not in SHARED]

    def sampler(
        predict_eps: PredictEps,
        x: Tensor,
        sigmas: list[float],
        generator: Rng = None,
        **settings: Any,
    ) -> Iterator[Step]:
        if len(sigmas) < 2:  # strength 0
            return
        conversation = Conversation()
        model = Denoiser(conversation, x)

        def call_back(state: dict[str, Any]) -> None:
            conversation.ask(("step", state["x"].clone(), state.get("denoised")))

        def noise_sampler(sigma: Any, sigma_next: Any) -> Tensor:
            return fresh_noise(x, generator, float(sigma), float(sigma_next))

        given = {
            "extra_args": {},
            "callback": call_back,
            "disable": True,  # no progress bar
            "noise_sampler": noise_sampler,
        }
        settings |= {name: given[name] for name in shared}
        # As the programs have it: levels of x's precision, on x's device.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        levels = torch.tensor(sigmas, dtype=dtype, device=x.device)
        conversation.start(lambda: original(model, x.clone(), levels, **settings))
        yield from steps_of(conversation, predict_eps, sigmas, sampler.__name__)

    parameters = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("predict_eps", "x", "sigmas")
    ]
    if "noise_sampler" in shared:
        rng = Parameter("generator", Parameter.POSITIONAL_OR_KEYWORD, default=None)
        parameters.append(rng)
    sampler.__signature__ = Signature(parameters + options)  # pyright: ignore
    sampler.__name__ = getattr(original, "__name__", "sampler")
    return sampler


class Conversation:
    """A function that runs in a thread of its own, and waits for the answer to each question."""

    def __init__(self) -> None:
        self.questions: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()

    def start(self, function: Callable[[], Any]) -> None:
        inference = torch.is_inference_mode_enabled()  # a setting of each thread

        def run() -> None:
            try:
                with torch.inference_mode(inference), torch.no_grad():
                    self.questions.put(("end", function()))
            except BaseException as error:  # the caller raises it
                self.questions.put(("error", error))

        Thread(target=run, name="sampler", daemon=True).start()

    def ask(self, question: tuple[Any, ...]) -> Any:
        """In the thread: wait for the caller's answer."""
        self.questions.put(question)
        answer = self.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Denoiser:
    """The `model` that such a function calls: `(x, sigma (B,)) -> denoised`, with ComfyUI's facts.

    ComfyUI's samplers ask `inner_model` for the range of the noise levels and for the kind of model
    that it is: one that predicts noise in sigma space.
    """

    def __init__(self, conversation: Conversation, x: Tensor):
        self.conversation = conversation
        low, high = (torch.tensor(float(SIGMAS[i])).to(x) for i in (0, -1))
        self.sigma_min, self.sigma_max = low, high
        facts = SimpleNamespace(sigma_min=low, sigma_max=high, noise_scale=1.0)
        patcher = SimpleNamespace(get_model_object=lambda name: facts)
        self.inner_model = SimpleNamespace(
            model_sampling=facts, model_patcher=patcher, sigma_min=low, sigma_max=high
        )

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        eps = self.conversation.ask(("call", x.clone(), float(sigma.flatten()[0])))
        return x - sigma.view(-1, *[1] * (x.ndim - 1)) * eps


def steps_of(
    conversation: Conversation, predict_eps: PredictEps, sigmas: list[float], name: str
) -> Iterator[Step]:
    """Answer the network calls, and yield a Step for each call of `callback`."""
    levels = list(pairwise(sigmas))
    begun: list[tuple[Tensor, Tensor]] = []  # x and eps at the start of each step
    calls: list[tuple[Tensor, Tensor]] = []  # x and eps of the calls in this step

    def finished(x_next: Tensor) -> Step:
        i = len(begun) - 1
        return Step(i, *levels[i], *begun[i], x_next)

    ended = False
    try:
        while True:
            kind, *contents = conversation.questions.get()
            ended = kind in ("end", "error")
            if kind == "error":
                raise contents[0]
            if kind == "call":
                x, sigma = contents
                calls.append((x, predict_eps(x, sigma)))
                conversation.answers.put(calls[-1][1])
                continue
            x = contents[0]
            if begun and len(begun) <= len(levels):
                yield finished(x)
            if kind == "end":
                break
            if len(begun) < len(levels):
                eps = [eps for x_called, eps in calls if torch.equal(x_called, x)]
                begun.append((x, eps[-1] if eps else (x - contents[1]) / levels[len(begun)][0]))
            else:
                begun.append(begun[-1])
            calls = []
            conversation.answers.put(None)
        if len(begun) != len(levels):
            counts = f"{len(begun)} times in {len(levels)} steps"
            raise ValueError(f"{name} calls back {counts}; a sampler must do so once in each step")
    finally:
        if not ended:  # the caller has left: the thread ends at its next question
            conversation.answers.put(GeneratorExit())
