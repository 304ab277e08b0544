"""Calls of torch that are not exact by themselves, and no layers: computed otherwise.

Arguments are those of torch. NotImplementedError says that a form of a call is not covered.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minisd.exact_mode import functions
from minisd.exact_mode.layers import softmax
from minisd.exact_mode.whole_numbers import exact_matmul, exact_sum


def float32(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function, with its result rounded to the input's type."""
    return lambda x: function(x).to(x.dtype if x.is_floating_point() else torch.float32)


def divide(x: Tensor | float, y: Tensor | float) -> Tensor:
    """x / y. For a number y, a GPU would multiply by the rounded 1 / y."""
    if not isinstance(y, Tensor):
        y = torch.tensor(y, dtype=x.dtype if x.is_floating_point() else None, device=x.device)
    return x / y if isinstance(x, Tensor) else torch.tensor(x, dtype=y.dtype, device=y.device) / y


def power(x: Tensor, exponent: float) -> Tensor:
    """x to a whole power, by repeated products; or to +-1/2."""
    if isinstance(exponent, Tensor) or not isinstance(x, Tensor):
        raise NotImplementedError("a tensor as exponent")
    if abs(exponent) == 0.5:
        y = x.sqrt()
    elif exponent == int(exponent) and 0 < abs(exponent) <= 8:
        y = x
        for _ in range(abs(int(exponent)) - 1):
            y = y * x
    else:
        raise NotImplementedError(f"the exponent {exponent}")
    return y if exponent > 0 else 1 / y


def add(x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Tensor:
    """x + alpha y, rounded twice: some compilers round it once."""
    return x + (y if alpha == 1 else alpha * y)


def lerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    return start + weight * (end - start)


def total(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    """The sum along some dimensions; over all without `dim`."""
    if not x.is_floating_point():
        y = x.sum() if dim is None else x.sum(dim, keepdim)
        return y if dtype is None else y.to(dtype)
    dims = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    y = exact_sum(x, dims) if x.ndim else x
    return without(y, dims, keepdim).to(dtype or x.dtype)


def without(x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    return x if keepdim or not x.ndim else x.squeeze(dims)


def mean(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    y = total(x.double(), dim, keepdim)
    return divide(y, x.numel() / max(1, y.numel())).to(dtype or x.dtype)


def variance(
    x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> Tensor:  # fmt: skip
    """About the mean; divided by the count, less 1 unless `correction` or `unbiased` says else."""
    if isinstance(dim, bool):  # x.var(False)
        dim, unbiased = None, dim
    centred = x.double() - mean(x.double(), dim, keepdim=dim is not None)
    y = total(centred * centred, dim, keepdim)
    less = float(unbiased) if correction is None else correction
    return divide(y, x.numel() / max(1, y.numel()) - less).to(x.dtype)


def norm(x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None):
    if p not in (2, "fro", None) or dtype is not None:
        raise NotImplementedError(f"the norm {p}")
    return total(x.double() * x.double(), dim, keepdim).sqrt().to(x.dtype)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    if not a.is_floating_point():
        return a @ b
    if a.ndim < 2 or b.ndim < 2:
        raise NotImplementedError("a vector")
    return exact_matmul(a, b).to(a.dtype)


def randn(*shape: Any, generator: torch.Generator | None = None, **options: Any) -> Tensor:
    if generator is None:
        raise NotImplementedError("no generator")
    if options.pop("dtype", None) not in (None, torch.float32) or any(options.values()):
        raise NotImplementedError("another type or device than float32 on the CPU")
    sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    return functions.normal_noise(sizes, generator)


def products_so_far(x: Tensor, dim: int) -> Tensor:
    """cumprod, one product after the other in float64."""
    rows = [x.select(dim, 0).double()]
    for i in range(1, x.shape[dim]):
        rows.append(rows[-1] * x.select(dim, i))
    return torch.stack(rows, dim).to(x.dtype)


def linspace(start: float, end: float, steps: int, **options: Any) -> Tensor:
    """Evenly from start to end, counted from the nearer one, as torch does."""
    if isinstance(start, Tensor) or isinstance(end, Tensor):
        raise NotImplementedError("a tensor as an end")
    ends = torch.tensor([start, end], **({"dtype": torch.get_default_dtype()} | options))
    i = torch.arange(steps, device=ends.device)
    step = (ends[1] - ends[0]) / max(1, steps - 1)
    return torch.where(i < (steps + 1) // 2, ends[0] + i * step, ends[1] - (steps - 1 - i) * step)


def quantile(x: Tensor, q: float, dim: int | None = None, keepdim: bool = False) -> Tensor:
    if not isinstance(q, float):
        raise NotImplementedError("several quantiles")
    x, dim = (x.flatten(), 0) if dim is None else (x, dim)
    values, place = x.sort(dim).values, q * (x.shape[dim] - 1)
    low = values.narrow(dim, int(place), 1)
    high = values.narrow(dim, min(int(place) + 1, x.shape[dim] - 1), 1)
    y = lerp(low, high, place - int(place))
    return y if keepdim else y.squeeze(dim)


def interpolate(
    x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **options: Any
) -> Tensor:
    """Nearest, or bilinear to a size: first between rows, then between columns."""
    if mode not in ("nearest", "bilinear") or any(options.values()):
        raise NotImplementedError(f"the mode {mode}")
    if mode == "nearest":
        return torch.nn.functional.interpolate(x, size, scale_factor)
    if scale_factor is not None:
        raise NotImplementedError("a scale factor for bilinear interpolation")
    for dim, new in zip((-2, -1), (size, size) if isinstance(size, int) else size):
        old = x.shape[dim]
        place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp(min=0)
        low = place.long()
        high, share = (low + 1).clamp(max=old - 1), (place - low).to(x).view(-1, *[1] * (-1 - dim))
        low, high = (x.index_select(dim, i.to(x.device)) for i in (low, high))
        x = lerp(low, high, share)
    return x


def soften(x: Tensor, dim: int, dtype: Any = None, _stacklevel: int = 3) -> Tensor:
    return softmax(x, dim).to(dtype or x.dtype)


OTHERS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("div", "true_divide", "divide", "__truediv__"), divide),
    **dict.fromkeys(("__rtruediv__", "__rdiv__"), lambda x, y: divide(y, x)),
    **dict.fromkeys(("pow", "__pow__"), power),
    **dict.fromkeys(("add", "__add__"), add),
    **dict.fromkeys(("sub", "__sub__"), lambda x, y, *, alpha=1: add(x, -y, alpha=alpha)),
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), matmul),
    **dict.fromkeys(("norm", "vector_norm"), norm),
    "lerp": lerp,
    "rsqrt": lambda x: 1 / x.sqrt(),
    "sum": total,
    "mean": mean,
    "var": variance,
    "std": lambda *args, **options: variance(*args, **options).sqrt(),
    "quantile": quantile,
    "linspace": linspace,
    "cumprod": products_so_far,
    "softmax": soften,
    "interpolate": interpolate,
    "randn": randn,
    "exp": float32(functions.exp),
    "log": float32(functions.log),
    "sin": float32(lambda x: functions.sin_and_cos(x)[0]),
    "cos": float32(lambda x: functions.sin_and_cos(x)[1]),
    "sigmoid": float32(functions.sigmoid),
}
