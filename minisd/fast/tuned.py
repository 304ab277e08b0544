"""What to choose for a model of this size on this machine."""

from collections.abc import Callable

import torch

from minisd.exact_mode import is_exact
from minisd.fast.memory import is_plentiful, keep_memory
from minisd.fast.openvino import use_openvino
from minisd.fast.packed import can_pack, pack
from minisd.fast.strips import work_in_strips
from minisd.stable_diffusion import StableDiffusion


def tune(
    sd: StableDiffusion,
    engine: str = "torch",
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Set threads and layouts as they are fastest for this model. Results differ by rounding.

    engine: `openvino` for use_openvino, which gets `report`, too.
    """
    # On a GPU PyTorch would round the inputs of float32 convolutions to 10 bits: 1e-3 per call.
    torch.backends.cudnn.allow_tf32 = False
    if sd.native_size < 256:
        # Layers this small take less time than handing them to threads. One thread is as fast, and
        # on a busy machine many times faster.
        torch.set_num_threads(1)
    if engine == "openvino":
        use_openvino(sd, report)
    elif sd.native_size >= 256 and not is_exact():
        work_in_strips(sd)
        if can_pack(sd):
            pack(sd)
        if is_plentiful():
            keep_memory()
