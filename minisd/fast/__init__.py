"""The same models, faster and in less memory.

    import torch
    import minisd
    from minisd import fast

    sd = minisd.load("sd-v1-4.ckpt", dtype=torch.bfloat16)
    fast.pack(sd)            # CPU: lay the weights out once as oneDNN needs them (if can_pack(sd))
    fast.work_in_strips(sd)  # large pictures: the autoencoder works on a few rows at a time
    fast.keep_memory()       # Linux: a tenth faster, for up to 1.5 GB that stay in use

In place of these, `fast.use_openvino(sd)` lets another engine compute the networks on a CPU.

`fast.tune(sd)` chooses among them, as the command line does. On a GPU, and for many pictures of one
size, there is `fast.compile(sd)`: PyTorch's own compiler.

None of them changes the arithmetic. Sums may run in another order, and in bfloat16 `pack` may round
attention's scores to 16 bits, so results differ by rounding.
"""

from minisd.fast.compiled import compile
from minisd.fast.memory import give_back, keep_memory
from minisd.fast.openvino import use_openvino
from minisd.fast.packed import can_pack, pack
from minisd.fast.strips import work_in_strips
from minisd.fast.tuned import tune

__all__ = [
    "can_pack",
    "compile",
    "give_back",
    "keep_memory",
    "pack",
    "tune",
    "use_openvino",
    "work_in_strips",
]
