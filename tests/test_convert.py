"""Diffusers folders and LoRA files: converted to ordinary checkpoints, or refused in one line."""

import json
import math
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils, single_file_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minisd
from bench.models import load_diffusers
from minisd.checkpoint import PREFIXES
from minisd.checkpoint.convert import convert
from minisd.checkpoint.diffusers_names import names_in_folder, unet_names_in_checkpoint
from minisd.checkpoint.folder import EXPECTED
from minisd.checkpoint.forms import original_names
from minisd.checkpoint.lora import KEY, layer_named, layer_names
from minisd.checkpoint.names import POSITION_IDS, Shapes
from minisd.checkpoint.seeded import seeded_tensors, tiny_shapes
from minisd.checkpoint.tensors import StoredTensor
from minisd.cli.main import main

from .conftest import manifest
from .hostile_files import FIRED, fire, micro, saved, write

Weights = dict[str, torch.Tensor]
UNET, VAE, TEXT = PREFIXES.values()


@pytest.fixture(autouse=True)
def nothing_runs():
    FIRED.clear()
    yield
    assert FIRED == []


def part_of(weights: dict[str, Any], part: str) -> dict[str, Any]:
    """One model's entries, without prefix, without position ids."""
    prefix = PREFIXES[part]
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix) and name != POSITION_IDS
    }


def read(path: Path) -> tuple[Weights, dict[str, str]]:
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def equal(a: Weights, b: Weights) -> bool:
    """Whether the names, types, and bits are the same."""
    same_type = a.keys() == b.keys() and all(a[name].dtype == b[name].dtype for name in a)
    return same_type and all(torch.equal(a[name], b[name]) for name in a)


# ---- names ---------------------------------------------------------------------------------------


def diffusers_unet_names(shapes: Shapes, blocks: int) -> dict[str, str]:
    """Diffusers' name -> the original name, by diffusers' own converter."""
    state = {UNET + name: name for name in shapes}
    return single_file_utils.convert_ldm_unet_checkpoint(state, {"layers_per_block": blocks})


def diffusers_vae_names(shapes: Shapes, levels: int) -> dict[str, str]:
    marked = {
        VAE + name: torch.full((1,) * len(shape), float(i))
        for i, (name, shape) in enumerate(shapes.items())
    }
    config = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}
    converted = single_file_utils.convert_ldm_vae_checkpoint(marked, config)
    names = list(shapes)
    return {name: names[int(value.item())] for name, value in converted.items()}


SIZES = {"SD 1.x": (manifest, 2, 4), "tiny": (tiny_shapes, 2, 4)}


@pytest.mark.parametrize(("shapes", "blocks", "levels"), SIZES.values(), ids=SIZES)
def test_names_are_those_of_diffusers_converter(
    shapes: Callable[[], Shapes], blocks: int, levels: int
):
    """All names of the UNet and the autoencoder, and back."""
    unet, vae = part_of(shapes(), "unet"), part_of(shapes(), "vae")
    expected = diffusers_unet_names(unet, blocks)
    names = names_in_folder("unet", expected)
    assert {name: names.original(name) for name in expected} == expected
    assert len(expected) == len(unet) == 686
    back = unet_names_in_checkpoint(unet)
    assert {back.diffusers(name): name for name in unet} == expected
    expected = diffusers_vae_names(vae, levels)
    names = names_in_folder("vae", expected)
    tensors = {VAE + names.original(name): StoredTensor("F32", (1,), (1,), 0) for name in expected}
    renamed = [name.removeprefix(VAE) for name in original_names(tensors)]
    assert renamed == list(expected.values()) and len(renamed) == len(vae) == 248


def test_names_of_lora_layers_are_those_of_diffusers_converter():
    """Every layer of SD 1.x by kohya's name -> diffusers' name, by diffusers' own converter."""
    layers = layer_names({part: part_of(manifest(), part) for part in PREFIXES})
    unet = diffusers_unet_names(part_of(manifest(), "unet"), 2)
    names = [name for name in unet if UNET + unet[name] in set(layers.values())]
    assert len(names) == 282  # matrices and convolutions
    for name in names:
        module = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        file = {f"{module}.lora_{role}.weight": torch.ones(1, 1) for role in ("up", "down")}
        converted, _ = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(file)
        assert all(layer_named(key_of(key), layers) == UNET + unet[name] for key in converted)
        assert layers[module] == UNET + unet[name]


def key_of(name: str) -> str:
    """The layer that a LoRA's tensor belongs to."""
    match = KEY.fullmatch(name)
    assert match
    return match[1]


# ---- folders -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_folder(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as diffusers and transformers save it."""
    folder = tmp_path_factory.mktemp("diffusers")
    models = load_diffusers(tiny_path, "cpu", torch.float32)
    for part, model in zip(("text_encoder", "unet", "vae"), models):
        model.save_pretrained(folder / part)
    return folder


@pytest.mark.slow
def test_round_trip_with_diffusers(tiny_folder: Path, tiny_path: Path, tmp_path: Path):
    """The tensors are bit-equal, and the models' outputs are those of diffusers'."""
    conversion = convert(tiny_folder, tmp_path / "out.safetensors")
    weights, metadata = read(tmp_path / "out.safetensors")
    assert equal(weights, seeded_tensors(tiny_shapes()))
    assert conversion.nbytes == sum(value.nbytes for value in weights.values())
    facts = json.loads(metadata["minisd"])
    assert facts["unet_heads"] == 8 and facts["text_heads"] == 4 and facts["native_size"] == 512
    sd = minisd.load(tmp_path / "out.safetensors")
    text_encoder, unet, vae = load_diffusers(tiny_path, "cpu", torch.float32)
    rng = torch.Generator().manual_seed(0)
    x, image = torch.randn(1, 4, 8, 8, generator=rng), torch.rand(1, 3, 64, 64, generator=rng)
    tokens = sd.tokenizer(["a cat"])
    with torch.no_grad():
        states = text_encoder(tokens).last_hidden_state
        eps = unet(x, torch.tensor([500]), states).sample
        mean = vae.encode(image).latent_dist.mean
        decoded = vae.decode(x).sample
        assert torch.allclose(sd.text_encoder(tokens), states, rtol=0, atol=2e-5)
        assert torch.allclose(sd.unet(x, torch.tensor([500.0]), states), eps, rtol=0, atol=2e-5)
        assert torch.allclose(sd.vae.moments(image)[:, :4], mean, rtol=0, atol=2e-5)
        assert torch.allclose(sd.vae.decode(x * 0.18215), decoded, rtol=0, atol=2e-5)


def micro_in_diffusers_words() -> dict[str, Weights]:
    """The micro model's three state dicts under diffusers' names, and its matrices as there."""
    unet, vae, text = (part_of(micro(), part) for part in PREFIXES)
    names = unet_names_in_checkpoint(unet)
    table = diffusers_vae_names({name: tuple(value.shape) for name, value in vae.items()}, 2)
    vae_words = {new: vae[old] for new, old in table.items()}
    for name, value in vae_words.items():
        if "attentions" in name and value.ndim == 4:
            vae_words[name] = value[:, :, 0, 0]
    return {
        "unet": {names.diffusers(name): value for name, value in unet.items()},
        "vae": vae_words,
        "text_encoder": {f"text_model.{name}": value for name, value in text.items()},
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {"attention_head_dim": 8, "sample_size": 64},
    "vae": {"block_out_channels": [32, 32]},
    "text_encoder": {"num_attention_heads": 2},
}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
STEMS["text_encoder"] = "model"


def save_parts(
    folder: Path, form: str = "safetensors", change: Callable[[Weights], Weights] = dict
) -> Path:
    """A diffusers folder of the micro model."""
    for part, original in micro_in_diffusers_words().items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(CONFIGS[part]))
        weights, stem = change(original), folder / part / STEMS[part]
        if form == "safetensors":
            save_file(as_stored(weights), f"{stem}.safetensors")
        elif form == "fp16":
            half = {name: value.half() for name, value in as_stored(weights).items()}
            save_file(half, f"{stem}.fp16.safetensors")
        elif form == "bin":
            name = "pytorch_model" if part == "text_encoder" else STEMS[part]
            write(folder / part / f"{name}.bin", saved(weights))
        else:
            save_pieces(stem, as_stored(weights), "" if form == "pieces" else ".fp16")
    return folder


def as_stored(weights: Weights) -> Weights:
    return {name: value.contiguous() for name, value in weights.items()}


def save_pieces(stem: Path, weights: Weights, variant: str) -> None:
    """As diffusers saves a model of more than 10 GB: three files, and which has which tensor."""
    places = {}
    for i in range(3):
        piece = dict(list(weights.items())[i::3])
        file = f"{stem.name}{variant}-0000{i + 1}-of-00003.safetensors"
        save_file(piece, stem.with_name(file))
        places |= dict.fromkeys(piece, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    name = f"{stem.name}.safetensors.index{variant}.json"
    stem.with_name(name).write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["safetensors", "bin", "fp16", "pieces", "pieces, fp16"])
def test_forms_of_a_folder(form: str, tmp_path: Path):
    """They are converted, and loaded as they are unless they are in pieces."""
    folder = save_parts(tmp_path / "model", form)
    convert(folder, tmp_path / "out.safetensors")
    sd = minisd.load(tmp_path / "out.safetensors")
    if "pieces" in form:
        with pytest.raises(minisd.CheckpointError, match="unet/ is in 3 pieces: make one file of"):
            minisd.load(folder)
    else:
        direct = minisd.load(folder)
        for part in PREFIXES:
            states = (getattr(model, part).state_dict() for model in (sd, direct))
            assert equal(*states)
        assert direct.text_encoder.encoder.layers[0].self_attn.heads == 2
        assert direct.path == folder and direct.native_size == sd.native_size == 128
    weights, metadata = read(tmp_path / "out.safetensors")
    expected = micro()
    if form == "fp16":
        expected = {name: value.half() for name, value in expected.items()}
    assert equal(weights, expected)
    assert json.loads(metadata["minisd"])["text_heads"] == 2


def test_the_file_in_full_precision_is_preferred(tmp_path: Path):
    folder = save_parts(tmp_path / "model")
    for part, stem in STEMS.items():
        write(folder / part / f"{stem}.fp16.safetensors", b"")
    convert(folder, tmp_path / "out.safetensors")
    assert equal(read(tmp_path / "out.safetensors")[0], micro())


def test_older_names_in_the_autoencoder(tmp_path: Path):
    """Diffusers before 0.15 named the attention query, key, value and proj_attn."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: Weights) -> Weights:
        for new, old in older.items():
            middle = ("mid_block.attentions.0." + new, "mid_block.attentions.0." + old)
            is_vae = "quant_conv.weight" in weights
            weights = {n.replace(*middle) if is_vae else n: v for n, v in weights.items()}
        return weights

    folder = save_parts(tmp_path / "model", change=rename)
    convert(folder, tmp_path / "out.safetensors")
    assert equal(read(tmp_path / "out.safetensors")[0], micro())


def test_position_ids_are_kept(tmp_path: Path):
    ids = torch.arange(77)[None]

    def add(weights: Weights) -> Weights:
        is_text = any(name.startswith("text_model.") for name in weights)
        return weights | ({"text_model.embeddings.position_ids": ids} if is_text else {})

    convert(save_parts(tmp_path / "model", change=add), tmp_path / "out.safetensors")
    assert equal(read(tmp_path / "out.safetensors")[0], micro() | {POSITION_IDS: ids})


def test_v_prediction_is_marked(tmp_path: Path):
    """A folder for v-prediction becomes a checkpoint that says so in the ways that others read."""
    folder = save_parts(tmp_path / "model")
    (folder / "scheduler").mkdir()
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "out.safetensors")
    weights, metadata = read(tmp_path / "out.safetensors")
    assert weights["v_pred"].numel() == weights["ztsnr"].numel() == 0
    assert metadata["modelspec.prediction_type"] == "v"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sd = minisd.load(tmp_path / "out.safetensors")
        plain = minisd.load(write_micro(tmp_path))
        convert(tmp_path / "out.safetensors", tmp_path / "again.safetensors")
        direct = minisd.load(folder)
    assert read(tmp_path / "again.safetensors")[0].keys() == weights.keys()
    x, t, context = torch.ones(1, 4, 8, 8), torch.tensor([500.0]), torch.ones(1, 77, 12)
    assert not torch.allclose(sd.unet(x, t, context), plain.unet(x, t, context), atol=0.1)
    assert torch.equal(sd.unet(x, t, context), direct.unet(x, t, context))


def write_micro(folder: Path, **changes: torch.Tensor) -> Path:
    path = folder / "micro.safetensors"
    save_file(micro() | changes, path)
    return path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(source: Path, *loras: tuple[Path, float]) -> str:
    """The message, which must be one line and come soon; no file may be left."""
    out, start = source.parent / "refused.safetensors", time.process_time()
    before = set(source.parent.iterdir())
    with pytest.raises((minisd.CheckpointError, OSError)) as error:
        convert(source, out, loras=loras)
    assert set(source.parent.iterdir()) == before and time.process_time() - start < 2
    text = str(error.value)
    assert "\n" not in text and len(text) < 1200
    return text


@pytest.mark.parametrize(
    ("part", "key"), [(part, key) for part, keys in EXPECTED.items() for key in keys]
)
def test_a_configuration_of_another_model(part: str, key: str, tmp_path: Path):
    """The tensors are the same, but the pictures would be wrong."""
    folder = save_parts(tmp_path / "model")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(folder / part / name, **{key: "other"})
    message = f"{part}/ is configured with {key} = other, but SD 1.x has {EXPECTED[part][key]}"
    assert message in refusal(folder)


HEADS: list[Any] = [0, -1, 1.5, "8", True, [], [5, 10, 20, 20], 10**30, {}, [[8]]]


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_impossible_numbers_of_heads(heads: Any, tmp_path: Path):
    folder = save_parts(tmp_path / "model")
    edit(folder / "text_encoder/config.json", num_attention_heads=heads)
    assert "text_encoder/ is configured with" in refusal(folder)


def test_the_number_of_heads_for_each_level(tmp_path: Path):
    folder = save_parts(tmp_path / "model")
    edit(folder / "unet/config.json", attention_head_dim=[4, 4, 4, 4])
    convert(folder, tmp_path / "out.safetensors")
    sd = minisd.load(tmp_path / "out.safetensors")
    assert sd.unet.input_blocks[1][1].transformer_blocks[0].attn2.heads == 4


def test_the_prediction_type_sample(tmp_path: Path):
    folder = save_parts(tmp_path / "model")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text('{"prediction_type": "sample"}')
    assert "prediction_type = sample" in refusal(folder)


HOSTILE_JSON: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"import os",
    "a list": b"[]",
    "a number": b"1",
    "a huge number": b"9" * 10_000,
    "deep": b'{"a":' * 100_000,
    "deep and closed": b'{"act_fn":' + b"[" * 400 + b"]" * 400 + b"}",
    "NaN": b'{"attention_head_dim": NaN}',
    "Infinity": b'{"norm_eps": -Infinity}',
    "5 MB": b'{"a": "' + b"a" * (5 << 20) + b'"}',
    "not UTF-8": b'{"a": "\xff"}',
    "null": b"null",
    "terminal codes": b'{"act_fn": "\\u001b[2J\\n"}',
}


@pytest.mark.parametrize("data", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
@pytest.mark.parametrize("name", ["unet/config.json", "unet/STEM.safetensors.index.json"])
def test_hostile_json(name: str, data: bytes, tmp_path: Path):
    folder = save_parts(tmp_path / "model", "pieces")
    path = folder / name.replace("STEM", STEMS["unet"])
    write(path, data)
    assert f"{folder}: " in (text := refusal(folder)) and text.isprintable()


def test_what_is_missing_in_a_folder(tmp_path: Path):
    folder = save_parts(tmp_path / "model", "pieces")
    piece = folder / f"unet/{STEMS['unet']}-00002-of-00003.safetensors"
    data = piece.read_bytes()
    piece.unlink()
    assert f"unet/{piece.name} is missing: download it too" in refusal(folder)
    write(piece, data[:-10])
    assert f"unet/{piece.name}: damaged or cut short" in refusal(folder)
    write(piece, data)
    for config in folder.glob("*/config.json"):
        text = config.read_text()
        config.unlink()
        assert f"{config.parent.name}/config.json is missing" in refusal(folder)
        config.write_text(text)
    (folder / "vae").rename(folder / "autoencoder")
    assert "this folder has no vae/: minisd reads" in refusal(folder)
    (folder / "vae").mkdir()
    (folder / "vae/config.json").write_text("{}")
    assert "vae/ has no weights that minisd reads" in refusal(folder)
    (folder / "text_encoder_2").mkdir()
    assert "an SDXL model in the diffusers layout" in refusal(folder)
    assert "has no unet/ and no vae/ and no text_encoder/" in refusal(folder / "unet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_map": None}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"a": "../../secret.safetensors"}}, "a file that no model has"),
        ({"weight_map": {"a": "/etc/passwd"}}, "a file that no model has"),
        ({"weight_map": {"a": ""}}, "a file that no model has"),
        ({"weight_map": {"a": "."}}, "a file that no model has"),
        ({"weight_map": {"a": ".."}}, "a file that no model has"),
        ({"weight_map": {"a": 1}}, "1 is missing"),
        ({"weight_map": {"a": ["x"]}}, "a file that no model has"),
        ({"weight_map": {"a": "a\x00b"}}, "a file that no model has"),
        ({"weight_map": {"a": "a" * 5000}}, "a file that no model has"),
    ],
)
def test_a_wrong_index(change: dict[str, Any], message: str, tmp_path: Path):
    folder = save_parts(tmp_path / "model", "pieces")
    edit(folder / f"unet/{STEMS['unet']}.safetensors.index.json", **change)
    assert message in refusal(folder)


def test_an_index_that_names_another_file_for_a_tensor(tmp_path: Path):
    folder = save_parts(tmp_path / "model", "pieces")
    index = folder / f"unet/{STEMS['unet']}.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    name = min(places)
    places[name] = next(file for file in places.values() if file != places[name])
    edit(index, weight_map=places)
    assert f"disagree about {name}" in refusal(folder)


def test_every_tensor_is_given_once(tmp_path: Path):
    """One that is missing, unknown, or given under two names is an error that names it."""

    def without(weights: Weights) -> Weights:
        return {name: v for name, v in weights.items() if name != "conv_norm_out.weight"}

    def with_more(weights: Weights) -> Weights:
        is_unet = "conv_norm_out.weight" in weights
        return weights | ({"add_embedding.linear_1.weight": torch.ones(2, 2)} if is_unet else {})

    def twice(weights: Weights) -> Weights:
        name = "time_embedding.linear_1.weight"
        return weights | ({"time_embed.0.weight": weights[name].clone()} if name in weights else {})

    folder = save_parts(tmp_path / "a", change=without)
    assert f"missing {UNET}out.0.weight" in refusal(folder)
    folder = save_parts(tmp_path / "b", change=with_more)
    assert f"unknown {UNET}add_embedding.linear_1.weight" in refusal(folder)
    folder = save_parts(tmp_path / "c", change=twice)
    assert re.search(r"unet/ has time_embed.*0?\.weight under another name too", refusal(folder))


def test_a_pickle_in_a_folder_is_not_run(tmp_path: Path):
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return fire, ()

    folder = save_parts(tmp_path / "model", "bin")
    write(folder / "vae/diffusion_pytorch_model.bin", saved({"a": Payload()}))
    FIRED.clear()
    assert "vae/diffusion_pytorch_model.bin" in refusal(folder)


# ---- LoRA files ----------------------------------------------------------------------------------

# kohya's name of a layer, diffusers' name, and the checkpoint's, written down by hand.
LAYERS = [
    ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k",
     "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k",
     "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k"),
    ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0",
     "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
     "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_out.0"),
    ("lora_unet_up_blocks_2_attentions_0_transformer_blocks_0_ff_net_0_proj",
     "unet.up_blocks.2.attentions.0.transformer_blocks.0.ff.net.0.proj",
     "model.diffusion_model.output_blocks.6.1.transformer_blocks.0.ff.net.0.proj"),
    ("lora_unet_up_blocks_3_attentions_2_proj_in",
     "unet.up_blocks.3.attentions.2.proj_in",
     "model.diffusion_model.output_blocks.11.1.proj_in"),
    ("lora_unet_down_blocks_2_resnets_1_conv1",
     "unet.down_blocks.2.resnets.1.conv1",
     "model.diffusion_model.input_blocks.8.0.in_layers.2"),
    ("lora_unet_down_blocks_1_downsamplers_0_conv",
     "unet.down_blocks.1.downsamplers.0.conv",
     "model.diffusion_model.input_blocks.6.0.op"),
    ("lora_unet_up_blocks_0_upsamplers_0_conv",
     "unet.up_blocks.0.upsamplers.0.conv",
     "model.diffusion_model.output_blocks.2.1.conv"),
    ("lora_unet_up_blocks_1_upsamplers_0_conv",
     "unet.up_blocks.1.upsamplers.0.conv",
     "model.diffusion_model.output_blocks.5.2.conv"),
    ("lora_unet_up_blocks_1_resnets_2_time_emb_proj",
     "unet.up_blocks.1.resnets.2.time_emb_proj",
     "model.diffusion_model.output_blocks.5.0.emb_layers.1"),
    ("lora_unet_up_blocks_2_resnets_0_conv_shortcut",
     "unet.up_blocks.2.resnets.0.conv_shortcut",
     "model.diffusion_model.output_blocks.6.0.skip_connection"),
    ("lora_unet_conv_in", "unet.conv_in", "model.diffusion_model.input_blocks.0.0"),
    ("lora_unet_time_embedding_linear_2", "unet.time_embedding.linear_2",
     "model.diffusion_model.time_embed.2"),
    ("lora_te_text_model_encoder_layers_1_self_attn_out_proj",
     "text_encoder.text_model.encoder.layers.1.self_attn.out_proj",
     "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.out_proj"),
    ("lora_te_text_model_encoder_layers_0_mlp_fc2",
     "text_encoder.text_model.encoder.layers.0.mlp.fc2",
     "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc2"),
]  # fmt: skip
RANK, ALPHA = 4, 3.0


def matrices(seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's up and down, by the checkpoint's name of the layer."""
    rng, shapes = torch.Generator().manual_seed(seed), tiny_shapes()
    pairs = {}
    for *_, layer in LAYERS:
        shape = shapes[f"{layer}.weight"]
        ones = (1,) * len(shape[2:])
        up = 0.1 * torch.randn(shape[0], RANK, *ones, generator=rng)
        pairs[layer] = up, 0.1 * torch.randn(RANK, *shape[1:], generator=rng)
    return pairs


def kohya(pairs: dict[str, Any], alpha: bool = True, te: str = "lora_te_") -> Weights:
    file = {}
    for te_name, _, layer in LAYERS:
        name = te_name.replace("lora_te_", te)
        file[f"{name}.lora_up.weight"], file[f"{name}.lora_down.weight"] = pairs[layer]
        if alpha:
            file[f"{name}.alpha"] = torch.tensor(ALPHA)
    return file


def peft(pairs: dict[str, Any], up: str = "lora_B", down: str = "lora_A") -> Weights:
    file = {}
    for _, name, layer in LAYERS:
        file[f"{name}.{up}.weight"], file[f"{name}.{down}.weight"] = pairs[layer]
    return file


def newer_diffusers(pairs: dict[str, Any]) -> Weights:
    file = peft(pairs, "lora.up", "lora.down")
    text = ("text_encoder.", ".lora.", ".lora_linear_layer.")
    return {n.replace(*text[1:]) if n.startswith(text[0]) else n: v for n, v in file.items()}


def old_diffusers(pairs: dict[str, Any]) -> Weights:
    """Attention processors in the UNet, and to_q in the text encoder: diffusers 0.20."""
    replaced = [
        (r"(attn[12])\.(to_[qkv])\.lora", r"\1.processor.\2_lora"),
        (r"(attn[12])\.to_out\.0\.lora", r"\1.processor.to_out_lora"),
        (r"self_attn\.(q|k|v|out)_proj\.lora", r"self_attn.to_\1_lora"),
        (r"mlp\.(fc[12])\.lora", r"mlp.\1.lora_linear_layer"),
    ]
    file = peft(pairs, "lora.up", "lora.down")
    for old, new in replaced:
        file = {re.sub(old, new, name): value for name, value in file.items()}
    return file


def with_original_names(pairs: dict[str, Any]) -> Weights:
    file = {}
    for *_, layer in LAYERS:
        name = layer.replace(UNET, "lora_unet_").replace(TEXT, "lora_te_").replace(".", "_")
        file[f"{name}.lora_up.weight"], file[f"{name}.lora_down.weight"] = pairs[layer]
    return file


def merged_by_hand(scale: float, pairs: dict[str, Any], weights: Weights) -> Weights:
    """W + scale * up @ down in float64, for convolutions too, by einsum."""
    result = dict(weights)
    for layer, (up, down) in pairs.items():
        change = torch.einsum("or,r...->o...", up.double().flatten(1), down.double())
        weight = weights[f"{layer}.weight"].double()
        result[f"{layer}.weight"] = (weight + scale * change.reshape(weight.shape)).float()
    return result


def assert_close(a: Weights, b: Weights, touched: set[str]) -> None:
    """Equal bits where no LoRA is, float32's rounding elsewhere."""
    assert a.keys() == b.keys()
    for name in a:
        if name.removesuffix(".weight") in touched:
            assert torch.allclose(a[name], b[name], rtol=1e-6, atol=2e-7), name
        else:
            assert torch.equal(a[name], b[name]), name


LORAS: dict[str, tuple[Callable[[dict[str, Any]], Weights], float]] = {
    "kohya": (kohya, ALPHA / RANK),
    "kohya, one text encoder of two": (lambda m: kohya(m, te="lora_te1_"), ALPHA / RANK),
    "kohya, without alpha": (lambda m: kohya(m, alpha=False), 1.0),
    "PEFT": (peft, 1.0),
    "PEFT, default": (lambda m: peft(m, "lora_B.default", "lora_A.default"), 1.0),
    "diffusers 0.22": (newer_diffusers, 1.0),
    "diffusers 0.20": (old_diffusers, 1.0),
    "original names": (with_original_names, 1.0),
}


@pytest.mark.parametrize(("names", "scale"), LORAS.values(), ids=LORAS)
def test_lora(
    names: Callable[[dict[str, Any]], Weights], scale: float, tiny_path: Path, tmp_path: Path
):
    """Linear layers, convolutions of 1x1 and 3x3, in the UNet and the text encoder."""
    pairs = matrices()
    save_file(names(pairs), tmp_path / "style.safetensors")
    convert(tiny_path, tmp_path / "out.safetensors", loras=[(tmp_path / "style.safetensors", 0.8)])
    weights, metadata = read(tmp_path / "out.safetensors")
    expected = merged_by_hand(0.8 * scale, pairs, seeded_tensors(tiny_shapes()))
    assert_close(weights, expected, set(pairs))
    facts = json.loads(metadata["minisd"])
    assert facts["name"] == "tiny" and facts["unet_heads"] == 8
    (lora,) = facts["loras"]
    assert (lora["file"], lora["weight"]) == ("style.safetensors", 0.8) and len(
        lora["sha256"]
    ) == 64


def style(folder: Path, file: Weights, metadata: dict[str, str] | None = None) -> Path:
    path = folder / "style.safetensors"
    save_file(file, path, metadata)
    return path


def small_lora(**more: torch.Tensor) -> Weights:
    """For the micro model: one layer of the UNet (32, 32)."""
    return {
        f"{QUERY}.lora_up.weight": torch.full((32, 2), 0.5),
        f"{QUERY}.lora_down.weight": torch.full((2, 32), 0.25),
        **more,
    }


QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
QUERY_LAYER = UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


def test_lora_of_training_in_torch_files(tmp_path: Path):
    """A .pt file, and alpha as a whole number."""
    alpha = {f"{QUERY}.alpha": torch.tensor(1)}
    path = write(tmp_path / "style.pt", saved(small_lora(**alpha)))
    convert(write_micro(tmp_path), tmp_path / "out.safetensors", loras=[(path, 1)])
    weights = read(tmp_path / "out.safetensors")[0]
    assert torch.equal(weights[QUERY_LAYER], micro()[QUERY_LAYER] + 0.5 * 0.25)


def test_several_lora_files(tmp_path: Path):
    """Their changes add up, negative weights too, and the result is rounded once."""
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for i, path in enumerate(paths):
        save_file({name: (i + 1) * value for name, value in small_lora().items()}, path)
    half = {name: value.half() for name, value in micro().items()}
    save_file(half, tmp_path / "half.safetensors")
    loras = [(paths[0], 0.1), (paths[1], -0.7)]
    convert(tmp_path / "half.safetensors", tmp_path / "out.safetensors", loras=loras)
    weights, metadata = read(tmp_path / "out.safetensors")
    expected = half[QUERY_LAYER].float() + 0.1 * 0.25 - 0.7 * 4 * 0.25
    assert torch.equal(weights[QUERY_LAYER], expected.half())
    assert equal(weights | {QUERY_LAYER: half[QUERY_LAYER]}, half)
    # A second conversion adds to the record.
    last = tmp_path / "last.safetensors"
    convert(tmp_path / "out.safetensors", last, loras=[(paths[0], 1)], dtype=torch.bfloat16)
    weights, metadata = read(last)
    expected = (weights[QUERY_LAYER].dtype, [0.1, -0.7, 1.0])
    records = json.loads(metadata["minisd"])["loras"]
    assert expected == (torch.bfloat16, [record["weight"] for record in records])


def test_lora_in_another_shape(tmp_path: Path):
    """A matrix for a convolution of one pixel, and the reverse, are the same numbers."""
    conv = "lora_unet_down_blocks_0_attentions_0_proj_in"
    file = {name.replace(QUERY, conv): value for name, value in small_lora().items()}
    pixel = {key: value[..., None, None] for key, value in small_lora().items()}
    save_file(file | pixel, tmp_path / "style.safetensors")
    loras = [(tmp_path / "style.safetensors", 1)]
    convert(write_micro(tmp_path), tmp_path / "out.safetensors", loras=loras)
    weights = read(tmp_path / "out.safetensors")[0]
    for layer in (QUERY_LAYER, UNET + "input_blocks.1.1.proj_in.weight"):
        assert torch.equal(weights[layer], micro()[layer] + 0.25)


PEFT_QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("config", "change"),
    [
        ({}, 0.25),
        ({"unet.lora_alpha": 8}, 1.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 4}}, 0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"1.to_q": 4, PEFT_QUERY: 1}}, 0.125),
        ({"text_encoder.lora_alpha": 8}, 0.25),
    ],
)
def test_alpha_in_metadata(config: dict[str, Any], change: float, tmp_path: Path):
    """As diffusers' save_lora_weights writes it."""
    values = small_lora().values()
    names = (f"unet.{PEFT_QUERY}.lora_{role}.weight" for role in "BA")
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    path = style(tmp_path, dict(zip(names, values)), metadata if config else None)
    convert(write_micro(tmp_path), tmp_path / "out.safetensors", loras=[(path, 1)])
    weights = read(tmp_path / "out.safetensors")[0]
    assert torch.equal(weights[QUERY_LAYER], micro()[QUERY_LAYER] + change)


def test_alpha_beside_the_file(tmp_path: Path):
    """PEFT's own files need adapter_config.json: without it, the scale is unknown."""
    names = (f"base_model.model.{PEFT_QUERY}.lora_{role}.weight" for role in "BA")
    path = style(tmp_path, dict(zip(names, small_lora().values())))
    source = write_micro(tmp_path)
    assert "adapter_config.json is missing" in refusal(source, (path, 1))
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 16}')
    convert(source, tmp_path / "out.safetensors", loras=[(path, 1)])
    weights = read(tmp_path / "out.safetensors")[0]
    assert torch.equal(weights[QUERY_LAYER], micro()[QUERY_LAYER] + 2)
    for key in ("use_dora", "use_rslora"):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 1, key: True}))
        assert f"a LoRA with {key}" in refusal(source, (path, 1))


OTHER_FILES: dict[str, tuple[Weights, str]] = {
    "DoRA of kohya": (small_lora(**{f"{QUERY}.dora_scale": torch.ones(1, 32)}), "DoRA"),
    "DoRA of PEFT": (
        {f"unet.{PEFT_QUERY}.lora_magnitude_vector": torch.ones(32)}, "the form DoRA"),
    "LoHa": ({f"{QUERY}.hada_w1_a": torch.ones(32, 2)}, "the form LoHa"),
    "LoKr": ({f"{QUERY}.lokr_w1": torch.ones(4, 4)}, "the form LoKr"),
    "OFT": ({f"{QUERY}.oft_blocks": torch.ones(4, 4)}, "the form OFT"),
    "BOFT": ({f"{QUERY}.boft_blocks": torch.ones(4, 4)}, "the form OFT"),
    "GLoRA": ({f"{QUERY}.a1.weight": torch.ones(4, 4)}, "the form GLoRA"),
    "IA3": ({f"{QUERY}.on_input": torch.ones(1)}, "the form IA3"),
    "LoCon, Tucker": (small_lora(**{f"{QUERY}.lora_mid.weight": torch.ones(2, 2, 1, 1)}), "LoCon"),
    "full": ({f"{QUERY}.diff": torch.ones(32, 32)}, "LyCORIS"),
    "full, norms": ({"lora_unet_conv_norm_out.w_norm": torch.ones(32)}, "LyCORIS"),
    "biases": (small_lora(**{f"{QUERY}.lora_up.bias": torch.ones(32)}), "changes of biases"),
    "embeddings": ({"text_encoder.x.lora_embedding_A": torch.ones(2, 32)}, "embeddings"),
    "SDXL, text": (small_lora(**{"lora_te2_x.lora_up.weight": torch.ones(1, 1)}), "for SDXL"),
    "SDXL, UNet": ({"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_up.weight":
        torch.ones(1, 1)}, "for SDXL"),
    "SDXL, PEFT": ({f"unet.{PEFT_QUERY.replace('blocks.0.attn', 'blocks.9.attn')}.lora_A.weight":
        torch.ones(1, 1)}, "for SDXL"),
    "Flux": ({"lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(1, 1)}, "Flux"),
    "Flux, PEFT": ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight":
        torch.ones(1, 1)}, "Flux"),
    "textual inversion": (small_lora(**{"bundle_emb.x.string_to_param.*": torch.ones(1, 8)}),
        "textual inversions"),
    "SD 2": ({f"{QUERY.replace('attn1_to_q', 'attn2_to_k')}.lora_{role}.weight": value
        for role, value in (("up", torch.ones(32, 2)), ("down", torch.ones(2, 1024)))},
        "do not fit (32, 12): is it for another model?"),
    "no such layer": ({f"{QUERY}_x.lora_up.weight": torch.ones(1, 1)}, "has no layer for"),
    "a checkpoint": (micro(), "is not a tensor of a LoRA"),
    "no down": ({f"{QUERY}.lora_up.weight": torch.ones(32, 2)}, "has no lora_down.weight"),
    "no up": ({f"{QUERY}.lora_down.weight": torch.ones(2, 32)}, "has no lora_up.weight"),
    "alpha alone": ({f"{QUERY}.alpha": torch.ones(())}, "has no lora_up.weight"),
    "two names": (small_lora(**{f"unet.{PEFT_QUERY}.lora_B.weight": torch.ones(32, 2)}),
        "under another name too"),
    "two ranks": (small_lora(**{f"{QUERY}.lora_down.weight": torch.ones(3, 32)}), "do not fit"),
    "rank 0": (small_lora(**{f"{QUERY}.lora_down.weight": torch.ones(0, 32),
        f"{QUERY}.lora_up.weight": torch.ones(32, 0)}), "do not fit"),
    "a scalar": (small_lora(**{f"{QUERY}.lora_down.weight": torch.ones(())}), "do not fit"),
    "integers": (small_lora(**{f"{QUERY}.lora_up.weight": torch.ones(32, 2).char()}),
        "is stored as I8"),
    "a long name": ({"lora" * 500_000 + ".lora_up.weight": torch.ones(2)}, "has no layer for lora"),
    "alpha of two": (small_lora(**{f"{QUERY}.alpha": torch.ones(2)}), "alpha has the shape (2,)"),
    **{f"alpha {x}": (small_lora(**{f"{QUERY}.alpha": torch.tensor(x)}), "a positive number")
       for x in (0.0, -1.0, math.nan, math.inf, True)},
    "NaN": (small_lora(**{f"{QUERY}.lora_up.weight": torch.full((32, 2), math.nan)}),
        f"{QUERY_LAYER} would hold NaN or Inf"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "message"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_forms_are_refused_by_name(file: Weights, message: str, tmp_path: Path):
    assert message in refusal(write_micro(tmp_path), (style(tmp_path, file), 1))


HOSTILE_CONFIGS: dict[str, str] = {
    "not JSON": "{",
    "deep": '{"a":' * 100_000,
    "NaN": '{"unet.lora_alpha": NaN}',
    "a text": '{"unet.lora_alpha": "1"}',
    "a list": '{"unet.lora_alpha": [1]}',
    "null": '{"unet.lora_alpha": null}',
    "zero": '{"unet.lora_alpha": 0}',
    "too large": '{"unet.lora_alpha": 1e999}',
    "a huge whole number": '{"unet.lora_alpha": 1%s}' % ("0" * 400),
    "a pattern that takes forever": '{"unet.alpha_pattern": {"(a+)+$": 1}}',
    "patterns in a list": '{"unet.alpha_pattern": ["a"]}',
    "DoRA": '{"unet.use_dora": true}',
    "another scale": '{"unet.use_rslora": true}',
}


@pytest.mark.parametrize("text", HOSTILE_CONFIGS.values(), ids=HOSTILE_CONFIGS)
def test_hostile_metadata_of_a_lora(text: str, tmp_path: Path):
    names = (f"unet.{PEFT_QUERY}.lora_{role}.weight" for role in "BA")
    file = dict(zip(names, small_lora().values()))
    path = style(tmp_path, file, {"lora_adapter_metadata": text})
    assert f"{path}: " in refusal(write_micro(tmp_path), (path, 1))


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(stored: torch.dtype, dtype: torch.dtype | None, tmp_path: Path):
    """A .ckpt becomes .safetensors, each number rounded once."""
    weights = {name: value.to(stored) for name, value in micro().items()}
    path = write(tmp_path / "model.ckpt", saved({"state_dict": weights, "global_step": 7}))
    convert(path, tmp_path / "out.safetensors", dtype=dtype)
    new = dtype or (torch.float32 if stored == torch.float64 else stored)
    expected = {name: value.to(new) for name, value in weights.items()}
    assert equal(read(tmp_path / "out.safetensors")[0], expected)


def test_leftovers_go_and_the_schedule_stays(tmp_path: Path):
    beside = {"betas": torch.rand(1000, dtype=torch.float64), POSITION_IDS: torch.arange(77)[None]}
    weights = micro() | {"model_ema.decay": torch.ones(()), "loss.x": torch.ones(2)}
    path = write(tmp_path / "model.ckpt", saved(weights | beside))
    with pytest.warns(UserWarning, match="ignored"):
        convert(path, tmp_path / "out.safetensors", dtype=torch.float16)
    new, _ = read(tmp_path / "out.safetensors")
    assert equal(new, {name: value.half() for name, value in micro().items()} | beside)
    assert equal(new, load_file(tmp_path / "out.safetensors"))


def test_metadata(tmp_path: Path):
    """Descriptions stay, hashes of other numbers go, and bytes that are not text do no harm."""
    metadata = {"modelspec.title": "T", "modelspec.hash_sha256": "0x1", "sshs_model_hash": "1"}
    save_file(micro(), tmp_path / "caf\udce9.safetensors", metadata | {"minisd": '{"name": "M"}'})
    convert(tmp_path / "caf\udce9.safetensors", tmp_path / "out.safetensors")
    _, metadata = read(tmp_path / "out.safetensors")
    assert metadata.keys() == {"modelspec.title", "format", "minisd"}
    assert json.loads(metadata["minisd"])["name"] == "M"
    assert minisd.load(tmp_path / "out.safetensors").name == "M"


def test_numbers_that_a_type_cannot_hold(tmp_path: Path):
    source = write_micro(tmp_path, **{QUERY_LAYER: torch.full((32, 32), 1e6)})
    with pytest.raises(minisd.CheckpointError, match="would hold NaN or Inf as F16"):
        convert(source, tmp_path / "out.safetensors", dtype=torch.float16)
    assert not (tmp_path / "out.safetensors").exists()


# ---- writing -------------------------------------------------------------------------------------


def test_an_existing_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = write_micro(tmp_path)
    out = write(tmp_path / "out.safetensors", b"mine")
    with pytest.raises(FileExistsError):
        convert(source, out)
    assert main(["convert", str(source), str(out)]) == 2
    assert main(["convert", str(source), str(source)]) == 2
    assert main(["convert", str(source), str(tmp_path / "out.ckpt")]) == 2
    assert main(["convert", str(source), str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    messages = ["exists already", "is read by this command", "should end in", "is a folder"]
    assert len(lines) == 4 and all(m in line for m, line in zip(messages, lines, strict=True))
    assert out.read_bytes() == b"mine" and equal(load_file(source), micro())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["micro.safetensors", out.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_an_interruption_leaves_nothing(error: type[BaseException], tmp_path: Path):
    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise error

    source = write_micro(tmp_path)
    with pytest.raises(error):
        convert(source, tmp_path / "out.safetensors", progress=stop)
    assert list(tmp_path.iterdir()) == [source]


FULL_DISK = """
import resource, sys
from minisd.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
sys.exit(main(["convert", "micro.safetensors", "out.safetensors"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux")
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_micro(tmp_path)
    words = [sys.executable, "-c", FULL_DISK]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "could not write out.safetensors: File too" in done.stderr
    assert list(tmp_path.iterdir()) == [source]
    # A disk that is too small is known before anything is written.
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 1_000_000}))
    with pytest.raises(OSError, match=r"needs 0\.00 GB, and the disk has 0\.00 GB left"):
        convert(source, tmp_path / "out.safetensors")


def test_progress_and_order(tmp_path: Path):
    """Every tensor begins at a multiple of its type's size, so that it can be mapped."""
    steps: list[tuple[int, int]] = []
    mixed = {n: value if value.ndim == 1 else value.half() for n, value in micro().items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    source, out = tmp_path / "mixed.safetensors", tmp_path / "out.safetensors"
    conversion = convert(source, out, progress=lambda *step: steps.append(step))
    size = sum(value.nbytes for value in mixed.values())
    assert steps[-1] == (size, size) and steps == sorted(steps) and conversion.nbytes == size
    data = out.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    for entry in header.values():
        begin = 8 + length + entry["data_offsets"][0]
        assert begin % {"F32": 4, "F16": 2}[entry["dtype"]] == 0
    assert len(data) == 8 + length + size and equal(load_file(out), mixed)


# ---- the command ---------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    source, path = write_micro(tmp_path), style(tmp_path, small_lora())
    other = tmp_path / "a:b.safetensors"
    save_file(small_lora(), other)
    out = tmp_path / "new" / "out.safetensors"
    words = ["convert", str(source), str(out), "--dtype", "float16"]
    assert main([*words, "--lora", f"{path}:0.5", "--lora", str(other)]) == 0
    printed = capsys.readouterr().out
    assert "merged style.safetensors: weight 0.5, 1 layer\n" in printed
    assert "merged a:b.safetensors: weight 1, 1 layer\n" in printed
    assert f"wrote {out}: " in printed and "(F16)" in printed
    weights, metadata = read(out)
    expected = (micro()[QUERY_LAYER] + 1.5 * 0.25).half()
    assert torch.allclose(weights[QUERY_LAYER].float(), expected.float(), atol=1e-3)
    assert [lora["weight"] for lora in json.loads(metadata["minisd"])["loras"]] == [0.5, 1.0]
    (tmp_path / "more").mkdir()
    for words in (["--lora", f"{path}:nan"], ["--lora", f"{path}:1e999"]):
        with pytest.raises(SystemExit):
            main(["convert", str(source), str(tmp_path / "x.safetensors"), *words])
        assert "is not a finite number" in capsys.readouterr().err
    drawn = ["txt2img", "a cat", "-s1", "-W64", "-H64", "--model", str(save_parts(tmp_path / "f"))]
    assert main([*drawn, "-o", str(tmp_path / "pictures")]) == 0
    assert "model: SD 1.x (f), float32 on cpu" in capsys.readouterr().out
    for words in (["--lora", f"{path}:x"], ["--lora", "missing.safetensors:0.8"]):
        assert main(["convert", str(source), str(tmp_path / "x.safetensors"), *words]) == 2
        assert "No such file" in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "none/x.safetensors")]) == 2
    assert "this is a LoRA" in capsys.readouterr().err and not (tmp_path / "none").exists()
