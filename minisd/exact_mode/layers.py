"""The layers of the three models, with exact sums. Results have the type of their input."""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.exact_mode.functions import exp, normal_share, sigmoid
from minisd.exact_mode.whole_numbers import bits_for, exact_matmul, exact_sum, to_whole

CHUNK = 1 << 23  # attention weights that are computed at a time: 64 MB
CACHE = 1 << 27  # numbers of weights that are kept in whole numbers: 1 GB


class Weights:
    """Weights in whole numbers, kept for the next call while the weights stay as they are."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, int, tuple[Tensor, Tensor]]] = {}
        self.numbers = 0

    def in_whole_numbers(self, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """The taps (t, c_out, c_in) of a weight (c_out, c_in, ...), and units (c_out, 1)."""
        version = 0 if weight.is_inference() else weight._version
        kept, kept_version, result = self.kept.get(id(weight), (None, 0, None))
        if kept is weight and kept_version == version and result is not None:
            return result
        taps = weight.reshape(*weight.shape[:2], -1).permute(2, 0, 1)  # (t, c_out, c_in)
        numbers, unit = to_whole(taps, bits, (0, 2))
        result = numbers.contiguous(), unit[0]
        if isinstance(weight, nn.Parameter) and self.numbers + weight.numel() <= CACHE:
            self.kept[id(weight)] = (weight, version, result)
            self.numbers += weight.numel()
        return result


class Layers:
    """One method for each function of torch.nn.functional that the models call."""

    def __init__(self) -> None:
        self.weights = Weights()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        bits = bits_for(x.shape[-1])
        numbers, unit = to_whole(x, bits // 2, -1)
        taps, unit_out = self.weights.in_whole_numbers(weight, bits - bits // 2)
        y, unit_out = (numbers @ taps[0].mT).mul_(unit), unit_out[:, 0]
        # Units are powers of two: the product is exact, so it may be fused with the sum.
        y = y.mul_(unit_out) if bias is None else torch.addcmul(bias.double(), y, unit_out)
        return y.to(x.dtype)

    def conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        """A product of matrices for each place of the kernel. They are added in a fixed order.

        Each pixel has a unit of its own, so that no image depends on the others in its batch.
        """
        (sy, sx), (py, px) = pair(stride), pair(padding)
        if pair(dilation) != (1, 1) or groups != 1:
            raise NotImplementedError("dilation or groups")
        (c_out, c_in, height, width), (b, _, h_in, w_in) = weight.shape, x.shape
        h, w = (h_in + 2 * py - height) // sy + 1, (w_in + 2 * px - width) // sx + 1
        bits = bits_for(c_in)
        taps, unit_out = self.weights.in_whole_numbers(weight, bits - bits // 2)
        numbers, unit = to_whole(x.transpose(0, 1), bits // 2, 0)
        flat = numbers.reshape(c_in, -1)
        total = torch.zeros(c_out, b, h, w, dtype=torch.float64, device=x.device)
        for tap, (i, j) in zip(taps, product(range(height), range(width))):
            rows, rows_out = overlap(i - py, h_in, h, sy)
            columns, columns_out = overlap(j - px, w_in, w, sx)
            source, target = (..., rows, columns), (..., rows_out, columns_out)
            if (sy, sx) == (1, 1):
                y = (tap @ flat).view(c_out, b, h_in, w_in)[source]
            else:
                window = numbers[source]
                y = (tap @ window.reshape(c_in, -1)).view(c_out, *window.shape[1:])
            total[target].addcmul_(y, unit[source])
        total = total.view(c_out, -1)
        if bias is None:
            y = total.mul_(unit_out)
        else:
            y = torch.addcmul(bias.double()[:, None], total, unit_out)
        y = y.to(x.dtype).view(-1, len(x), h, w)  # (c_out, B, h, w)
        return y.transpose(0, 1).contiguous()

    def scaled_dot_product_attention(
        self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False
    ) -> Tensor:
        """(..., N, d), (..., M, d), (..., M, d) -> (..., N, d), some rows of q at a time."""
        n, m = q.shape[-2], k.shape[-2]
        rows = max(1, CHUNK // (q[..., 0, 0].numel() * m))
        parts = []
        for i in range(0, n, rows):
            scores = exact_matmul(q[..., i : i + rows, :], k.mT) * q.shape[-1] ** -0.5
            if is_causal:
                later = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(1)
                scores.masked_fill_(later[i : i + rows], -torch.inf)
            parts.append(exact_matmul(softmax(scores, -1), v).to(q.dtype))
        return torch.cat(parts, -2)

    def group_norm(
        self,
        x: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        y = normalized(x.reshape(len(x), num_groups, -1), -1, eps).view_as(x)
        shape = (-1, *[1] * (x.ndim - 2))
        y = y if weight is None else y.mul_(weight.view(shape))
        return (y if bias is None else y.add_(bias.view(shape))).to(x.dtype)

    def layer_norm(
        self,
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        y = normalized(x, tuple(range(-len(normalized_shape), 0)), eps)
        y = y if weight is None else y.mul_(weight)
        return (y if bias is None else y.add_(bias)).to(x.dtype)

    def silu(self, x: Tensor, inplace: bool = False) -> Tensor:
        return (sigmoid(x).mul_(x)).to(x.dtype)

    def gelu(self, x: Tensor, approximate: str = "none") -> Tensor:
        if approximate != "none":
            raise NotImplementedError(approximate)
        return (normal_share(x).mul_(x)).to(x.dtype)

    def avg_pool2d(
        self,
        x: Tensor,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Tensor:
        """The mean of each window, added in a fixed order, row by row and then column by column."""
        (ky, kx), (py, px) = pair(kernel_size), pair(padding)
        sy, sx = pair(kernel_size if stride is None else stride)
        if ceil_mode:
            raise NotImplementedError("ceil_mode")

        def sums(y: Tensor) -> Tensor:
            y = F.pad(y.double(), (px, px, py, py))
            h, w = (y.shape[-2] - ky) // sy + 1, (y.shape[-1] - kx) // sx + 1
            y = sum(y[..., i : i + sy * h : sy, :] for i in range(ky))
            return sum(y[..., j : j + sx * w : sx] for j in range(kx))

        count = ky * kx if count_include_pad else sums(torch.ones_like(x[:1, :1]))
        return (sums(x) / torch.as_tensor(count, dtype=torch.float64, device=x.device)).to(x.dtype)


def overlap(shift: int, n_in: int, n_out: int, stride: int) -> tuple[slice, slice]:
    """(input, output) places of one tap: input place = stride * output place + shift."""
    first = max(0, -(shift // stride))
    last = min(n_out - 1, (n_in - 1 - shift) // stride)
    places = slice(first * stride + shift, last * stride + shift + 1, stride)
    return places, slice(first, last + 1)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def normalized(x: Tensor, dim: int | tuple[int, ...], eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) along dim, in float64."""
    dims = (dim,) if isinstance(dim, int) else dim
    count = 1 / torch.Size(x.shape[i] for i in dims).numel()
    centred = x.double() - exact_sum(x, dims) * count
    variance = exact_sum(centred * centred, dims) * count
    return centred.mul_(1 / (variance + eps).sqrt())


def softmax(x: Tensor, dim: int) -> Tensor:
    """In float64."""
    shares = exp(x - x.amax(dim, keepdim=True))
    return shares / exact_sum(shares, dim)
