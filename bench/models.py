"""What is measured: a file of weights, and diffusers' and transformers' models made of it."""

import gc
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as convert
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from minisd.checkpoint import (
    PREFIXES,
    read_facts,
    read_text_encoder,
    read_unet_table,
    read_vae,
)
from tests.conftest import manifest, tiny_manifest


def make_weights(path: Path, dtype: torch.dtype = torch.float32, small: bool = False) -> Path:
    """A file of SD 1.x's names and shapes, or of a tenth of its widths: each tensor seeded by its
    name, scaled by its size."""
    state = {}
    for key, shape in (tiny_manifest() if small else manifest()).items():
        if "." not in key or "position_ids" in key:
            continue
        rng = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        z = torch.randn(shape, generator=rng)
        if len(shape) == 1:
            z = 1 + 0.05 * z if key.endswith(".weight") else 0.02 * z
        else:
            z *= 0.02 if "embedding" in key else float(np.prod(shape[1:])) ** -0.5
        state[key] = z.to(dtype)
    facts = {"unet_heads": 8, "text_heads": 4 if small else 12}
    save_file(state, path, metadata={"minisd": json.dumps(facts)})
    return path


def load_diffusers(path: Path, device, dtype):
    """Text encoder, UNet and autoencoder with the file's weights, by diffusers' own converter."""
    with safe_open(path, "pt") as file:
        facts = read_facts(file.metadata() or {})
    state = load_file(path)
    shapes = {
        part: {k.removeprefix(p): tuple(v.shape) for k, v in state.items() if k.startswith(p)}
        for part, p in PREFIXES.items()
    }
    with torch.device("meta"):
        unet = diffusers_unet(shapes["unet"], facts.get("unet_heads", 8))
        size = read_vae(shapes["vae"])
        n = len(size["widths"])
        vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * n, latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * n, block_out_channels=size["widths"],
            layers_per_block=size["blocks"])  # fmt: skip
    parts = [
        (unet, convert.convert_ldm_unet_checkpoint(state, unet.config)),
        (vae, convert.convert_ldm_vae_checkpoint(state, vae.config)),
    ]
    for model, converted in parts:
        weights = {key: value.to(dtype) for key, value in converted.items()}
        model.load_state_dict(weights, strict=True, assign=True)
        model.to(device).eval().requires_grad_(False)
    size = read_text_encoder(shapes["text_encoder"])
    text = CLIPTextModel(CLIPTextConfig(hidden_size=size["width"], intermediate_size=size["hidden"],
        num_hidden_layers=size["layers"], num_attention_heads=facts.get("text_heads", 12),
        eos_token_id=49407))  # fmt: skip
    prefix = PREFIXES["text_encoder"]
    words = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    level = "text_model." if any(k.startswith("text_model.") for k in text.state_dict()) else ""
    text.load_state_dict({level + key: value for key, value in words.items()}, strict=False)
    del state
    gc.collect()
    return text.to(device).eval().requires_grad_(False), unet, vae


def diffusers_unet(shapes: dict[str, tuple[int, ...]], heads: int) -> UNet2DConditionModel:
    """The table that the shapes tell, in diffusers' words."""
    table, levels = read_unet_table(shapes), [[]]
    for row in table.input_blocks[1:]:  # the first is a convolution
        if row.layers == "down":
            levels.append([])
        else:
            levels[-1].append(row)
    kinds = ["CrossAttn" * ("attn" in level[0].layers) for level in levels]
    return UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=table.c_context,
        attention_head_dim=heads,  # diffusers' name for the number of heads
        block_out_channels=[level[-1].c_out for level in levels],
        layers_per_block=len(levels[0]),
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
    )


def diffusers_img2img(unet, vae, dtype) -> Callable:
    """(picture, text states of prompt and negative prompt, steps) -> picture: diffusers' img2img by
    DDIM on SD's schedule, at strength 1."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    pipe = StableDiffusionImg2ImgPipeline(  # a text encoder would force its own dtype on all
        vae, None, None, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)

    def run(picture: Image.Image, states: torch.Tensor, steps: int) -> Image.Image:
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
