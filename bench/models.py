"""Diffusers' and transformers' models with the weights of a checkpoint, to compare minisd with."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils as convert
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from minisd.checkpoint import PREFIXES
from minisd.checkpoint.architecture import text_encoder_size, unet_table, vae_size
from minisd.checkpoint.load import read_facts
from minisd.checkpoint.names import Shapes


def load_diffusers(
    path: Path, device: str | torch.device, dtype: torch.dtype
) -> tuple[nn.Module, UNet2DConditionModel, AutoencoderKL]:
    """Text encoder, UNet and autoencoder with the file's weights, by diffusers' own converter."""
    with safe_open(path, "pt") as file:
        facts = read_facts(file.metadata() or {})
    state = load_file(path)
    shapes = {
        part: {
            name.removeprefix(prefix): tuple(weight.shape)
            for name, weight in state.items()
            if name.startswith(prefix)
        }
        for part, prefix in PREFIXES.items()
    }
    with torch.device("meta"):
        unet = diffusers_unet(shapes["unet"], facts.get("unet_heads", 8))
        size = vae_size(shapes["vae"])
        n_levels = len(size["widths"])
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * n_levels,
            up_block_types=("UpDecoderBlock2D",) * n_levels,
            block_out_channels=size["widths"],
            layers_per_block=size["blocks"],
            latent_channels=4,
        )
    for model, converted in [
        (unet, convert.convert_ldm_unet_checkpoint(state, unet.config)),
        (vae, convert.convert_ldm_vae_checkpoint(state, vae.config)),
    ]:
        weights = {key: value.to(dtype) for key, value in converted.items()}
        model.load_state_dict(weights, strict=True, assign=True)
        model.to(device).eval().requires_grad_(False)
    text_encoder = transformers_clip(shapes["text_encoder"], facts.get("text_heads", 12))
    prefix = PREFIXES["text_encoder"]
    words = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    if any(key.startswith("text_model.") for key in text_encoder.state_dict()):
        words = {f"text_model.{key}": value for key, value in words.items()}
    text_encoder.load_state_dict(words, strict=False)  # older versions keep position ids
    del state
    gc.collect()
    return text_encoder.to(device).eval().requires_grad_(False), unet, vae


def diffusers_unet(shapes: Shapes, heads: int) -> UNet2DConditionModel:
    """The UNet of these shapes, in diffusers' words."""
    table, levels = unet_table(shapes), [[]]
    for row in table.input_blocks[1:]:  # the first is a convolution
        if row.layers == "down":
            levels.append([])
        else:
            levels[-1].append(row)
    kinds = ["CrossAttn" if "attn" in level[0].layers else "" for level in levels]
    return UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=table.c_context,
        attention_head_dim=heads,  # diffusers' name for the number of heads
        block_out_channels=[level[-1].c_out for level in levels],
        layers_per_block=len(levels[0]),
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
    )


def transformers_clip(shapes: Shapes, heads: int) -> CLIPTextModel:
    size = text_encoder_size(shapes)
    config = CLIPTextConfig(
        hidden_size=size["width"],
        intermediate_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=heads,
        eos_token_id=49407,
    )
    return CLIPTextModel(config)


def diffusers_img2img(
    unet: UNet2DConditionModel, vae: AutoencoderKL, dtype: torch.dtype
) -> Callable[[Image.Image, Tensor, int], Image.Image]:
    """(picture, text states of prompt and negative prompt, steps) -> picture.

    Diffusers' img2img with DDIM on SD's schedule, at strength 1 and guidance 7.5.
    """
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    # Without a text encoder: with one, the pipeline would use its dtype for everything.
    pipe = StableDiffusionImg2ImgPipeline(
        vae, None, None, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)

    def run(picture: Image.Image, states: Tensor, steps: int) -> Image.Image:
        (image,) = pipe(
            image=picture,
            strength=1.0,
            prompt_embeds=states[:1].to(dtype),
            negative_prompt_embeds=states[1:].to(dtype),
            num_inference_steps=steps,
            guidance_scale=7.5,
            generator=torch.Generator().manual_seed(0),
        ).images
        return image

    return run
