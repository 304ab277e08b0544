"""What a GPU changes, as far as it shows without one. bench/gpu.py runs on a real one."""

import argparse
import json

import pytest
import torch
from safetensors import safe_open

from bench import gpu
from minisd.cli.studio import load_model
from minisd.cli.switches import add_model_switches

from .conftest import golden


def test_float32_of_the_command_line_is_float32(monkeypatch):
    """PyTorch's default on a GPU is TF32 in convolutions, 1e-3 away from float32 in each call."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    parser = argparse.ArgumentParser()
    add_model_switches(parser)
    load_model(parser.parse_args(["--device", "cpu"]))
    assert not torch.backends.cudnn.allow_tf32


def test_noise_of_the_bench(tmp_path):
    """The part that makes tests/golden/cuda_noise.safetensors, with the CPU's own generator."""
    gpu.main(["--device", "cpu", "--parts", "noise", "--out", str(tmp_path)])
    with safe_open(tmp_path / "cuda_noise.safetensors", "pt") as file:
        drawn = file.get_tensor("1x4x64x64.42.1")
        hashes = json.loads(file.metadata()["sha256"])
    rng = torch.Generator().manual_seed(42)
    assert torch.equal(drawn, torch.randn(1, 4, 64, 64, generator=rng).flatten())
    assert len(hashes) == 16 * 4 * 2
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [result["name"] for result in results] == ["machine", "noise", "noise.seconds"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_gpu_draws_16_bits_by_rounding(dtype):
    values, _ = golden("cuda_noise")
    rounded = values["1x4x64x64.42.1"][:1024].to(getattr(torch, dtype))
    assert torch.equal(values[f"1x4x64x64.42.1.{dtype}"], rounded)
