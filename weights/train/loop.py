"""The training loop that both stages share: a time budget, a running average of the weights, one
progress line, and a state that can be stopped and taken up at any time."""

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
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from weights.train.profiles import Profile, Stage

SAVE_EVERY = 120  # seconds
SAY_EVERY = 10
SLOWER = 0.2


@dataclass
class State:
    """Everything that a stage needs to go on: saved whole, loaded whole."""

    model: nn.Module
    slower: str = ""  # start of the names of parameters that learn at SLOWER of the rate
    average: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    step: int = 0
    seconds: float = 0.0
    first_step: int = 0  # of this optimizer, for its warm-up

    def __post_init__(self) -> None:
        self.average = deepcopy(self.model).requires_grad_(False).eval()
        # Weight decay for matrices only. Not for the token vectors: it would shrink those of words
        # that a batch does not have.
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            decay = 0.01 if parameter.ndim > 1 and "embedding" not in name else 0.0
            share = SLOWER if self.slower and name.startswith(self.slower) else 1.0
            groups.setdefault((decay, share), []).append(parameter)
        groups = [{"params": p, "weight_decay": d, "share": s} for (d, s), p in groups.items()]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)

    def progress(self, stage: Stage) -> float:
        """Share of the budget that is spent: of the steps if they are counted, else of the time."""
        if stage.steps:
            return self.step / stage.steps
        return self.seconds / (60 * stage.minutes) if stage.minutes else 1.0

    def save(self, path: Path, facts: dict) -> None:
        tensors = {k: getattr(self, k).state_dict() for k in ("model", "average", "optimizer")}
        numbers = {k: getattr(self, k) for k in ("step", "seconds", "first_step")}
        save({**tensors, **numbers, "facts": facts}, path)

    def load(self, path: Path, facts: dict) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if json.dumps(saved["facts"]) != json.dumps(facts):
            raise SystemExit(f"{path} is of another profile or seed: choose another --run folder")
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        for name in ("step", "seconds", "first_step"):
            setattr(self, name, saved[name])


def save(what: dict, path: Path) -> None:
    """All or nothing: a run that is killed while it writes leaves the file of before."""
    torch.save(what, f"{path}.part")
    os.replace(f"{path}.part", path)


class Stopped(SystemExit):
    """SIGTERM or Ctrl-C, after the state was saved."""


@contextmanager
def stop_asked() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGTERM or SIGINT came; a second one acts as usual."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        for n, handler in before.items():
            signal.signal(n, handler)

    before = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def learning_rate(stage: Stage, progress: float, steps_taken: int) -> float:
    """Linear warm-up over steps, then a cosine over the budget down to a hundredth."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    return stage.lr * cosine * min(1, (steps_taken + 1) / stage.warmup)


class Passes:
    """Forward and backward passes of a batch in bfloat16; gradients, in float32, in `.grad`.

    On a CPU the passes are those of a copy of the model that is bfloat16 throughout, which is
    faster than casting at each operation, and a batch is worked on in parts, one on each core: in
    a small model one operation is too little for two cores to share.
    """

    def __init__(self, model: nn.Module, low: torch.dtype = torch.bfloat16):
        self.model, self.device = model, next(model.parameters()).device
        self.copy = deepcopy(model).to(low) if self.device.type == "cpu" else None
        # For the CPU too, whatever its name says: attention's products without a float32 copy.
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)

    def __call__(self, loss_of: Callable[..., dict[str, Tensor]], batch: list[Tensor]) -> dict:
        """loss_of(model, *part of the batch) -> means, of which "loss" is the one to minimize.
        Returns the whole batch's means."""
        if self.copy is None:
            with torch.autocast(self.device.type, torch.bfloat16):
                losses = loss_of(self.model, *batch)
            losses["loss"].backward()
            return losses

        parameters = [*self.copy.parameters()]
        with torch.no_grad():
            torch._foreach_copy_(parameters, [*self.model.parameters()])
        threads = torch.get_num_threads()
        parts = [*zip(*(tensor.chunk(threads) for tensor in batch))]

        def work(part: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            torch.set_num_threads(1)  # of this thread
            losses = loss_of(self.copy, *part)
            share = len(part[0]) / len(batch[0])
            # grad, not backward: two threads must not add to the same .grad
            grads = torch.autograd.grad(losses["loss"] * share, parameters)
            return {key: value.detach() * share for key, value in losses.items()}, grads

        # Plain softmax attention: at heads this narrow it trains faster than the fused one.
        with ThreadPoolExecutor(len(parts)) as pool, sdpa_kernel(SDPBackend.MATH):
            done = [*pool.map(work, parts)]
        torch.set_num_threads(threads)
        for parameter, *grads in zip(self.model.parameters(), *(grads for _, grads in done)):
            parameter.grad = sum(grad.float() for grad in grads)
        return {key: sum(losses[key] for losses, _ in done) for key in done[0][0]}


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_([*average.parameters()], [*model.parameters()], 1 - decay)


def train(
    name: str,
    state: State,
    losses_of: Callable[[int], dict[str, Tensor]],
    profile: Profile,
    folder: Path,
    facts: dict,
) -> None:
    """Follow the gradients that `losses_of(step)` leaves in `.grad` until the budget is spent.

    The state is saved every two minutes, at the end, and on SIGTERM or Ctrl-C, which then end the
    program (Stopped). What happens at a step depends on (seed, step) only, so a run that was
    stopped sees the pictures that it would have seen.
    """
    stage: Stage = getattr(profile, name)
    path, log = folder / f"{name}.pt", open(folder / "log.jsonl", "a")
    clock = said = saved = time.monotonic()
    since, sums = state.step, {}
    with stop_asked() as stopped, log:
        while (progress := state.progress(stage)) < 1 and not stopped:
            rate = learning_rate(stage, progress, state.step - state.first_step)
            for group in state.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            state.optimizer.zero_grad(set_to_none=True)
            losses = losses_of(state.step)
            nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
            state.optimizer.step()
            done = state.step - state.first_step
            follow(state.average, state.model, min(stage.average, (1 + done) / (10 + done)))
            state.step += 1
            sums = {key: sums.get(key, 0) + value.detach() for key, value in losses.items()}

            now = time.monotonic()
            state.seconds += min(now - clock, 30)  # longer: the machine slept
            clock = now
            if now - said > SAY_EVERY or state.progress(stage) >= 1 or stopped:
                steps = state.step - since
                means = {key: float(value) / steps for key, value in sums.items()}
                if not math.isfinite(means["loss"]):
                    raise SystemExit(f"{name}: the loss is {means['loss']} at step {state.step}")
                speed = steps * stage.batch / max(time.monotonic() - said, 1e-9)
                say(name, state, stage, means, speed)
                row = {"stage": name, "step": state.step, "seconds": round(state.seconds, 1)}
                row |= {"per_second": round(speed, 1), "lr": rate, **means}
                log.write(json.dumps(row) + "\n")
                log.flush()
                said, since, sums = now, state.step, {}
            if now - saved > SAVE_EVERY:
                state.save(path, facts)
                saved = now
        state.save(path, facts)
    if stopped:
        raise Stopped(f"stopped and saved at step {state.step}: the same command goes on from here")


def say(name: str, state: State, stage: Stage, means: dict[str, float], speed: float) -> None:
    progress = min(1.0, state.progress(stage))
    left = state.seconds * (1 - progress) / max(progress, 1e-9)
    losses = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
    line = f"{name:12} step {state.step:7,}  {progress:4.0%}  {losses}  {speed:7,.0f} pictures/s"
    line += f"  {left // 60:.0f}:{left % 60:02.0f} left"
    end = "\r" if sys.stdout.isatty() and progress < 1 else "\n"
    print(line.ljust(100), end=end, flush=True)
