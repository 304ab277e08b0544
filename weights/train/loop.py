"""The training loop of all stages: time budget, running average of the weights, progress line.

Its state is saved, so that training can be stopped and continued at any time.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from weights.train.profiles import Profile, Stage

SAVE_EVERY = 90  # seconds
REPORT_EVERY = 10  # seconds
SLOWER = 0.2  # of the learning rate


@dataclass
class State:
    """Everything that a stage needs to continue."""

    model: nn.Module
    slower: str = ""  # parameters whose names start so learn at SLOWER times the rate
    average: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    step: int = 0
    seconds: float = 0.0
    first_step: int = 0  # the first one of this optimizer, for its warm-up

    def __post_init__(self) -> None:
        self.average = deepcopy(self.model).requires_grad_(False).eval()
        # Weight decay is for matrices only. Token vectors have none: it would shrink the vectors of
        # all words that are not in the batch.
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            decay = 0.01 if parameter.ndim > 1 and "embedding" not in name else 0.0
            share = SLOWER if self.slower and name.startswith(self.slower) else 1.0
            groups.setdefault((decay, share), []).append(parameter)
        groups = [{"params": p, "weight_decay": d, "share": s} for (d, s), p in groups.items()]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)

    def progress(self, stage: Stage) -> float:
        """The used share of the budget: of the steps if they are limited, else of the time."""
        if stage.steps:
            return self.step / stage.steps
        return self.seconds / (60 * stage.minutes) if stage.minutes else 1.0

    def save(self, path: Path, facts: dict) -> None:
        tensors = {k: getattr(self, k).state_dict() for k in ("model", "average", "optimizer")}
        numbers = {k: getattr(self, k) for k in ("step", "seconds", "first_step")}
        with replacing(path) as part:
            torch.save({**tensors, **numbers, "facts": facts}, part)

    def load(self, path: Path, facts: dict) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if json.dumps(saved["facts"]) != json.dumps(facts):
            raise SystemExit(f"{path} has another profile or seed: choose another --run folder")
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        for name in ("step", "seconds", "first_step"):
            setattr(self, name, saved[name])


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a temporary file, which replaces `path` at the end of the block.

    If writing fails or the process is killed, the old file stays.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Stopped(SystemExit):
    """SIGTERM or Ctrl-C, after the state was saved."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list to which the first SIGTERM or SIGINT is added. A second one acts as usual."""
    signals: list[int] = []

    def note(number: int, _: object) -> None:
        signals.append(number)
        for n, handler in before.items():
            signal.signal(n, handler)

    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def learning_rate(stage: Stage, progress: float, steps_taken: int) -> float:
    """Linear warm-up over steps, then a cosine over the budget, down to a hundredth."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    return stage.lr * cosine * min(1, (steps_taken + 1) / stage.warmup)


class Passes:
    """Forward and backward passes of a batch in bfloat16. Float32 gradients go into `.grad`.

    On a CPU the passes use a copy of the model in bfloat16, because casting at each operation is
    slower. The batch is split into parts, one for each core: in a small model, one operation is too
    small to share between cores.
    """

    def __init__(self, model: nn.Module, low: torch.dtype = torch.bfloat16, compiled: bool = False):
        """compiled: on a GPU, by torch.compile, which joins the many small operations."""
        self.model, self.device = model, next(model.parameters()).device
        self.parts = [*model.children()] if isinstance(model, nn.ModuleDict) else [model]
        self.unchecked = compiled and self.device.type == "cuda"
        if self.unchecked:
            for part in self.parts:
                part.compile()
        self.copy = deepcopy(model).to(low) if self.device.type == "cpu" else None
        # Despite its name, this counts on the CPU too: attention without a float32 copy.
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)

    def __call__(self, loss_of: Callable[..., dict[str, Tensor]], batch: list[Tensor]) -> dict:
        """The means of loss_of(model, *batch) over the batch; "loss" is the one to minimize."""
        if self.unchecked:
            self.unchecked = False
            self.check(loss_of, batch)
        if self.copy is None:
            with torch.autocast(self.device.type, torch.bfloat16):
                losses = loss_of(self.model, *batch)
            losses["loss"].backward()
            return losses

        parameters = [*self.copy.parameters()]
        with torch.no_grad():
            torch._foreach_copy_(parameters, [*self.model.parameters()])
        threads = torch.get_num_threads()
        parts = [*zip(*(tensor.chunk(threads) for tensor in batch), strict=True)]

        def work(part: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            torch.set_num_threads(1)  # for this thread
            losses = loss_of(self.copy, *part)
            share = len(part[0]) / len(batch[0])
            # Not backward(): two threads must not add to the same .grad.
            grads = torch.autograd.grad(losses["loss"] * share, parameters)
            return {key: value.detach() * share for key, value in losses.items()}, grads

        # Plain softmax attention trains faster than fused attention with heads this narrow.
        with ThreadPoolExecutor(len(parts)) as pool, sdpa_kernel(SDPBackend.MATH):
            results = [*pool.map(work, parts)]
        torch.set_num_threads(threads)
        gradients = [grads for _, grads in results]
        for parameter, *grads in zip(self.model.parameters(), *gradients, strict=True):
            parameter.grad = sum(grad.float() for grad in grads)
        return {key: sum(losses[key] for losses, _ in results) for key in results[0][0]}

    def check(self, loss_of: Callable[..., dict[str, Tensor]], batch: list[Tensor]) -> None:
        """Compare gradients with float32. If the compiled ones are far worse, do not compile.

        Wrong gradients were seen on a CPU. Right ones have errors too: in bfloat16, the L1 loss of
        a good autoencoder has the wrong sign at many pixels.
        """
        torch.compiler.set_stance("default")
        gradients: list[list[Tensor]] = []
        try:
            for stance, low in (("force_eager", False), ("force_eager", True), ("default", True)):
                with (
                    torch.compiler.set_stance(stance),
                    torch.autocast(self.device.type, torch.bfloat16, enabled=low),
                ):
                    loss = loss_of(self.model, *batch)["loss"]
                    gradients.append([*torch.autograd.grad(loss, [*self.model.parameters()])])
            exact, plain, compiled = (iter(grads) for grads in gradients)
            is_right = True
            for part in self.parts:
                n = len([*part.parameters()])
                a, b, c = (
                    torch.cat([next(v).flatten() for _ in range(n)])
                    for v in (exact, plain, compiled)
                )
                plain_error, error = (float((v - a).norm() / a.norm()) for v in (b, c))
                print(f"errors of gradients: {plain_error:.3f} plain, {error:.3f} compiled")
                is_right = is_right and error < 2 * plain_error + 0.03
            is_right = is_right and self.compiled_is_faster(loss_of, batch)
        except Exception as error:  # whatever the compiler raises
            print(f"not compiled: {type(error).__name__}: {error}", flush=True)
            is_right = False
        torch.compiler.set_stance("default" if is_right else "force_eager")

    def compiled_is_faster(self, loss_of: Callable, batch: list[Tensor], passes: int = 10) -> bool:
        """Whether compiled passes take less time than plain ones."""

        def now() -> float:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return time.monotonic()

        speeds = []
        for stance in ("force_eager", "default"):
            torch.compiler.set_stance(stance)
            for i in range(passes + 3):  # the first ones choose algorithms
                if i == 3:
                    start = now()
                with torch.autocast(self.device.type, torch.bfloat16):
                    loss_of(self.model, *batch)["loss"].backward()
            speeds.append(passes * len(batch[0]) / (now() - start))
            self.model.zero_grad(set_to_none=True)
        print(f"{speeds[0]:,.0f} pictures/s plain, {speeds[1]:,.0f} compiled", flush=True)
        return speeds[1] > speeds[0]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_([*average.parameters()], [*model.parameters()], 1 - decay)


def train(
    name: str,
    state: State,
    losses_of: Callable[[int], dict[str, Tensor]],
    profile: Profile,
    folder: Path,
    facts: dict,
) -> None:
    """Train until the budget is used. `losses_of(step)` leaves its gradients in `.grad`.

    The state is saved every 90 seconds, at the end, and on SIGTERM or Ctrl-C, which end the
    program (Stopped). A step depends on (seed, step) only, so a training that was stopped sees the
    same pictures as one that was not.
    """
    stage: Stage = getattr(profile, name)
    if stage.until:
        losses_of(state.step)  # compiles, where that takes a minute; its gradients are not used
        left = max(1.0, stage.until - time.monotonic())
        stage = replace(stage, minutes=(state.seconds + left) / 60)
    path, log = folder / f"{name}.pt", open(folder / "log.jsonl", "a")
    clock = reported = saved = time.monotonic()
    reported_step, sums = state.step, {}
    with stop_signals() as signals, log:
        while (progress := state.progress(stage)) < 1 and not signals:
            rate = learning_rate(stage, progress, state.step - state.first_step)
            for group in state.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            state.optimizer.zero_grad(set_to_none=True)
            losses = losses_of(state.step)
            nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
            state.optimizer.step()
            n = state.step - state.first_step
            update_average(state.average, state.model, min(stage.average, (1 + n) / (10 + n)))
            state.step += 1
            sums = {key: sums.get(key, 0) + value.detach() for key, value in losses.items()}

            now = time.monotonic()
            state.seconds += min(now - clock, 30)  # a longer step means that the machine slept
            clock = now
            if now - reported > REPORT_EVERY or state.progress(stage) >= 1 or signals:
                steps = state.step - reported_step
                means = {key: float(value) / steps for key, value in sums.items()}
                if not math.isfinite(means["loss"]):
                    raise SystemExit(f"{name}: the loss is {means['loss']} at step {state.step}")
                speed = steps * stage.batch / max(time.monotonic() - reported, 1e-9)
                print_progress(name, state, stage, means, speed)
                row = {"stage": name, "step": state.step, "seconds": round(state.seconds, 1)}
                row |= {"per_second": round(speed, 1), "lr": rate, **means}
                log.write(json.dumps(row) + "\n")
                log.flush()
                reported, reported_step, sums = now, state.step, {}
            if now - saved > SAVE_EVERY:
                state.save(path, facts)
                saved = now
        state.save(path, facts)
    if signals:
        raise Stopped(f"stopped and saved at step {state.step}: the same command continues here")


def print_progress(
    name: str, state: State, stage: Stage, means: dict[str, float], speed: float
) -> None:
    progress = min(1.0, state.progress(stage))
    left = state.seconds * (1 - progress) / max(progress, 1e-9)
    losses = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
    line = f"{name:12} step {state.step:7,}  {progress:4.0%}  {losses}  {speed:7,.0f} pictures/s"
    line += f"  {left // 60:.0f}:{left % 60:02.0f} left"
    end = "\r" if sys.stdout.isatty() and progress < 1 else "\n"
    print(line.ljust(100), end=end, flush=True)
