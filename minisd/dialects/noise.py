"""Where other programs take their normal random numbers from: a CPU, a GPU, or an emulation.

A Stream is one generator of a program. `next(shape)` is its next draw. Streams of a GPU need no
GPU: CUDA's generator is Philox4x32-10 (Salmon et al. 2011), and torch's way of filling a tensor
with it is arithmetic. A GPU computes the logarithm and the sine in float32, so its numbers differ
from these by about 1e-6.
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from minisd.run import seeded

SOURCES = ("CPU", "GPU", "NV")
# Threads that a GPU runs at the same time for torch.randn: processors x blocks of 256. A draw of
# more numbers than that is laid out differently.
CARDS = {
    "GTX 1650": 14_336,
    "GTX 1060": 20_480,
    "GTX 1080": 40_960,
    "T4": 40_960,
    "RTX 3060": 43_008,
    "GTX 1080 Ti": 57_344,
    "RTX 2080 Ti": 69_632,
    "L4": 89_088,
    "RTX 3080": 104_448,
    "RTX 3090": 125_952,
    "RTX A6000": 129_024,
    "V100": 163_840,
    "RTX 4090": 196_608,
    "A100": 221_184,
    "H100 PCIe": 233_472,
    "H100 SXM": 270_336,  # tests/golden/cuda_noise.safetensors
    "H200": 270_336,
}
CARD = "RTX 3090"  # the default
BLOCK = 256  # threads
TO_UNIT = float(np.float32(2.3283064e-10))  # 2^-32
TO_CIRCLE = float(np.float32(np.float32(2.3283064e-10) * np.float32(6.2831855)))  # 2 pi / 2^32


class Stream:
    """A generator of normal numbers, seeded once.

    source   CPU: torch's generator. GPU: CUDA's, on that card. NV: AUTOMATIC1111's emulation of it,
             which draws tensors of any size as a card with enough threads would
    card     a name from CARDS, or a number of threads
    """

    def __init__(self, source: str, seed: int, card: str | int = CARD):
        self.seed, self.calls = seed, 0
        self.generator = seeded(seed % 2**32)[0][0] if source == "CPU" else None
        self.threads = None if source == "NV" else threads_of(card)

    def next(self, shape: Sequence[int]) -> Tensor:
        """The next draw: float32, of this shape."""
        if self.generator is not None:
            self.calls += 1
            return torch.randn(tuple(shape), generator=self.generator)
        size = prod(shape)
        threads = self.threads or -(-size // BLOCK) * BLOCK
        # In each pass a thread makes four numbers.
        threads = min(-(-size // BLOCK) * BLOCK, threads)
        values = cuda_normals(self.seed, self.calls, np.arange(size), threads)
        self.calls += -(-size // (4 * threads))
        return torch.from_numpy(values.reshape(tuple(shape)))


def first_draw(source: str, card: str | int = CARD) -> Callable[[int, Sequence[int]], Tensor]:
    """A function (seed, shape) -> the first draw of a generator with that seed."""
    return lambda seed, shape: Stream(source, seed, card).next(shape)


def threads_of(card: str | int) -> int:
    """Raises ValueError for a card that is not in the table."""
    if isinstance(card, int) and not isinstance(card, bool) and card >= BLOCK:
        return card // BLOCK * BLOCK
    if card not in CARDS:
        raise ValueError(f"there is no card {card!r}; choose from {', '.join(CARDS)}, or a number")
    return CARDS[str(card)]


# ---- CUDA's generator ----------------------------------------------------------------------------


def cuda_normals(seed: int, call: int, elements: np.ndarray, threads: int) -> np.ndarray:
    """(n,) float32: these elements of torch.randn(..., device="cuda") after `call` counted calls.

    Element e is component j of thread i in pass p, where e = 4 T p + T j + i for the T threads that
    the draw uses.
    PyTorch: aten/src/ATen/native/cuda/DistributionTemplates.h.
    """
    passes, rest = np.divmod(elements.astype(np.uint64), np.uint64(4 * threads))
    component, thread = np.divmod(rest, np.uint64(threads))
    r = philox(seed, passes + np.uint64(call), thread)  # (4, size)
    is_late, is_cosine = component // 2 == 1, component % 2 == 1
    first, second = np.where(is_late, r[2], r[0]), np.where(is_late, r[3], r[1])
    # Box and Muller's transform, in float64 with CUDA's two float32 constants.
    u = first.astype(np.float64) * TO_UNIT + TO_UNIT / 2
    angle = second.astype(np.float64) * TO_CIRCLE + TO_CIRCLE / 2
    radius = np.sqrt(-2 * np.log(u))
    return (radius * np.where(is_cosine, np.cos(angle), np.sin(angle))).astype(np.float32)


def philox(seed: int, counter: np.ndarray, thread: np.ndarray) -> np.ndarray:
    """(4, n) uint64 below 2^32: ten rounds of Philox4x32 for each (counter, thread)."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x = [counter & low, counter >> shift, thread & low, thread >> shift]
    key_0, key_1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * x[0], np.uint64(0xCD9E8D57) * x[2]
        x = [
            (q >> shift) ^ x[1] ^ np.uint64(key_0),
            q & low,
            (p >> shift) ^ x[3] ^ np.uint64(key_1),
            p & low,
        ]
        key_0, key_1 = (key_0 + 0x9E3779B9) & 0xFFFFFFFF, (key_1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(x)
