"""LoRA files: small changes of a checkpoint's layers, W + weight * alpha / rank * up @ down.

Hu et al. 2021; for convolutions kohya's networks/lora.py. Such a file has two matrices for a layer,
and perhaps alpha; without it, alpha is the rank. kohya's trainer names layers as in
`lora_unet_down_blocks_0_attentions_0_proj_in`, diffusers and PEFT as in
`unet.down_blocks.0.attentions.0.proj_in`. Other forms of change are refused by their names.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from minisd.checkpoint.diffusers_names import TEXT_ENCODER, unet_names_in_checkpoint
from minisd.checkpoint.folder import parse_json, read_json
from minisd.checkpoint.names import PREFIXES, Shapes
from minisd.checkpoint.numbers import DTYPES, INTEGERS, read_stored
from minisd.checkpoint.tensors import READABLE, CheckpointError, StoredTensor, read_tensors

# A part of a name -> the form that has it, in the order in which they are looked for.
OTHER_FORMS = {
    r"^lora_te2_|^text_encoder_2\.|label_emb|add_embedding|transformer_blocks[._][1-9]": "for SDXL",
    r"double_blocks|single_blocks|joint_blocks|^transformer\.": "for Flux, SD 3 or the like",
    r"dora_scale|lora_magnitude_vector": "in the form DoRA",
    r"\.hada_": "in the form LoHa",
    r"\.lokr_": "in the form LoKr",
    r"\.b?oft_": "in the form OFT",
    r"\.[ab][12]\.weight$": "in the form GLoRA",
    r"\.on_input$": "in the form IA3",
    r"\.lora_mid\.": "in the form LoCon with a third matrix (lora_mid)",
    r"\.(diff|diff_b|w_norm|b_norm)$": "with whole differences, a form of LyCORIS",
    r"lora\w{,9}(\.\w{,9})?\.bias$|lora_embedding_[AB]": "with changes of biases or embeddings",
    r"^bundle_emb\.": "with textual inversions in it",
}
REMEDY = "minisd merges plain LoRA files for SD 1.x"
KEY = re.compile(
    r"(.+?)(?:[._]lora(?:_linear_layer)?[._](down|up|A|B)(?:\.default)?\.weight|\.(alpha))"
)


class Change(NamedTuple):
    """What one LoRA file adds to a weight: scale * up @ down."""

    file: Path
    up: StoredTensor  # (out, rank) or (out, rank, 1, 1)
    down: StoredTensor  # (rank, in) or (rank, in, kh, kw)
    scale: float

    def of(self, weight: Tensor) -> Tensor:
        """The weight's change, in its shape, float32."""
        up, down = (read_stored(self.file, t).float().flatten(1) for t in (self.up, self.down))
        return self.scale * (up @ down).reshape(weight.shape)


def read_lora(path: Path, weight: float, shapes: dict[str, Shapes]) -> dict[str, Change]:
    """The changes by the names of the checkpoint's tensors. Raises CheckpointError, OSError.

    shapes: of each model's tensors, by PREFIXES's keys, names without the prefix.
    """
    try:
        tensors, metadata = read_tensors(path)
        for pattern, form in OTHER_FORMS.items():
            for name in tensors:
                if re.search(pattern, name):
                    raise CheckpointError(f"this is a LoRA {form} ({name[:100]}): {REMEDY}")
        layers = layer_names(shapes)
        groups: dict[str, dict[str, StoredTensor]] = {}
        modules: dict[str, str] = {}  # the file's names of the layers
        for name, tensor in tensors.items():
            match = KEY.fullmatch(name)
            if not match:
                raise CheckpointError(f"{name[:100]} is not a tensor of a LoRA: {REMEDY}")
            layer = layer_named(match[1], layers)
            if layer is None:
                question = "is it for another model?"
                raise CheckpointError(f"the checkpoint has no layer for {name[:100]}: {question}")
            role = match[3] or {"A": "down", "B": "up"}.get(match[2], match[2])
            if role in groups.setdefault(layer, {}):
                raise CheckpointError(f"{name[:100]} is in it under another name too")
            groups[layer][role], modules[layer] = tensor, match[1]
        configs = read_configs(path, tensors, metadata)
        changes = {}
        for layer, group in groups.items():
            part = next(part for part, prefix in PREFIXES.items() if layer.startswith(prefix))
            shape = shapes[part][layer.removeprefix(PREFIXES[part])]
            check_shapes(modules[layer], group, shape)
            rank = group["down"].shape[0]
            if "alpha" in group:
                alpha = read_stored(path, group["alpha"]).item()
            else:
                alpha = alpha_in(configs.get(part, {}), modules[layer], rank)
            if type(alpha) not in (int, float) or not 0 < alpha < 1e6:
                wrong = f"alpha of {modules[layer][:100]} is {str(alpha)[:20]}"
                raise CheckpointError(f"{wrong}, but should be a positive number")
            changes[layer] = Change(path, group["up"], group["down"], weight * alpha / rank)
    except CheckpointError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise CheckpointError(f"{path}: {text[:500]}") from None
    return changes


# ---- names ---------------------------------------------------------------------------------------


def layer_names(shapes: dict[str, Shapes]) -> dict[str, str]:
    """All names that LoRA files have for a layer -> the checkpoint's name of its weight."""
    names = {"unet": unet_names_in_checkpoint(shapes["unet"]), "text_encoder": TEXT_ENCODER}
    kohya = {"unet": ["lora_unet_"], "text_encoder": ["lora_te_", "lora_te1_"]}
    layers = {}
    for part, table in names.items():
        for name, shape in shapes[part].items():
            if name.endswith(".weight") and len(shape) in (2, 4):
                for other_name in (table.diffusers(name), name):
                    module = other_name.removesuffix(".weight")
                    flat = [prefix + module.replace(".", "_") for prefix in kohya[part]]
                    for key in (f"{part}.{module}", module, *flat):
                        layers[key] = PREFIXES[part] + name
    return layers


def layer_named(module: str, layers: dict[str, str]) -> str | None:
    """The checkpoint's name for a layer of the file. Old files name an attention's processor."""
    module = module.removeprefix("base_model.model.").replace(".processor.", ".")
    text = re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", module)
    return layers.get(module) or layers.get(f"{module}.0") or layers.get(text)


# ---- shapes and scales ---------------------------------------------------------------------------


def check_shapes(module: str, group: dict[str, StoredTensor], shape: tuple[int, ...]) -> None:
    """Raises CheckpointError if these are not the two matrices of a layer of this shape."""
    for role in ("up", "down"):
        if role not in group:
            raise CheckpointError(f"{module[:100]} has no lora_{role}.weight")
        if group[role].dtype not in DTYPES:
            raise CheckpointError(f"{module[:100]} is stored as {group[role].dtype}: {READABLE}")
    up, down = group["up"].shape, group["down"].shape
    inputs = {shape[1:]}
    if math.prod(shape[2:]) == 1:  # a matrix and a convolution of one pixel are the same
        inputs = {shape[1:2], (shape[1], 1, 1)}
    rank = down[:1]
    outputs = {(*shape[:1], *rank), (*shape[:1], *rank, 1, 1)}
    if up not in outputs or down[1:] not in inputs or 0 in rank:
        wrong = f"{module[:100]} has the shapes {up} and {down}, which do not fit {shape}"
        raise CheckpointError(f"{wrong}: is it for another model?")
    if "alpha" in group:
        dtype, alpha_shape = group["alpha"][:2]
        if math.prod(alpha_shape) != 1 or dtype not in DTYPES | INTEGERS:
            raise CheckpointError(f"{module[:100]}.alpha has the shape {alpha_shape}, type {dtype}")


def read_configs(
    path: Path, names: Iterable[str], metadata: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """PEFT's configuration for each model, from the metadata or the file beside it, if any."""
    if "lora_adapter_metadata" in metadata:  # as diffusers writes it
        entries = parse_json(metadata["lora_adapter_metadata"], "lora_adapter_metadata")
        configs = {
            part: {
                key.removeprefix(f"{part}."): value
                for key, value in entries.items()
                if key.startswith(f"{part}.")
            }
            for part in PREFIXES
        }
    elif any(name.startswith("base_model.model.") for name in names):
        configs = dict.fromkeys(PREFIXES, read_json(path.with_name("adapter_config.json")))
    else:
        return {}
    for config in configs.values():
        for key, value in config.items():  # use_dora, use_rslora, ...: other rules for the change
            if value and (key.startswith("use_") or key in ("fan_in_fan_out", "lora_bias")):
                raise CheckpointError(f"this is a LoRA with {key[:50]}: {REMEDY}")
        if config.get("peft_type", "LORA") != "LORA":
            kind = str(config["peft_type"])[:50]
            raise CheckpointError(f"this is PEFT's {kind}, not LoRA: {REMEDY}")
    return configs


def alpha_in(config: dict[str, Any], module: str, rank: int) -> Any:
    """The configuration's alpha for a layer; the rank, if it says nothing."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", key) for key in patterns):
        raise CheckpointError(f"its alpha_pattern is {str(patterns)[:50]}: {REMEDY}")
    for pattern, alpha in patterns.items():
        if f".{module}".endswith(f".{pattern}"):
            return alpha
    return config.get("lora_alpha", rank)
