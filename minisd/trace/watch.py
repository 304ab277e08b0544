"""Looking on: at the network's calls, and with several observers at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def watching(
    unet: "nn.Module", see: "Callable[[Tensor, Tensor, Tensor, Tensor], None]"
) -> Iterator[None]:
    """Call `see(x_in, t, context, eps)` after each call of the network; a forward hook, meanwhile.

    With guidance a call holds both halves of a batch: without the prompt, then with it.
    """
    hook = unet.register_forward_hook(lambda _, given, eps: see(*given, eps))
    try:
        yield
    finally:
        hook.remove()


def together(*observers: Callable[..., None]) -> Callable[..., None]:
    """One observer that shows all of these what it is shown, in order."""

    def observe(name: str, **values: Any) -> None:
        for observer in observers:
            observer(name, **values)

    return observe
