"""Names as other programs write them -> the names of SD 1.x; and what other programs leave behind.

Every change here is a plain renaming, or takes nothing but a level off. The numbers stay as they
are. An original checkpoint's names pass through unchanged.
"""

import re

from minisd.checkpoint.diffusers_names import names_in_folder
from minisd.checkpoint.names import PREFIXES
from minisd.checkpoint.tensors import CheckpointError, StoredTensor

Tensors = dict[str, StoredTensor]

# Tensors beside a whole model that change no picture: how their names begin, and where they are
# from. Programs that load without a check of the names (AUTOMATIC1111) ignore them too.
LEFTOVERS = {
    "model_ema.": "averages of the weights, for training",
    "first_stage_model.model_ema.": "the trainer of the autoencoder",
    "first_stage_model.loss.": "the trainer of the autoencoder",
    "loss.": "the trainer of the autoencoder",
    "logvar": "CompVis's trainer",
    "lvlb_weights": "CompVis's trainer",
    "scale_factor": "CompVis's trainer",
    "ddim_": "CompVis's DDIM sampler",
    "denoiser.": "Stability's generative-models",
    "embedding_manager.": "the trainer of textual inversion",
    "control_model.": "the trainer of ControlNet",
    "lora_": "a LoRA in the same file",
    "bundle_emb.": "embeddings that AUTOMATIC1111 bundles",
    "safety_checker.": "diffusers' safety checker",
    "cond_stage_model.logit_scale": "the rest of CLIP",
    "cond_stage_model.transformer.logit_scale": "the rest of CLIP",
    "cond_stage_model.transformer.text_projection": "the rest of CLIP",
    "cond_stage_model.transformer.visual_projection.": "the rest of CLIP",
    "cond_stage_model.transformer.vision_model.": "the rest of CLIP",
    "cond_stage_model.1.": "converters for SDXL, which has a second text encoder",
    "global_step": "a trainer's counter",
    "v_pred": "the mark of v-prediction",
    "ztsnr": "the mark of zero terminal SNR",
}

# Levels that torch.compile, DistributedDataParallel, FSDP, and others put in.
WRAPPERS = re.compile(
    r"(?<![^.])(?:_orig_mod|module|_forward_module|_fsdp_wrapped_module"
    r"|_checkpoint_wrapped_module)\."
)
# Versions of transformers differ in these levels, and some converters write one of them twice.
TEXT_ENCODER = re.compile(
    r"^cond_stage_model\.(?:(?:transformer|text_model|model)\.)*"
    r"(?=embeddings\.(?:token|position)_|encoder\.layers\.|final_layer_norm\.)"
)
VAE_ATTENTION = re.compile(r"((?:^|\.)(?:en|de)coder\.mid\.attn_1\.)(.+)(\.(?:weight|bias))$")
VAE_ATTENTION_NAMES = {
    **{"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"},
}
# Convolutions over 1x1 pixels: a matrix (C, C) holds the same numbers as (C, C, 1, 1).
CONVOLUTIONS_1X1 = re.compile(
    r"\.(?:attn_1\.[qkv]|proj_in|proj_out|skip_connection|nin_shortcut|(?:post_)?quant_conv)"
    r"\.weight$"
)


def original_names(tensors: Tensors) -> Tensors:
    """The tensors under SD 1.x's names and shapes. Raises CheckpointError if two get one name."""
    names = {name: WRAPPERS.sub("", name) for name in tensors}
    outer = outer_prefix(list(names.values()))
    result: Tensors = {}
    origin: dict[str, str] = {}
    for name, stored in tensors.items():
        tensor = stored
        key = TEXT_ENCODER.sub(PREFIXES["text_encoder"], names[name].removeprefix(outer))
        if match := VAE_ATTENTION.search(key):
            part = VAE_ATTENTION_NAMES.get(match[2], match[2])
            key = f"{key[: match.start()]}{match[1]}{part}{match[3]}"
        if len(tensor.shape) == 2 and CONVOLUTIONS_1X1.search(key):
            tensor = stored._replace(shape=(*stored.shape, 1, 1), stride=(*stored.stride, 1, 1))
        if key in result:
            both = f"as {origin[key][:100]} and as {name[:100]}"
            raise CheckpointError(f"{key[:100]} occurs twice, {both}")
        result[key], origin[key] = tensor, name
    return result


def outer_prefix(names: list[str]) -> str:
    """What stands in front of all names of a whole model, such as `student.`; usually nothing."""
    unet = PREFIXES["unet"]
    if any(name.startswith(unet) for name in names):
        return ""
    inner = next((name for name in names if f".{unet}" in name[:200]), "")
    return inner[: inner.find(f".{unet}") + 1]


def leftover_prefix(name: str) -> str | None:
    """The entry of LEFTOVERS that a name belongs to."""
    return next((prefix for prefix in LEFTOVERS if name.startswith(prefix)), None)


def is_whole(names: Tensors | dict[str, tuple[int, ...]]) -> bool:
    """Whether all three models of SD 1.x are there, if perhaps not all of their tensors."""
    return all(any(name.startswith(prefix) for name in names) for prefix in PREFIXES.values())


def without_leftovers(tensors: Tensors) -> tuple[Tensors, dict[str, int]]:
    """The rest, and how many leftovers there are, by entry of LEFTOVERS."""
    rest: Tensors = {}
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        prefix = leftover_prefix(name)
        if prefix is None:
            rest[name] = tensor
        else:
            counts[prefix] = counts.get(prefix, 0) + 1
    return rest, counts


def describe_leftovers(counts: dict[str, int]) -> str:
    """A list such as `5 tensors model_ema.* (averages of the weights, for training)`."""
    parts = []
    for prefix, n in counts.items():
        name = f"{prefix}*" if prefix.endswith((".", "_")) else prefix
        parts.append(f"{n} tensor{'s' if n > 1 else ''} {name} ({LEFTOVERS[prefix]})")
    return ", ".join(parts)


def training_averages(tensors: Tensors, unet: Tensors) -> Tensors:
    """The averages of the UNet's weights that CompVis's trainer keeps, under the UNet's names.

    Its names for them are without dots. Raises CheckpointError if some or all are missing.
    """
    keys = {name: f"model_ema.diffusion_model{name.replace('.', '')}" for name in unet}
    averages = {name: tensors[key] for name, key in keys.items() if key in tensors}
    if len(averages) < len(unet):
        count = f"{len(averages)} of the UNet's {len(unet)} weights" if averages else "no weight"
        raise CheckpointError(f"it holds training averages (model_ema.*) of {count}")
    return averages


def autoencoder(tensors: Tensors) -> Tensors:
    """The tensors of the autoencoder, without a prefix, of a file that holds it alone or not.

    Raises CheckpointError for another kind of file.
    """
    prefix = PREFIXES["vae"]
    if any(name.startswith("decoder.up_blocks.") for name in tensors):
        names = names_in_folder("vae", tensors)
        tensors = {names.original(name): tensor for name, tensor in tensors.items()}
    if not any(name.startswith(prefix) for name in tensors):
        tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    tensors, _ = without_leftovers(original_names(tensors))
    vae = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if not any(name.startswith("decoder.up.") for name in vae):
        raise CheckpointError("it holds no autoencoder of SD 1.x")
    return vae
