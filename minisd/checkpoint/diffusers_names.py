"""Diffusers' names of the tensors of an SD 1.x model, and the original names.

They differ in the UNet and in the autoencoder. The tables are those of diffusers' own converters
(diffusers/loaders/single_file_utils.py: convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint).
"""

from collections.abc import Container, Iterable
from typing import NamedTuple

MOST = 8  # levels of a model, and blocks of a level; SD 1.x has 4 and 3

# Within a residual block of the UNet.
UNET_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# Within a residual block of the autoencoder. forms.py knows the names within its attention.
VAE_LAYERS = {"conv_shortcut": "nin_shortcut"}


class Names(NamedTuple):
    """Diffusers' name -> the original name: of blocks, and of layers within a block."""

    blocks: dict[str, str]
    layers: dict[str, str]

    def original(self, name: str) -> str:
        """The original name of a tensor. A name that is not in the tables stays as it is."""
        return renamed(name, self.blocks, self.layers)

    def diffusers(self, name: str) -> str:
        """Diffusers' name of a tensor."""
        blocks, layers = ({new: old for old, new in table.items()} for table in self)
        return renamed(name, blocks, layers)


# Transformers 5 dropped one level of these names, but diffusers folders and LoRA files have it.
TEXT_ENCODER = Names(
    {f"text_model.{name}": name for name in ("embeddings", "encoder", "final_layer_norm")}, {}
)


def renamed(name: str, blocks: dict[str, str], layers: dict[str, str]) -> str:
    for block, new_block in blocks.items():
        if name.startswith(f"{block}."):
            rest = name.removeprefix(f"{block}.")
            for layer, new_layer in layers.items():
                if rest.startswith(f"{layer}."):
                    rest = new_layer + rest.removeprefix(layer)
                    break
            return f"{new_block}.{rest}"
    return name


def unet_names(levels: int, n: int, attentive: Container[str]) -> Names:
    """n: residual blocks in a level on the way up; on the way down, a convolution takes the place
    of the last. attentive: the levels on the way up that have attention, numbered as in diffusers.
    """
    levels, n = min(levels, MOST), min(n, MOST)
    blocks = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for level in range(levels):
        last = (level + 1) * n
        for k in range(n):
            i = level * n + k
            if k < n - 1:
                blocks[f"down_blocks.{level}.resnets.{k}"] = f"input_blocks.{i + 1}.0"
                blocks[f"down_blocks.{level}.attentions.{k}"] = f"input_blocks.{i + 1}.1"
            blocks[f"up_blocks.{level}.resnets.{k}"] = f"output_blocks.{i}.0"
            if str(level) in attentive:
                blocks[f"up_blocks.{level}.attentions.{k}"] = f"output_blocks.{i}.1"
        blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{last}.0.op"
        up = f"output_blocks.{last - 1}.{2 if str(level) in attentive else 1}.conv"
        blocks[f"up_blocks.{level}.upsamplers.0.conv"] = up
    return Names(blocks, UNET_LAYERS)


def vae_names(levels: int) -> Names:
    blocks: dict[str, str] = {}
    for side, way in (("encoder", "down"), ("decoder", "up")):
        blocks[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        blocks[f"{side}.mid_block.resnets.0"] = f"{side}.mid.block_1"
        blocks[f"{side}.mid_block.resnets.1"] = f"{side}.mid.block_2"
        blocks[f"{side}.mid_block.attentions.0"] = f"{side}.mid.attn_1"
        for level in range(min(levels, MOST)):
            block = f"{side}.{way}_blocks.{level}"
            # The original counts levels from the picture's side, the decoder's too.
            original = f"{side}.{way}.{level if way == 'down' else levels - 1 - level}"
            blocks[f"{block}.{way}samplers.0"] = f"{original}.{way}sample"
            for k in range(MOST):
                blocks[f"{block}.resnets.{k}"] = f"{original}.block.{k}"
    return Names(blocks, VAE_LAYERS)


def names_in_folder(part: str, names: Iterable[str]) -> Names:
    """The tables for a model whose tensors have these names in a diffusers folder."""
    if part == "text_encoder":
        return TEXT_ENCODER
    if part == "vae":
        return vae_names(len(children(names, "decoder.up_blocks.")))
    levels = children(names, "up_blocks.")
    attentive = {level for level in levels if children(names, f"up_blocks.{level}.attentions.")}
    return unet_names(len(levels), len(children(names, "up_blocks.0.resnets.")), attentive)


def unet_names_in_checkpoint(names: Iterable[str]) -> Names:
    """The tables for a UNet whose tensors have these original names, without the prefix."""
    names = set(names)
    n_blocks = len(children(names, "output_blocks."))
    ops = (i for i in range(n_blocks) if f"input_blocks.{i}.0.op.weight" in names)
    n = next(ops, n_blocks)  # a UNet of one level has no such convolution
    with_attention = (i for i in range(n_blocks) if f"output_blocks.{i}.1.norm.weight" in names)
    return unet_names(n_blocks // max(n, 1), n, {str(i // n) for i in with_attention})


def children(names: Iterable[str], prefix: str) -> set[str]:
    """The names of a module's children: what follows the prefix, up to the next dot."""
    return {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
