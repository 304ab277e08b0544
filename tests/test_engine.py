"""minisd.fast.use_openvino: the numbers of another engine, its files, and what it refuses."""

import copy
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd import fast
from minisd.checkpoint.training_schedule import TrainingSchedule
from minisd.checkpoint.v_prediction import VPredictionUNet
from minisd.cli.main import main
from minisd.fast import openvino as engine
from minisd.observe.attention_maps import AttentionMaps
from minisd.observe.ledger import Ledger
from minisd.observe.trace import Trace
from minisd.observe.watch import together

from .conftest import golden
from .small_model import small_model
from .test_golden import CALL, assert_close

# It is not imported here: see test_the_import_sends_nothing.
pytestmark = pytest.mark.skipif(
    find_spec("openvino") is None, reason="needs openvino: pip install '.[openvino]'"
)

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (16, 16, 3), np.uint8))
# Rounding of a call, and of a run of a few steps: another order of sums in float32.
ROUNDING, OF_RUN = 1e-5, 1e-4
# OpenVINO adds up all numbers of a GroupNorm's group in one float32: 3e-5 in the encoder, whose
# first groups are the largest (5e-5 for a picture of 384x384 at SD 1.x's size).
ENCODER = 5e-5


def apart(a, b):
    """The largest difference, as a share of the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def inputs(sd, batch=2, side=8, same=False, seed=1):
    x = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(seed))
    words = torch.cat([sd.text_states(word) for word in ("", "fire", "water", "tea")])
    return x[:1].repeat(batch, 1, 1, 1) if same else x, torch.full((batch,), 701.5), words[:batch]


PLAIN = small_model()


def fresh():
    """A model whose networks a test may change."""
    return replace(PLAIN, unet=copy.deepcopy(PLAIN.unet), vae=copy.deepcopy(PLAIN.vae))


@pytest.fixture(scope="module")
def plain():
    return PLAIN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def compiled(folder):
    sd = fresh()
    fast.use_openvino(sd, folder=folder)
    return sd


@pytest.fixture
def used(tmp_path):
    """A function that makes a decoder with the engine, in one folder, and returns its lines."""

    def use(sd=None, size=8):
        sd, lines = sd or fresh(), []
        fast.use_openvino(sd, lines.append, tmp_path)
        result = sd.vae.decode(torch.ones(1, 4, size, size))
        return [line.split()[1] for line in lines], result

    return use


# ---- the numbers ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_golden_values(tiny_path, folder):
    """The values of the original implementations, within the tolerances for PyTorch."""
    sd, (values, _) = minisd.load(tiny_path), golden("tiny")
    fast.use_openvino(sd, folder=folder)
    eps = sd.unet(values["unet.x"], values["unet.t"], values["unet.context"])
    assert_close(eps, values["unet.eps"], CALL)
    assert_close(sd.vae.moments(values["vae.image"]), values["vae.moments"], ENCODER)
    assert_close(sd.vae.decode(0.18215 * values["vae.latent"]), values["vae.decoded"], CALL)


@pytest.mark.parametrize(("batch", "same"), [(2, True), (2, False), (3, True)])
def test_batches_and_halves(plain, compiled, batch, same):
    call = inputs(plain, batch, same=same)
    assert apart(compiled.unet(*call), plain.unet(*call)) <= ROUNDING


@pytest.mark.slow
def test_bfloat16_is_as_exact_as_torchs(folder):
    """At this size there are layers of as many places as heads, which OpenVINO would mix up."""
    exact, torchs, compiled = (fresh() for _ in range(3))
    for sd in (torchs, compiled):
        sd.unet.bfloat16()
        sd.vae.bfloat16()
    fast.use_openvino(compiled, folder=folder)
    call = inputs(exact, side=4, same=True)
    right = exact.unet(*call)
    error, torchs_error = compiled.unet(*call) - right, torchs.unet(*call) - right
    assert 1e-3 * right.norm() < error.norm() <= 1.5 * torchs_error.norm()


def test_v_prediction_and_a_schedule_of_its_own(plain, folder):
    """The network is compiled, the conversion to eps is minisd's: it follows a copy's schedule."""
    sd, other = fresh(), fresh()
    for each in (sd, other):
        each.unet.__class__ = VPredictionUNet
    fast.use_openvino(sd, folder=folder)
    assert isinstance(sd.unet, VPredictionUNet)
    call = inputs(plain)
    assert apart(sd.unet(*call), other.unet(*call)) <= ROUNDING
    levels = TrainingSchedule([0.99 * 0.995**i for i in range(1000)]).log_sigmas
    copies = [copy.copy(each.unet) for each in (sd, other)]
    for unet in copies:
        unet.log_sigmas = levels
    assert apart(copies[0](*call), copies[1](*call)) <= ROUNDING
    assert apart(copies[0](*call), sd.unet(*call)) > 0.01


@pytest.mark.slow
def test_observers_see_the_same_run(plain, compiled):
    """Ledger, trace, a list of seeds, inpainting: everything around the networks is unchanged."""
    mask = Image.new("L", PICTURE.size, 255)
    mask.paste(0, (0, 0, 8, 16))
    results = []
    for sd in (plain, compiled):
        with Ledger(sd) as ledger, Trace(sd) as trace:
            settings = {"steps": 4, "strength": 0.5, "observe": together(ledger, trace)}
            run = minisd.img2img(sd, "fire", PICTURE, seed=[1, 2], **settings)
        assert ledger.calls == 2
        painted = minisd.inpaint(sd, "fire", PICTURE, mask, steps=2, seed=3)
        results.append((ledger, trace, run, painted))
    (a, trace_a, run_a, painted_a), (b, trace_b, run_b, painted_b) = results
    assert a.line() == b.line()
    for step, other in zip(trace_a.steps, trace_b.steps, strict=True):
        for name in ("x", "eps", "eps_cond", "eps_uncond", "x_in"):
            assert apart(getattr(other, name), getattr(step, name)) <= OF_RUN
    assert apart(run_b.latent, run_a.latent) <= OF_RUN
    assert apart(painted_b.latent, painted_a.latent) <= OF_RUN


def test_threads_follow_torch(folder):
    sd = fresh()
    fast.use_openvino(sd, folder=folder)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            sd.vae.decode(torch.ones(1, 4, 8, 8))
        finally:
            torch.set_num_threads(1)
        *_, last = sd.vae.to_image.compiled.values()
        assert last.get_property("INFERENCE_NUM_THREADS") == threads


def test_the_size_of_what_stays_compiled(monkeypatch, folder):
    sd = fresh()
    fast.use_openvino(sd, folder=folder)
    monkeypatch.setattr(engine, "MOST_BYTES", 2 * sd.vae.to_image.size)
    for side in (4, 8, 4, 12):
        sd.vae.decode(torch.ones(1, 4, side, side))
    assert [key[1][-1] for key in sd.vae.to_image.compiled] == [4, 12]


# ---- what is kept --------------------------------------------------------------------------------


def test_a_network_is_converted_once_and_again_if_a_file_is_broken(used, tmp_path):
    expected = PLAIN.vae.decode(torch.ones(1, 4, 8, 8))
    assert used()[0] == ["converting", "compiling"]
    lines, result = used()
    assert lines == ["compiling"] and apart(result, expected) <= ROUNDING
    assert used(size=12)[0] == ["compiling"]

    (graph,), (weights,) = tmp_path.glob("*.xml"), tmp_path.glob("*.bin")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    lines, repaired = used()
    assert lines == ["converting", "compiling"] and torch.equal(repaired, result)
    graph.write_bytes(graph.read_bytes()[:2000])
    assert used()[0] == ["converting", "compiling"]
    assert used()[0] == ["compiling"]
    assert sorted(tmp_path.iterdir()) == sorted([graph, weights])


@pytest.mark.slow
def test_other_weights_and_settings_are_other_networks(used, tmp_path):
    used()
    changed = fresh()
    changed.vae.decoder.conv_out.bias[1] += 1
    expected = changed.vae.decode(torch.ones(1, 4, 8, 8))
    lines, result = used(changed)
    assert lines[0] == "converting" and apart(result, expected) <= ROUNDING
    changed = fresh()
    changed.vae.decoder.norm_out.eps = 1e-3
    assert used(changed)[0][0] == "converting"
    assert len(list(tmp_path.glob("*.xml"))) == len(list(tmp_path.glob("*.bin"))) == 3


def test_nothing_is_left_of_a_stopped_conversion(used, tmp_path, monkeypatch):
    killed, others = f".{'0' * 16}.part", [f".{'1' * 16}.part", ".bashrc"]
    for name in (killed, *others):
        (tmp_path / name).write_bytes(b"x")
    for name in (killed, ".bashrc"):
        os.utime(tmp_path / name, (time.time() - 86400,) * 2)  # the other is being written now

    def stop(graph, weights):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "check_sum", stop)
    with pytest.raises(KeyboardInterrupt):
        used()
    assert {path.name for path in tmp_path.iterdir()} == {*others}


def test_a_folder_that_cannot_be_written(tmp_path):
    """It draws all the same, and keeps PyTorch's weights, which the converted network shares."""
    (tmp_path / "file").write_bytes(b"")
    sd, lines = fresh(), []
    expected = sd.vae.decode(torch.ones(1, 4, 8, 8))
    fast.use_openvino(sd, lines.append, tmp_path / "file")
    assert apart(sd.vae.decode(torch.ones(1, 4, 8, 8)), expected) <= ROUNDING
    assert "the converted decoder is not kept: " in lines[1]
    assert not sd.vae.decoder.conv_in.weight.is_meta


def test_the_folder_follows_the_systems_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine.cache_folder() == tmp_path / "minisd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert engine.cache_folder() == Path("/home/ada/.cache/minisd")


# ---- what it refuses -----------------------------------------------------------------------------


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"needs the package openvino: pip install 'minisd\[openv"):
        fast.use_openvino(fresh())
    assert main(["txt2img", "fire", "--engine", "openvino"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_models_that_it_cannot_compile(folder, compiled):
    half = fresh()
    half.unet.half()
    packed = fresh()
    fast.pack(packed)
    elsewhere = replace(fresh(), device=torch.device("cuda"))
    for sd, message in [
        (half, "float32 or bfloat16, not in float16"),
        (elsewhere, "for the CPU, but the model is on cuda"),
        (packed, "packed or compiled already: load it again"),
        (compiled, "packed or compiled already: load it again"),
    ]:
        with pytest.raises(ValueError, match=message):
            fast.use_openvino(sd, folder=folder)
    sd = fresh()
    with minisd.exact(), pytest.raises(ValueError, match="exact mode is for the engine torch"):
        fast.use_openvino(sd, folder=folder)


def test_calls_that_it_cannot_compute(compiled, tmp_path):
    message = r"attention maps, .* of the UNet, .* the engine torch"
    with AttentionMaps(compiled, "fire") as maps, pytest.raises(ValueError, match=message):
        minisd.txt2img(compiled, "fire", width=16, height=16, steps=2, observe=maps)
    x, t, context = inputs(fresh())
    with pytest.raises(ValueError, match="no gradients"):
        compiled.unet(x.requires_grad_(), t, context)
    with pytest.raises(ValueError, match="a sweep computes with torch"):
        minisd.sweep([minisd.Recipe("fire", seed=1)], compiled, tmp_path)
    with minisd.exact(), pytest.raises(ValueError, match="exact mode is for the engine torch"):
        compiled.vae.decode(torch.ones(1, 4, 8, 8))


@pytest.mark.parametrize("command", ["attention", "explore", "studio", "sweep", "lab"])
def test_commands_for_torch_alone(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--engine", "openvino"])
    assert stop.value.code == 2
    assert "--engine: not openvino here: " in capsys.readouterr().err


def test_switches(capsys):
    with pytest.raises(SystemExit):
        main(["txt2img", "fire", "--engine", "tvm"])
    assert "no engine named 'tvm'; choose from torch, openvino" in capsys.readouterr().err
    assert main(["txt2img", "fire", "--engine", "openvino", "--exact"]) == 2
    assert "--exact is for --engine torch" in capsys.readouterr().err


def test_a_signal_after_the_networks_are_gone(used):
    """Python's handler is called. It was a segmentation fault while no Core was kept."""
    used()
    gc.collect()
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.slow  # in a process of its own: another test may have imported the package already
def test_the_import_sends_nothing():
    """The package would report its use to its makers, unless the variable CI says: a test."""
    pytest.importorskip("openvino_telemetry")
    lines = """
        import os
        from minisd.fast.openvino import import_openvino
        os.environ.pop("CI", None)
        import_openvino()
        assert "CI" not in os.environ
        import openvino_telemetry
        assert openvino_telemetry.Telemetry().consent is False
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(lines)], check=True)


# ---- the command line ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line(tmp_path, monkeypatch, capsys):
    """The weights that come with minisd: the picture is torch's within rounding, and says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sketch = str(Path(__file__).parent.parent / "docs/pictures/fire-sketch.png")
    words = ["img2img", "fire, noto", "-I", sketch, "--fit", "-S", "2", "-s", "2"]
    pictures = {}
    for name in ("torch", "openvino"):
        folder = tmp_path / name
        assert main([*words, "--engine", name, "--self-contained", "-o", str(folder)]) == 0
        (pictures[name],) = folder.glob("*.png")
    output = capsys.readouterr()
    assert "float32 on cpu, by openvino" in output.out
    assert output.err.count("converting the ") == output.err.count("compiling the ") == 3
    pixels = [np.asarray(Image.open(path), dtype=int) for path in pictures.values()]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1  # a value that is cut off to a whole number
    status = main(["verify", str(pictures["openvino"])])
    line = capsys.readouterr().out
    assert status in (0, 1)
    if status == 1:
        assert "another engine: torch, and it was openvino 20" in line
