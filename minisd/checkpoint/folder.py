"""A diffusers folder, as on a hub: its tensors, under their names in an original checkpoint."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from minisd.checkpoint.diffusers_names import names_in_folder
from minisd.checkpoint.forms import original_names
from minisd.checkpoint.names import PREFIXES
from minisd.checkpoint.tensors import MAX_HEADER, CheckpointError, StoredTensor, read_tensors

# What the configurations must say, or not mention: otherwise the tensors are of another model.
# fmt: off
EXPECTED: dict[str, dict[str, Any]] = {
    "unet": {
        "act_fn": "silu", "center_input_sample": False, "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_scale_factor": 1, "norm_eps": 1e-5,
        "norm_num_groups": 32, "only_cross_attention": False, "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1, "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "time_embedding_act_fn": None, "timestep_post_act": None,
    },
    "vae": {
        "act_fn": "silu", "norm_num_groups": 32, "scaling_factor": 0.18215, "shift_factor": None,
    },
    "text_encoder": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "scheduler": {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "trained_betas": None,
    },
}
# fmt: on
# An empty tensor, whose name alone says something.
MARK = StoredTensor("F32", (0,), (1,), 0)


class Folder(NamedTuple):
    tensors: dict[str, StoredTensor]  # by their names in an original checkpoint
    files: dict[str, Path]  # by the same names: where each tensor is stored
    metadata: dict[str, str]  # what the configurations say, as the metadata of a checkpoint

    def file_by_model(self) -> dict[str, Path]:
        """The one file of each model. Raises CheckpointError if there are several."""
        files = {}
        for part, prefix in PREFIXES.items():
            pieces = {file for name, file in self.files.items() if name.startswith(prefix)}
            if len(pieces) != 1:
                remedy = "make one file of the folder with minisd convert"
                raise CheckpointError(f"{part}/ is in {len(pieces)} pieces: {remedy}")
            files[part] = pieces.pop()
        return files


def read_folder(path: Path) -> Folder:
    """Raises CheckpointError, OSError."""
    tensors: dict[str, StoredTensor] = {}
    files: dict[str, Path] = {}
    try:
        missing = [f"{part}/" for part in PREFIXES if not (path / part).is_dir()]
        if (path / "text_encoder_2").is_dir():
            raise CheckpointError("an SDXL model in the diffusers layout: minisd is for SD 1.x")
        if missing:
            layout = "minisd reads a file, or a diffusers folder with unet/, vae/ and text_encoder/"
            raise CheckpointError(f"this folder has no {' and no '.join(missing)}: {layout}")
        configs = read_configs(path)
        metadata = metadata_of(configs)
        for part, prefix in PREFIXES.items():
            stored = dict(weights_in(path / part))
            names = names_in_folder(part, stored)
            for name, (file, tensor) in stored.items():
                key = prefix + names.original(name)
                if key in tensors:
                    raise CheckpointError(f"{part}/ has {name[:100]} under another name too")
                tensors[key], files[key] = tensor, file
        renamed = original_names(tensors)  # in the same order
    except CheckpointError as error:
        text = str(error).replace(f"{path}/", "")
        raise CheckpointError(f"{path}: {text[:500]}") from None
    except RecursionError:  # in the text of a value that is nested deeply
        raise CheckpointError(f"{path}: a configuration is too deep") from None
    files = dict(zip(renamed, files.values(), strict=True))
    if configs["scheduler"].get("rescale_betas_zero_snr"):
        renamed["ztsnr"] = MARK
    return Folder(renamed, files, metadata)


def weights_file(folder: Path) -> Path:
    """The file with a model's weights, or the index of its pieces. Raises CheckpointError."""
    for variant in ("", ".fp16"):
        for ending in ("safetensors", "bin"):
            for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
                for name in (f"{stem}{variant}.{ending}", f"{stem}.{ending}.index{variant}.json"):
                    if (folder / name).is_file():
                        return folder / name
    names = "diffusion_pytorch_model.safetensors or model.safetensors"
    raise CheckpointError(f"{folder}/ has no weights that minisd reads, such as {names}")


def main_file(path: Path, part: str = "unet") -> Path:
    """The file itself; the weights file of that model, if the path is a diffusers folder.

    The folder is a whole model's, or the model's own. Its hash names the checkpoint. Raises
    CheckpointError, OSError.
    """
    if not path.is_dir():
        return path
    folder = path / part if (path / part).is_dir() else path
    if (folder / "config.json").is_file():
        check_config(part, read_json(folder / "config.json"))
    file = weights_file(folder)
    if file.suffix == ".json":
        raise CheckpointError(f"{folder}/ is in several pieces: minisd convert makes one file")
    return file


def weights_in(folder: Path) -> Iterator[tuple[str, tuple[Path, StoredTensor]]]:
    """(name, (file, tensor)) of a model. Raises CheckpointError, OSError."""
    file = weights_file(folder)
    if file.suffix == ".json":
        yield from weights_in_pieces(file)
    else:
        yield from ((name, (file, tensor)) for name, tensor in read_tensors(file)[0].items())


def weights_in_pieces(index: Path) -> Iterator[tuple[str, tuple[Path, StoredTensor]]]:
    """The index says which file holds which tensor, and all must be as it says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map")
    expected: dict[str, set[str]] = {}
    for name, piece in places.items():
        expected.setdefault(str(piece), set()).add(name)
    for piece, names in expected.items():
        if not re.fullmatch(r"[\w-][\w.-]{0,200}", piece, re.ASCII):
            raise CheckpointError(f"{index} names a file that no model has: {piece[:100]!r}")
        file = index.with_name(piece)
        if not file.is_file():
            raise CheckpointError(f"{index.parent}/{piece[:100]} is missing: download it too")
        tensors = read_tensors(file)[0]
        for name in sorted(names ^ tensors.keys())[:1]:
            raise CheckpointError(f"{index} and {piece[:100]} disagree about {name[:100]}")
        yield from ((name, (file, tensor)) for name, tensor in tensors.items())


def read_configs(path: Path) -> dict[str, dict[str, Any]]:
    """The configurations, by EXPECTED's keys. Raises CheckpointError, OSError."""
    configs = {part: read_json(path / part / "config.json") for part in PREFIXES}
    scheduler = path / "scheduler" / "scheduler_config.json"
    configs["scheduler"] = read_json(scheduler) if scheduler.is_file() else {}
    for part, config in configs.items():
        check_config(part, config)
    return configs


def check_config(part: str, config: dict[str, Any]) -> None:
    """Raises CheckpointError for a configuration that is not SD 1.x's."""
    for key, value in EXPECTED[part].items():
        if config.get(key, value) != value:
            setting = f"{part}/ is configured with {key} = {str(config[key])[:50]}"
            raise CheckpointError(f"{setting}, but SD 1.x has {value}")


def metadata_of(configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the configurations say, as the metadata of a checkpoint. Raises CheckpointError."""
    unet, vae, text_encoder, scheduler = configs.values()
    # Diffusers' attention_head_dim is, for this UNet, the number of heads.
    heads = unet.get("num_attention_heads") or unet.get("attention_head_dim")
    facts = {
        "unet_heads": head_count(heads, "unet/"),
        "text_heads": head_count(text_encoder.get("num_attention_heads"), "text_encoder/"),
    }
    side, levels = unet.get("sample_size"), vae.get("block_out_channels")
    if isinstance(levels, list) and len(levels) <= 8 and type(side) is int and 0 < side <= 512:
        facts["native_size"] = side * 2 ** (len(levels) - 1)
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        setting = f"scheduler/ is configured with prediction_type = {str(prediction)[:50]}"
        raise CheckpointError(f"{setting}, but SD 1.x has epsilon")
    metadata = {"minisd": json.dumps(facts)}
    if scheduler:
        stated = "v" if prediction == "v_prediction" else "epsilon"
        metadata["modelspec.prediction_type"] = stated
    return metadata


def head_count(value: Any, place: str) -> int:
    """The number of attention heads: the value, or that of a list with an entry for each level."""
    values = value if isinstance(value, list) and value else [value]
    if any(type(n) is not int or n != values[0] or not 0 < n <= 1024 for n in values):
        setting = f"{place} is configured with {str(value)[:50]} attention heads"
        raise CheckpointError(f"{setting}, but SD 1.x has a whole number, the same at all levels")
    return values[0]


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError, OSError."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: download it too")
    with open(path, "rb") as file:
        return parse_json(file.read(MAX_HEADER + 1), str(path))


def parse_json(text: str | bytes, name: str) -> dict[str, Any]:
    """An object of finite numbers. Raises CheckpointError."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"it contains {constant}")

    try:
        if len(text) > MAX_HEADER:
            raise ValueError(f"it has more than {MAX_HEADER:,} bytes")
        value = json.loads(text, parse_constant=refuse)
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
    except RecursionError:
        raise CheckpointError(f"{name} is not the JSON that it should be: too deep") from None
    except ValueError as error:
        problem = f"is not the JSON that it should be: {str(error)[:100]}"
        raise CheckpointError(f"{name} {problem}") from None
    return value
