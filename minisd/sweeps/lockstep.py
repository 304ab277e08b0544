"""Several runs at the same time, whose calls of the network are evaluated in batches.

Each run is the plain img2img or txt2img, in a thread of its own. Its call of the network blocks
until all runs have called; then all calls are evaluated as one batch. The runs may differ in
everything: seed, strength, step count, sampler. A small network evaluates a batch much faster than
single images.

In a batch, sums may be rounded differently than in a single call. The pictures look the same, but
they are not equal to the last bit, except in exact mode.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from minisd.exact_mode import same_arithmetic


class Stopped(Exception):
    """Another run failed, or the program is being ended."""


class Meeting:
    """Where the runs' calls of the network wait for each other."""

    def __init__(self, unet: nn.Module, runs: int):
        self.unet = unet
        self.change = threading.Condition()
        self.running = set(range(runs))
        self.inputs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # x, t, context of each run
        self.outputs: dict[int, Tensor] = {}
        self.errors: list[BaseException] = []

    def call(self, run: int, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        with self.change:
            self.inputs[run] = inputs
            self.evaluate_if_complete()
            self.change.wait_for(lambda: run in self.outputs or self.errors)
            if self.errors:
                raise Stopped
            return self.outputs.pop(run)

    def evaluate_if_complete(self) -> None:
        """Evaluate all calls, if every run that is still going has made one. Needs the lock."""
        if not self.inputs or len(self.inputs) < len(self.running) or self.errors:
            return
        runs = list(self.inputs)
        x, t, context = (torch.cat(parts) for parts in zip(*self.inputs.values(), strict=True))
        sizes = [len(inputs[0]) for inputs in self.inputs.values()]
        self.inputs.clear()
        with torch.inference_mode():
            parts = self.unet(x, t, context).split(sizes)
        self.outputs.update(zip(runs, parts, strict=True))
        self.change.notify_all()

    def leave(self, run: int) -> None:
        with self.change:
            self.running.discard(run)
            self.evaluate_if_complete()
            self.change.notify_all()

    def stop(self, error: BaseException) -> None:
        with self.change:
            self.errors.append(error)
            self.change.notify_all()


class Seat(nn.Module):
    """One run's network: it answers when the others have called too."""

    def __init__(self, meeting: Meeting, run: int):
        super().__init__()
        self.meeting, self.run = meeting, run
        for name in ("schedule", "sigma_to_t", "t_to_sigma"):  # of its own training schedule
            if hasattr(meeting.unet, name):
                vars(self)[name] = getattr(meeting.unet, name)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.meeting.call(self.run, (x, t, context))


def lockstep(unet: nn.Module, runs: Sequence[Callable[[nn.Module], Any]]) -> list[Any]:
    """The results of all `runs`; each is called with a network that it uses as the UNet.

    If one fails, the others are stopped and its exception is raised.
    """
    meeting = Meeting(unet, len(runs))

    def attend(i: int) -> Any:
        try:
            return runs[i](Seat(meeting, i))
        except Stopped:
            raise
        except BaseException as error:
            meeting.stop(error)
            raise
        finally:
            meeting.leave(i)

    with ThreadPoolExecutor(max(1, len(runs))) as pool:
        futures = [pool.submit(same_arithmetic(attend), i) for i in range(len(runs))]
        try:
            results = [future.exception() or future.result() for future in futures]
        except KeyboardInterrupt as error:
            meeting.stop(error)
            raise
    if meeting.errors:
        raise meeting.errors[0]
    return results
