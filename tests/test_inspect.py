"""`minisd inspect`: what it says of a file's names, metadata and numbers."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import minisd
from minisd.checkpoint import POSITION_IDS, PREFIXES
from minisd.cli.main import main
from minisd.files import sha256

from .hostile_files import FIRST, call, micro, safetensors_bytes, saved, spliced, write
from .test_convert import save_parts
from .test_file_states import averages

NORM = "first_stage_model.decoder.norm_out.weight"


def test_hashes(tmp_path: Path):
    data = safetensors_bytes(micro())
    path = write(tmp_path / "model.safetensors", data)
    header = 8 + int.from_bytes(data[:8], "little")
    first = hashlib.sha256(data[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8]
    assert minisd.inspect(path).hashes == {"AutoV1": first}
    digest = hashlib.sha256(data).hexdigest()
    assert minisd.inspect(path, numbers=True).hashes == {
        "AutoV1": first,
        "SHA-256": digest,
        "AutoV2": digest[:10],
        "AutoV3": hashlib.sha256(data[header:]).hexdigest()[:12],
    }


def test_numbers(tmp_path: Path):
    weights = {**micro(), **averages(micro())}
    weights[FIRST] = torch.zeros(128, 32)
    weights[NORM] = torch.full_like(weights[NORM], torch.nan)
    weights["first_stage_model.decoder.norm_out.bias"] = torch.full_like(weights[NORM], 1e5)
    result = minisd.inspect(write(tmp_path / "model.ckpt", saved(weights)), numbers=True)
    assert (result.zero, result.not_finite) == ([FIRST], [NORM])
    assert result.too_large == ["first_stage_model.decoder.norm_out.bias"]
    unet = {n: t for n, t in weights.items() if n.startswith("model.diffusion_model.")}
    change = sum((micro()[n] + 1 - t).square().sum() for n, t in unet.items())
    distance = (change / sum(t.square().sum() for t in unet.values())) ** 0.5
    assert result.average_distance == pytest.approx(float(distance), rel=1e-4)
    assert result.averages == len(unet)
    assert any("NaN" in text for text in result.differences)


def test_position_ids(tmp_path: Path):
    """A merge in half precision makes 41 of 40.97: programs that round down read row 40."""
    ids = torch.arange(77.0)[None]
    right = write(tmp_path / "a.ckpt", saved({**micro(), POSITION_IDS: ids.half()}))
    assert minisd.inspect(right).position_ids == "right"
    ids[0, 41] = 40.97
    wrong = write(tmp_path / "b.ckpt", saved({**micro(), POSITION_IDS: ids}))
    assert minisd.inspect(wrong).position_ids == "wrong at 1 of 77: 40 for 41"
    assert any("AUTOMATIC1111" in text for text in minisd.inspect(wrong).differences)


def test_training(tmp_path: Path):
    values = {"global_step": 470000, "epoch": 6, "state_dict": micro()}
    result = minisd.inspect(write(tmp_path / "model.ckpt", saved(values)))
    assert result.training == {"global_step": "470000", "epoch": "6"}


def test_no_model_is_built(tiny_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("a model was built"))
    assert minisd.inspect(tiny_path).sentence == "This is an SD 1.x checkpoint, in float32."


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = safetensors_bytes(micro(), metadata={"modelspec.title": "a\x1b[2J"})
    path = str(write(tmp_path / "model.safetensors", data))
    assert main(["inspect", path, "--numbers"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("This is an SD 1.x checkpoint, in float32.\n") and "\x1b" not in text
    assert main(["inspect", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"] == {"modelspec.title": "a\x1b[2J"}


def test_a_hostile_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    canary = tmp_path / "canary"
    path = write(tmp_path / "model.ckpt", spliced(call("os.system", f"touch {canary}")))
    assert main(["inspect", str(path)]) == 2
    message = capsys.readouterr().err
    assert "asks to run os.system" in message and message.count("\n") == 1
    assert not canary.exists()


# ---- folders and other kinds ---------------------------------------------------------------------


def test_a_folder(tmp_path: Path):
    folder = save_parts(tmp_path / "model", "fp16")
    (folder / "scheduler").mkdir()
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    result = minisd.inspect(folder, numbers=True)
    assert (result.format, result.kind) == ("diffusers folder", "an SD 1.x checkpoint")
    assert result.sentence == "This is an SD 1.x checkpoint that predicts v, in float16."
    assert result.prediction_source == "the metadata modelspec.prediction_type"
    assert result.schedule.endswith("(zero terminal SNR)")
    counts = {part: sum(name.startswith(p) for name in micro()) for part, p in PREFIXES.items()}
    assert {name: part.tensors for name, part in result.parts.items()} == counts
    files = sorted(folder.glob("*/*.safetensors"))
    assert result.size == sum(file.stat().st_size for file in files)
    digests = {f"SHA-256 of {f.relative_to(folder)}": sha256(f) for f in files}
    assert result.hashes == digests and len(digests) == 3
    (folder / "vae/config.json").unlink()
    with pytest.raises(minisd.CheckpointError, match=r"config\.json is missing"):
        minisd.inspect(folder)


def test_the_command_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = save_parts(tmp_path / "model")
    assert main(["inspect", str(folder), "--numbers"]) == 0
    text = capsys.readouterr().out
    assert "diffusers folder, " in text and "(SHA-256 of unet/diffusion_pytorch_model" in text
    (folder / "vae").rename(tmp_path / "vae")
    assert main(["inspect", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "this folder has no vae/" in message and message.count("\n") == 1


KINDS = {
    "a textual inversion embedding": {"string_to_param": {"*": torch.zeros(1, 768)}, "step": 3},
    "a LoRA": {"lora_unet_mid_block.lora_up.weight": torch.zeros(4, 4)},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": torch.zeros(4)},
    "an SDXL checkpoint": {"conditioner.embedders.0.transformer.x": torch.zeros(4)},
    "an SD 2.x checkpoint": {"cond_stage_model.model.transformer.x": torch.zeros(4)},
    "an autoencoder alone": {"decoder.up.0.block.0.conv1.weight": torch.zeros(4)},
    "a UNet in the diffusers layout": {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(4)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_named(kind: str, tmp_path: Path):
    result = minisd.inspect(write(tmp_path / "file.pt", saved(KINDS[kind])), numbers=True)
    assert result.kind.startswith(kind) and result.reason
    assert result.sentence.startswith(f"This is {kind}") and "does not load" in result.sentence


def test_a_hostile_folder(tmp_path: Path):
    """A pickle in a folder is read as one in a file; nothing of it is run."""
    folder, canary = save_parts(tmp_path / "model"), tmp_path / "canary"
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    data = spliced(call("os.system", f"touch {canary}"))
    write(folder / "vae" / "diffusion_pytorch_model.bin", data)
    for read in (minisd.inspect, minisd.load, lambda path: minisd.load(vae=path)):
        with pytest.raises(minisd.CheckpointError, match=r"asks to run os\.system") as error:
            read(folder)
        assert "\n" not in str(error.value)
    assert not canary.exists()
