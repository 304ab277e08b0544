"""The UNet: it predicts the noise in a latent.

Rombach et al. 2022; CompVis: ldm/modules/diffusionmodules/openaimodel.py, ldm/modules/attention.py.

Attribute names are the checkpoint's keys after `model.diffusion_model.` The architecture is a table
with a row for each block. The table of SD 1.x is written out below; minisd/checkpoint/ reads the
table of other files from their names and shapes.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.attention import attention


class Row(NamedTuple):
    """One entry of input_blocks or output_blocks: layers in order, channels in, channels out."""

    layers: str
    c_in: int
    c_out: int


class Table(NamedTuple):
    input_blocks: tuple[Row, ...]
    middle_block: Row
    output_blocks: tuple[Row, ...]
    c_context: int


# fmt: off
SD1 = Table(
    input_blocks=(                        #     output at 512x512 pixels
        Row("conv", 4, 320),              #  0  64x64
        Row("res attn", 320, 320),        #  1
        Row("res attn", 320, 320),        #  2
        Row("down", 320, 320),            #  3  32x32
        Row("res attn", 320, 640),        #  4
        Row("res attn", 640, 640),        #  5
        Row("down", 640, 640),            #  6  16x16
        Row("res attn", 640, 1280),       #  7
        Row("res attn", 1280, 1280),      #  8
        Row("down", 1280, 1280),          #  9  8x8
        Row("res", 1280, 1280),           # 10
        Row("res", 1280, 1280),           # 11
    ),
    middle_block=Row("res attn res", 1280, 1280),
    output_blocks=(  # each also reads the output of an input block: the skip connection
        Row("res", 1280 + 1280, 1280),           #  0   8x8   with 11
        Row("res", 1280 + 1280, 1280),           #  1         with 10
        Row("res up", 1280 + 1280, 1280),        #  2  16x16  with 9
        Row("res attn", 1280 + 1280, 1280),      #  3         with 8
        Row("res attn", 1280 + 1280, 1280),      #  4         with 7
        Row("res attn up", 1280 + 640, 1280),    #  5  32x32  with 6
        Row("res attn", 1280 + 640, 640),        #  6         with 5
        Row("res attn", 640 + 640, 640),         #  7         with 4
        Row("res attn up", 640 + 320, 640),      #  8  64x64  with 3
        Row("res attn", 640 + 320, 320),         #  9         with 2
        Row("res attn", 320 + 320, 320),         # 10         with 1
        Row("res attn", 320 + 320, 320),         # 11         with 0
    ),
    c_context=768,
)
# fmt: on


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """(B,) timesteps -> (B, width): cosines, then sines, of t at frequencies from 1 to 1/10000."""
    i = torch.arange(width // 2, device=t.device)
    frequencies = torch.exp(-math.log(10000) / (width // 2) * i)
    angles = t.float()[:, None] * frequencies  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, width)


class ResBlock(nn.Module):
    """Two convolutions; between them the timestep's vector is added to every pixel."""

    def __init__(self, c_in: int, c_out: int, c_time: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, c_in, eps=1e-5), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(c_time, c_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, c_out, eps=1e-5),
            nn.SiLU(),
            nn.Identity(),  # slot 2 was dropout
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # (B, c_in, h, w), (B, c_time)
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)  # (B, c_out, h, w)


class CrossAttention(nn.Module):
    """Attention of x to `context`, the text; without context, of x to itself."""

    def __init__(self, c: int, c_context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(c, c, bias=False)
        self.to_k = nn.Linear(c_context, c, bias=False)
        self.to_v = nn.Linear(c_context, c, bias=False)
        self.to_out = nn.Sequential(nn.Linear(c, c))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        # x (B, N, C), context (B, 77, c_context) -> (B, N, C)
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(attention(q, k, v, self.heads))


class GEGLU(nn.Module):
    """A linear layer of which one half gates the other. Shazeer 2020."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.proj = nn.Linear(c_in, 2 * c_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)  # (B, N, c_out) each
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        # Slot 1 was dropout.
        self.net = nn.Sequential(GEGLU(c, 4 * c), nn.Identity(), nn.Linear(4 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # (B, N, C)


class TransformerBlock(nn.Module):
    """Each pixel attends to all pixels, then to the words; then a small network works on each."""

    def __init__(self, c: int, c_context: int, heads: int):
        super().__init__()
        self.attn1 = CrossAttention(c, c, heads)
        self.attn2 = CrossAttention(c, c_context, heads)
        self.ff = FeedForward(c)
        self.norm1 = nn.LayerNorm(c, eps=1e-5)
        self.norm2 = nn.LayerNorm(c, eps=1e-5)
        self.norm3 = nn.LayerNorm(c, eps=1e-5)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # (B, N, C), (B, 77, c_context)
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer over the pixels, as a residual."""

    def __init__(self, c: int, c_context: int, heads: int):
        super().__init__()
        # eps is 1e-6 here and 1e-5 in ResBlock, because SD 1.x was trained that way.
        self.norm = nn.GroupNorm(32, c, eps=1e-6)
        self.proj_in = nn.Conv2d(c, c, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(c, c_context, heads)])
        self.proj_out = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")  # (B, N, C), N = h * w
        for block in self.transformer_blocks:
            h = block(h, context)
        h = rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])
        return x + self.proj_out(h)  # (B, C, h, w)


class Downsample(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.op = nn.Conv2d(c, c, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # (B, C, h/2, w/2)


class Upsample(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (B, C, 2h, 2w)


class Stage(nn.ModuleList):
    """One row of the table: its layers in order. Each gets the inputs that it takes."""

    def __init__(self, row: Row, c_time: int, c_context: int, heads: int):
        c, layers = row.c_in, []
        for layer in row.layers.split():
            if layer == "conv":
                layers.append(nn.Conv2d(c, row.c_out, 3, padding=1))
            elif layer == "res":
                layers.append(ResBlock(c, row.c_out, c_time))
            elif layer == "attn":
                layers.append(SpatialTransformer(row.c_out, c_context, heads))
            elif layer == "down":
                layers.append(Downsample(row.c_out))
            elif layer == "up":
                layers.append(Upsample(row.c_out))
            c = row.c_out
        super().__init__(layers)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, time)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    def __init__(self, table: Table = SD1, heads: int = 8):
        super().__init__()
        self.channels = c = table.input_blocks[0].c_out
        shared = (4 * c, table.c_context, heads)
        # Each "down" halves the resolution, so a latent's sides must be multiples of this: 8.
        self.factor = 2 ** sum("down" in row.layers for row in table.input_blocks)
        self.time_embed = nn.Sequential(nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, 4 * c))
        self.input_blocks = nn.ModuleList(Stage(row, *shared) for row in table.input_blocks)
        self.middle_block = Stage(table.middle_block, *shared)
        self.output_blocks = nn.ModuleList(Stage(row, *shared) for row in table.output_blocks)
        self.out = nn.Sequential(
            nn.GroupNorm(32, c, eps=1e-5), nn.SiLU(), nn.Conv2d(c, 4, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """eps (B, 4, h, w), the predicted noise in x.

        x        (B, 4, h, w), scaled to variance 1: the loop's x / sqrt(sigma^2 + 1)
        t        (B,) timesteps in 0..999, which may be fractional
        context  (B, 77, c_context), the text states
        """
        dtype = next(self.parameters()).dtype
        time = self.time_embed(timestep_embedding(t, self.channels).to(dtype))  # (B, c_time)
        h, context, skips = x.to(dtype), context.to(dtype), []
        for block in self.input_blocks:
            h = block(h, time, context)
            skips.append(h)
        h = self.middle_block(h, time, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), time, context)
        return self.out(h).to(x.dtype)
