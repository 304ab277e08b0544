"""The autoencoder: pictures (B, 3, H, W) in [-1, 1] <-> latents (B, 4, h, w); SD 1.x: h = H / 8.

Attribute names are the checkpoint's keys after `first_stage_model.` CompVis:
ldm/modules/diffusionmodules/model.py. Every GroupNorm has eps 1e-6; in the UNet's residual blocks
it is 1e-5.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.attention import attention
from minisd.unet import Upsample

SCALE = 0.18215  # scales SD's latents to variance 1, which its noise levels are meant for


class ResnetBlock(nn.Module):
    """Two convolutions as a residual: (B, c_in, h, w) -> (B, c_out, h, w)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention over all pixels with one head; its projections are 1x1 convolutions."""

    def __init__(self, c: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, c, eps=1e-6)
        self.q = nn.Conv2d(c, c, 1)
        self.k = nn.Conv2d(c, c, 1)
        self.v = nn.Conv2d(c, c, 1)
        self.proj_out = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)  # (B, C, h, w)
        q, k, v = (rearrange(y, "b c h w -> b (h w) c") for y in (self.q(h), self.k(h), self.v(h)))
        h = rearrange(attention(q, k, v, heads=1), "b (h w) c -> b c h w", h=x.shape[2])
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # Pad the right and the bottom only: padding all sides would shift the picture.
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, h/2, w/2)


def level(c_in: int, c_out: int, blocks: int, **resize: nn.Module) -> nn.Sequential:
    """Residual blocks at one resolution, then a change of the resolution if one is given."""
    widths = [c_in, *[c_out] * blocks]
    block = nn.Sequential(*(ResnetBlock(*pair) for pair in pairwise(widths)))
    return nn.Sequential(OrderedDict(block=block, **resize))


def middle(c: int) -> nn.Sequential:
    """Residual blocks and attention at the lowest resolution; shapes stay as they are."""
    block_1, attn_1, block_2 = ResnetBlock(c, c), AttnBlock(c), ResnetBlock(c, c)
    layers = OrderedDict[str, nn.Module](block_1=block_1, attn_1=attn_1, block_2=block_2)
    return nn.Sequential(layers)


class Encoder(nn.Module):
    def __init__(self, ch: int, widths: Sequence[int], blocks: int):
        """ch: channels of the first convolution; widths: of each level, highest resolution first"""
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.Sequential()
        for c_in, c_out in pairwise((ch, *widths[:-1])):
            self.down.append(level(c_in, c_out, blocks, downsample=Downsample(c_out)))
        self.down.append(level((ch, *widths)[-2], widths[-1], blocks))
        self.mid = middle(widths[-1])
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:  # (B, 3, H, W)
        h = self.mid(self.down(self.conv_in(image)))  # (B, C, H/8, W/8)
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, 8, H/8, W/8)


class Decoder(nn.Module):
    def __init__(self, widths: Sequence[int], blocks: int):
        super().__init__()
        self.conv_in = nn.Conv2d(4, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1])
        # The checkpoint numbers the levels from the picture's side: up.0 is the full resolution.
        c_ins = (*widths[1:], widths[-1])
        self.up = nn.ModuleList([level(c_ins[0], widths[0], blocks)])
        for c_in, c_out in zip(c_ins[1:], widths[1:], strict=True):
            self.up.append(level(c_in, c_out, blocks, upsample=Upsample(c_out)))
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:  # (B, 4, h, w)
        h = self.mid(self.conv_in(z))
        for blocks in reversed(self.up):
            h = blocks(h)  # (B, C, 2h, 2w); the last level keeps the size
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, 3, 8h, 8w)


class VAE(nn.Module):
    """CompVis's AutoencoderKL.

    ch: channels of the first convolution; widths: channels of each level, highest resolution first;
    blocks: residual blocks in a level of the encoder (the decoder has one more).
    """

    def __init__(
        self, ch: int = 128, widths: Sequence[int] = (128, 256, 512, 512), blocks: int = 2
    ):
        super().__init__()
        self.factor = 2 ** (len(widths) - 1)  # image side / latent side: 8 in SD 1.x
        self.encoder = Encoder(ch, widths, blocks)
        self.decoder = Decoder(widths, blocks + 1)
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    def moments(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 8, h, w): mean and log variance, unscaled."""
        return self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype))).to(image.dtype)

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 4, h, w), scaled to variance 1.

        This is the posterior's mean, or mean + std * noise (B, 4, h, w) if noise is given. The
        original always draws noise; its std is only about 0.01, so the default here draws none.
        """
        mean, log_variance = self.moments(image).chunk(2, dim=1)
        if noise is not None:
            mean = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise
        return SCALE * mean

    def decode(self, latent: Tensor) -> Tensor:
        """(B, 4, h, w) as `encode` gives it -> (B, 3, H, W), about in [-1, 1] but not clamped."""
        z = (latent / SCALE).to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(z)).to(latent.dtype)
