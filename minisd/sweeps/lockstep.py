"""Several runs at once, whose calls of the network are answered in batches.

Each run is the plain img2img or txt2img, in a thread of its own; what it is given for a UNet waits
until every run has asked, and then one batch answers all. The runs may differ in everything: seed,
strength, step count, sampler. A small network answers a batch much faster than one by one.

A batch's sums may be rounded otherwise than a single call's: the pictures are the same to the eye,
not to the last bit.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t, context) -> eps


class Stopped(Exception):
    """Another run failed, or the program is being ended."""


def lockstep(unet: nn.Module, jobs: Sequence[Callable[[Network], Any]]) -> list[Any]:
    """Run all of `jobs`, each called with a network to use as the UNet. Returns their results; if
    one fails, the others are stopped and its exception is raised."""
    change = threading.Condition()
    questions: dict[int, tuple[Tensor, ...]] = {}
    answers: dict[int, Tensor] = {}
    running = set(range(len(jobs)))
    errors: list[BaseException] = []

    def answer() -> None:
        """The last to ask, or to leave, answers all; it holds the lock."""
        order = list(questions)
        batch = [torch.cat(parts) for parts in zip(*questions.values())]
        sizes = [len(x) for x, _, _ in questions.values()]
        questions.clear()
        with torch.inference_mode():
            answers.update(zip(order, unet(*batch).split(sizes)))
        change.notify_all()

    def one(i: int) -> Any:
        def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            with change:
                questions[i] = (x, t, context)
                if len(questions) == len(running):
                    answer()
                change.wait_for(lambda: i in answers or errors)
                if errors:
                    raise Stopped
                return answers.pop(i)

        network.factor = unet.factor  # which sd.multiple asks a UNet for
        try:
            return jobs[i](network)
        except BaseException as error:
            with change:
                if not isinstance(error, Stopped):
                    errors.append(error)
            raise
        finally:
            with change:
                running.discard(i)
                if questions and len(questions) == len(running) and not errors:
                    answer()
                change.notify_all()

    with ThreadPoolExecutor(max(1, len(jobs))) as pool:
        futures = [pool.submit(one, i) for i in range(len(jobs))]
        try:
            results = [future.exception() or future.result() for future in futures]
        except KeyboardInterrupt as error:
            with change:
                errors.append(error)
                change.notify_all()
            raise
    if errors:
        raise errors[0]
    return results
