"""exp, log, sin, cos and what is made of them, from + - * / and the square root alone.

IEEE 754 says to the last bit what these five give, but not what exp gives, so libraries differ.
Here each function is a range reduction and a polynomial, in float64 and in a fixed order. Every
operation is a tensor operation of its own: a compiler that fused a product and a sum would round
once where others round twice. Errors are below 1e-9 of the result (absolutely, for sin and cos).
"""

from collections.abc import Sequence
from math import factorial

import torch
from torch import Tensor

LOG2_E, SQRT_HALF = 1.4426950408889634, 0.7071067811865476
# ln 2 and pi / 2 as sums of two numbers. The first has zeros in its last 20 bits or more, so that
# its product with a small whole number is exact.
LN2 = (0.6931471803691238, 1.9082149292705877e-10)
HALF_PI = (1.5707963267341256, 6.077100506506192e-11)
EXP = tuple(1 / factorial(k) for k in range(11))
SIN = tuple((-1) ** k / factorial(2 * k + 1) for k in range(7))  # in x^2, after a factor x
COS = tuple((-1) ** k / factorial(2 * k) for k in range(8))  # in x^2
LOG = tuple(2 / (2 * k + 1) for k in range(10))  # in s^2, after a factor s
# exp(z^2 / 2) * Q(z) in u = (z - 3.5) / (z + 3.5), where Q is the normal distribution's upper tail.
# Fitted at Chebyshev's nodes for z in 0..14: off by at most 1.3e-10 of the value.
TAIL = (
    0.10634515363480355, -0.1871396986572492, 0.12585525491071434, -0.06163942004021299,
    0.01906554217152394, -0.0015615771937478736, -0.0013807818508341572, 0.0003915205963833912,
    0.00013159233343050853, -5.7086085658579346e-05, -1.9678652645795792e-05, 6.205666605191537e-06,
    2.8616497671646493e-06,
)  # fmt: skip


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
    total = x * coefficients[-1]
    for c in reversed(coefficients[1:-1]):
        total.add_(c).mul_(x)
    return total.add_(coefficients[0])


def exp(x: Tensor) -> Tensor:
    """e^x = 2^n e^r with |r| <= ln 2 / 2. 0 below -700; at most e^700."""
    x = x.double()
    limited = x.clamp(-700, 700)
    n = (limited * LOG2_E).round_()
    r = limited.sub_(n, alpha=LN2[0]).sub_(n * LN2[1])  # the first product is exact, fused or not
    bits = n.long().add_(1023).bitwise_left_shift_(52)
    power = bits.view(torch.float64)  # 2^n
    return polynomial(r, EXP).mul_(power).mul_(x > -700)


def log(x: Tensor) -> Tensor:
    """ln x for x above 0: x = 2^n m with m near 1, and ln m = 2 artanh((m - 1) / (m + 1))."""
    m, n = torch.frexp(x.double())  # m in 0.5..1
    is_low = m < SQRT_HALF
    m, n = torch.where(is_low, 2 * m, m), torch.where(is_low, n - 1, n).double()
    s = (m - 1) / (m + 1)
    return n * LN2[1] + polynomial(s * s, LOG) * s + n * LN2[0]


def sin_and_cos(x: Tensor) -> tuple[Tensor, Tensor]:
    """Both, for |x| up to 10^5: x = n pi / 2 + r, and a quarter turn swaps them."""
    x = x.double()
    n = (x * 0.6366197723675814).round_()  # 2 / pi
    r = x - n * HALF_PI[0] - n * HALF_PI[1]
    square = r * r
    sine, cosine, quarter = polynomial(square, SIN) * r, polynomial(square, COS), n.long() % 4
    is_odd, is_back, is_left = quarter % 2 == 1, quarter >= 2, (quarter == 1) | (quarter == 2)
    sin_x, cos_x = torch.where(is_odd, cosine, sine), torch.where(is_odd, sine, cosine)
    return torch.where(is_back, -sin_x, sin_x), torch.where(is_left, -cos_x, cos_x)


def sigmoid(x: Tensor) -> Tensor:
    return exp(-x).add_(1).reciprocal_()


def normal_share(x: Tensor) -> Tensor:
    """The normal distribution's share below x, (1 + erf(x / sqrt 2)) / 2."""
    x = x.double()
    z = x.abs().clamp(max=14)
    tail = exp(z * z * -0.5) * polynomial((z - 3.5) / (z + 3.5), TAIL)
    return torch.where(x > 0, 1 - tail, tail)


def normal_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """torch.randn's numbers on a CPU, to 2e-6, in float32. Raises ValueError below 16 of them.

    Box and Muller 1958: the radius is sqrt(-2 ln u), the angle is 2 pi v. torch draws 16 uniform
    numbers at a time, the first 8 for radii and the next 8 for angles. If there is a rest, the last
    16 numbers are drawn again. (ATen/native/cpu/DistributionTemplates.h, normal_fill)
    """
    count = torch.Size(shape).numel()
    if count < 16:
        raise ValueError(f"exact noise has 16 numbers or more, not {count}")
    uniform = torch.rand(count, generator=generator)
    blocks = uniform[: count - count % 16]
    if count % 16:
        blocks = torch.cat([blocks, torch.rand(16, generator=generator)])
    u, v = blocks.view(-1, 2, 8).double().unbind(1)
    sine, cosine = sin_and_cos(v * 6.283185307179586)
    radius = log(1 - u).mul_(-2).sqrt_()
    normal = torch.stack([radius * cosine, radius * sine], 1).view(-1).float()
    if count % 16:
        normal = torch.cat([normal[: count - 16], normal[-16:]])
    return normal.view(*shape)
