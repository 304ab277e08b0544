"""Why sums differ from machine to machine, and sums that do not.

A floating-point number has a fixed count of bits, 24 in float32 and 53 in float64, so nearly every
addition rounds. Therefore (a + b) + c and a + (b + c) differ in the last bits, and a sum depends on
the order of its terms. Libraries choose that order by the processor's vector length, the number of
threads and the size of the batch.

Whole numbers below 2^53 are different: float64 holds each of them, so no addition rounds, and every
order gives the same sum. So all sums here are sums of whole numbers. `to_whole` scales numbers by
a power of two, which loses nothing, and rounds them to whole numbers of so few bits that the sum
cannot reach 2^53. That rounding is the only one, and it looks at one number at a time.

In a product of matrices each term is a product of two whole numbers. With p bits each and n terms,
a sum is at most n * 2^(2p). n = 1280 leaves p = 21 bits. TF32, in which GPUs multiply by default,
has 11 bits. The idea is Ozaki's: Ozaki et al. 2012, "Error-free transformations of matrix
multiplication".
"""

import torch
from torch import Tensor

EXACT = 53  # bits of float64
SMALLEST = 2.0**-100  # unit of zeros: any power of two would do


def bits_for(terms: int) -> int:
    """How many bits each number may have so that a sum of `terms` of them stays exact."""
    return EXACT - (max(terms, 1) - 1).bit_length()


def to_whole(x: Tensor, bits: int, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(numbers, unit) with x = numbers * unit, nearly: whole numbers up to 2^bits, in float64.

    The unit is a power of two, one for all numbers along `dim`, and fits their largest.
    """
    largest = x.detach().abs().amax(dim, keepdim=True).double()
    # Without the fraction's 52 bits, what is left of a float64 is the power of two below it.
    power = (largest.view(torch.int64) & ~((1 << 52) - 1)).view(torch.float64)
    unit = power.clamp(min=SMALLEST) * 2.0 ** (1 - bits)
    if x.dtype == torch.float32 and bits <= 24:  # so few bits are whole numbers in float32, too
        return (x * unit.reciprocal().float()).round_().double(), unit
    return (x * unit.reciprocal()).round_(), unit


def exact_sum(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The sum along `dim`, in float64; these dimensions keep a length of 1."""
    dims = (dim,) if isinstance(dim, int) else dim
    terms = 1
    for i in dims:
        terms *= x.shape[i]
    numbers, unit = to_whole(x, bits_for(terms), dims)
    return numbers.sum(dims, keepdim=True) * unit


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (..., n, k) times b (..., k, m), in float64. Each row of a and column of b has its unit."""
    bits = bits_for(a.shape[-1])
    numbers_a, unit_a = to_whole(a, bits // 2, -1)
    numbers_b, unit_b = to_whole(b, bits - bits // 2, -2)
    return (numbers_a @ numbers_b).mul_(unit_a).mul_(unit_b)
