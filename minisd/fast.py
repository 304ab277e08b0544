"""The same models, faster on CPUs: weights laid out once as oneDNN wants them.

    sd = minisd.load("sd-v1-4.ckpt", dtype=torch.bfloat16)
    minisd.fast.pack(sd)

PyTorch's convolutions and matrix products run on oneDNN, which wants weights in blocks of its own
and rearranges them at each call: 1.7 GB for a UNet call in bfloat16. `pack` has that done once, for
convolutions at the first call, since the best blocks depend on the picture's size. The arithmetic
is the same; sums may run in another order. The models lose their state dict by it: load again to
save, to train, or to move to another device.
"""

import torch
from torch import Tensor, nn

from minisd.checkpoint import StableDiffusion


class PackedConv2d(nn.Module):
    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.geometry = ([*conv.padding], [*conv.stride], [*conv.dilation], conv.groups)
        self.weight, self.bias, self.packed = conv.weight, conv.bias, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:  # the best blocks depend on the picture's size
            reorder = torch._C._nn.mkldnn_reorder_conv2d_weight
            packed = reorder(self.weight.to_mkldnn(), *self.geometry, x.shape)
            self.weight, self.packed = nn.Parameter(packed, requires_grad=False), True
        conv = torch.ops.mkldnn._convolution_pointwise
        return conv(x, self.weight, self.bias, *self.geometry, "none", [], "")


class PackedLinear(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features = linear.in_features
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight, None)
        self.weight, self.bias = nn.Parameter(packed, requires_grad=False), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack(sd: StableDiffusion) -> None:
    """Pack UNet and autoencoder in place. Raises ValueError where there is nothing to gain."""
    if sd.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        raise ValueError("packing is for models on a CPU that oneDNN knows")
    for model in (sd.unet, sd.vae):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Conv2d:
                    setattr(parent, name, PackedConv2d(child))
                elif type(child) is nn.Linear:
                    setattr(parent, name, PackedLinear(child))
