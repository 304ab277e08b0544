"""Weights in oneDNN's own layout.

PyTorch's convolutions and matrix products on CPUs run on oneDNN, which needs weights in blocks and
rearranges them at each call: 1.7 GB for a UNet call in bfloat16. Here it is done once.
"""

import torch
from torch import Tensor, nn

from minisd.fast.blocks import attend_in_blocks, prefers_blocks
from minisd.fast.halves import share_halves
from minisd.fast.memory import give_back
from minisd.stable_diffusion import StableDiffusion


def pack(sd: StableDiffusion) -> None:
    """Pack the weights of UNet and autoencoder, in place, and share the halves of guided calls.

    The models then have no state dict of their own: load the checkpoint again to save it, to train
    it, or to move it to another device. Raises ValueError where can_pack is false.
    """
    if not can_pack(sd):
        needs = "a PyTorch that has oneDNN, and a processor with instructions for the model's dtype"
        raise ValueError(f"packing is for models on a CPU, and needs {needs}")
    for model in (sd.unet, sd.vae):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Conv2d:
                    setattr(parent, name, PackedConv2d(child))
                elif type(child) is nn.Linear:
                    setattr(parent, name, PackedLinear(child))
    share_halves(sd.unet)
    if prefers_blocks(next(sd.unet.parameters()).dtype):
        attend_in_blocks(sd)
    give_back()


def can_pack(sd: StableDiffusion) -> bool:
    """Whether `pack` works for this model, with this PyTorch, on this processor.

    bfloat16 needs AVX-512 on x86, and float16 a newer extension. Without them these models work
    too, but not packed.
    """
    if sd.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    dtype = next(sd.unet.parameters()).dtype
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


class PackedConv2d(nn.Module):
    """It packs its weights at the first call: the best blocks depend on the picture's size."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.geometry = ([*conv.padding], [*conv.stride], [*conv.dilation], conv.groups)
        self.weight, self.bias, self.packed = conv.weight, conv.bias, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            reorder = torch._C._nn.mkldnn_reorder_conv2d_weight
            weight = reorder(self.weight.to_mkldnn(), *self.geometry, x.shape)
            self.weight, self.packed = nn.Parameter(weight, requires_grad=False), True
            give_back()
        conv = torch.ops.mkldnn._convolution_pointwise
        return conv(x, self.weight, self.bias, *self.geometry, "none", [], "")


class PackedLinear(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features = linear.in_features
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight, None)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
