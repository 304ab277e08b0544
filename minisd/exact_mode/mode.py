"""The switch: inside `with exact():` each call of torch is answered by an exact function.

torch asks a TorchFunctionMode before it runs anything, so no line of the models knows of this.
There are three kinds of calls:

* Those that are exact by themselves (EXACT): they copy, compare or choose numbers, or they are one
  of + - * / and the square root, which IEEE 754 defines to the last bit.
* Those with sums or other functions in them (calls.py and layers.py): they are computed otherwise.
* All others raise InexactError, unless they work on whole numbers only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from minisd.exact_mode.calls import OTHERS
from minisd.exact_mode.layers import Layers

# One rounding each, as IEEE 754 says.
ROUNDED = """add add_ sub sub_ rsub mul mul_ neg abs abs_ absolute square sqrt sqrt_ reciprocal
    round round_ floor ceil trunc frac sign __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__
    __iadd__ __isub__ __imul__ __neg__ __abs__"""
# Not sort or argmax: the order of equal numbers is not the same everywhere.
CHOSEN = """eq ne lt le gt ge equal allclose isfinite isnan isinf any all clamp clamp_ clip
    clamp_min clamp_max maximum minimum max min amax amin aminmax where masked_fill masked_fill_
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__"""
COPIED = """size dim ndim numel nelement stride view view_as reshape flatten unflatten squeeze
    unsqueeze permute transpose t swapaxes movedim contiguous expand expand_as repeat
    repeat_interleave cat concat stack chunk split tensor_split unbind flip roll narrow select
    index_select gather take pad tril triu diagonal embedding clone detach detach_ copy_ fill_
    zero_ to type type_as float double long int bool cpu cuda numpy item tolist new_empty new_zeros
    new_ones new_full new_tensor zeros_like ones_like full_like empty_like is_floating_point
    is_contiguous is_complex as_strided is_inference element_size data_ptr untyped_storage
    requires_grad_ get_device broadcast_tensors broadcast_to result_type
    _has_compatible_shallow_copy_type tensor as_tensor zeros ones full empty rand manual_seed
    from_numpy __get__ __set__ __getitem__ __setitem__ __len__ __bool__ __float__ __int__ __index__
    __iter__ __contains__ __repr__ __format__ __hash__ __deepcopy__ __reduce_ex__ __array__"""
EXACT = frozenset(f"{ROUNDED} {CHOSEN} {COPIED}".split())


class InexactError(ValueError):
    """An operation that exact mode has no exact form of."""


# ---- the switch ----------------------------------------------------------------------------------

LAYERS = (
    "linear", "conv2d", "scaled_dot_product_attention", "group_norm", "layer_norm", "silu", "gelu",
    "avg_pool2d",
)  # fmt: skip
HALVES = (torch.float16, torch.bfloat16)


class ExactMode(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        layers = Layers()
        self.others = OTHERS | {name: getattr(layers, name) for name in LAYERS}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        # Inside this method the mode is off: what it calls is torch's own.
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if other := self.others.get(name):
            if any(isinstance(x, Tensor) and x.dtype in HALVES for x in args[:2]):
                raise InexactError(f"exact mode is for float32: {name} has 16-bit numbers")
            try:
                return other(*args, **kwargs)
            except (NotImplementedError, TypeError) as error:
                raise InexactError(
                    f"exact mode has no {name} with these arguments: {error}"
                ) from None
        if name in EXACT and not kwargs.keys() & {"alpha", "out", "decimals"}:
            return func(*args, **kwargs)
        if not any(map(is_float, tree_leaves((args, kwargs)))):
            result = func(*args, **kwargs)
            if not any(map(is_float, tree_leaves(result))):
                return result
        raise InexactError(f"exact mode has no exact form of {name}: nothing was drawn")


def is_float(x: object) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


CURRENT: ContextVar[ExactMode | None] = ContextVar("exact mode", default=None)


@contextmanager
def exact() -> Iterator[None]:
    """Within the block, every result has the same bits on every machine.

    That holds for any instruction set, number of threads, batch size, device and version of torch
    from 2.10 on, with weights in float32. Raises InexactError for an operation that has no exact
    form. Threads that are started in the block need `same_arithmetic`.
    """
    if (
        is_exact()
    ):  # a second mode would compute what the first one calls exactly too, and round twice
        yield
        return
    with entered(ExactMode()):
        yield


@contextmanager
def entered(mode: ExactMode) -> Iterator[None]:
    token = CURRENT.set(mode)
    try:
        with mode:
            yield
    finally:
        CURRENT.reset(token)


def is_exact() -> bool:
    """Whether the caller is within `with exact():`."""
    return CURRENT.get() is not None


def same_arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the caller's arithmetic, for a thread: torch's modes are each thread's."""
    mode = CURRENT.get()

    def run(*args: Any) -> Any:
        with nullcontext() if mode is None or is_exact() else entered(mode):
            return function(*args)

    return run
