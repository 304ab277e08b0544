"""The UNet through PyTorch's own compiler."""

import torch
from torch import Tensor

from minisd.stable_diffusion import StableDiffusion


def compile(sd: StableDiffusion, **options: object) -> None:
    """Let torch.compile compile the UNet, in place, for each size that it meets.

    The first call of each size takes minutes. options: those of torch.compile;
    `mode="reduce-overhead"` uses CUDA graphs. The ledger and the trace work as before. Hooks on the
    UNet's layers, as attention maps need them, do not.
    """
    # The forward pass alone: a compiled __call__ would also compile the observers' hooks.
    compiled = torch.compile(sd.unet.forward, **{"dynamic": False, **options})

    def forward(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        # With CUDA graphs the next call overwrites this result, and k_lms needs it later.
        return compiled(x, t, context).clone()

    sd.unet.forward = forward
