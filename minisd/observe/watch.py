"""The base of observers that also see the network's calls; several observers as one."""

from typing import TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minisd.run import Event, Observer
from minisd.stable_diffusion import StableDiffusion

W = TypeVar("W", bound="Watcher")


class Watcher:
    """An observer that also sees the network's calls, inside its `with` block.

    A subclass has `__call__(event)`, for the run's events, and `see_call`. It records one run:
    where a second one follows in the same block, it starts afresh. Without an `sd`, or outside the
    block, it sees the events only.
    """

    def __init__(self, sd: StableDiffusion | None):
        self.sd = sd
        self.hooks: list[RemovableHandle] = []

    def __enter__(self: W) -> W:
        if self.sd is not None:
            self.hooks = self.hooks_on(self.sd.unet)
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def hooks_on(self, unet: nn.Module) -> list[RemovableHandle]:
        return [unet.register_forward_hook(lambda _, args, eps: self.see_call(*args, eps))]

    def see_call(self, x_in: Tensor, t: Tensor, context: Tensor, eps: Tensor) -> None:
        """A call of the network, just made. With guidance, the first half of the batch is without
        the prompt. Must return None: a hook's result would replace eps."""
        raise NotImplementedError


def together(*observers: Observer) -> Observer:
    """One observer that passes each event to all of these, in order."""

    def observe(event: Event) -> None:
        for observer in observers:
            observer(event)

    return observe
