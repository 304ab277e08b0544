"""Errors that are not the settings' fault: memory, half precision, odd arguments from Python."""

import io
import json
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import minisd
from minisd import fast
from minisd.cli import studio
from minisd.cli.main import main
from minisd.cli.messages import is_out_of_memory
from minisd.explorer.runs import draw_all
from minisd.observe import NotFinite, stop_at_nan
from minisd.recipes import Job, Recipe, prepare
from tests.stand_ins import StandIn

DRAWING = Path(__file__).parent / "data" / "reports" / "drawing.png"
# What libraries raise when memory runs out.
NO_MEMORY = {
    "torch on a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "torch on Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:115] not enough memory"),
    "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB"),
    "CUDA": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    "oneDNN": RuntimeError("could not create a primitive"),
    "Python": MemoryError(),
    "the system": OSError(12, "Cannot allocate memory"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def loaded(monkeypatch, emoji):
    """Commands get the weights that come with minisd, already loaded."""
    monkeypatch.setattr(studio, "load", lambda *_, **__: emoji)


def pictures(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


# ---- memory --------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch, loaded):
    """A function that lets pictures of 128x128 pixels raise an error."""

    def use(error):
        real = Job.draw

        def draw(job, observe=None):
            if job.size == (128, 128):
                raise error
            return real(job, observe)

        monkeypatch.setattr(Job, "draw", draw)

    return use


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_too_little_memory_for_a_line_of_a_list(folder, capsys, full, error):
    full(error)
    (folder / "list.txt").write_text("fire -s1 -S1\nfire -s1 -S2 -W128 -H128\nfire -s1 -S3\n")
    assert main(["--from_file", "list.txt"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("minisd: line 2: there is not enough memory to draw 128x128 pixels: take")
    assert pictures(folder) == ["000001.1.png", "000002.3.png"]


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_too_little_memory_at_the_shell(folder, capsys, full, error):
    full(error)
    Image.new("RGB", (128, 128), "red").save("large.png")
    assert main(["img2img", "fire", "-I", "large.png", "-s2"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "not enough memory to draw 128x128 pixels: scale it down with --fit" in err


def test_too_little_memory_at_the_prompt(folder, capsys, monkeypatch, full):
    full(NO_MEMORY["torch on a GPU"])
    lines = iter(["fire -s1 -S1 -W128 -H128", "fire -s1 -S2", "q"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert main([]) == 0
    assert "not enough memory to draw 128x128" in capsys.readouterr().err
    assert pictures(folder) == ["000001.2.png"]


@pytest.mark.parametrize("command", ["strip", "sweep", "explore", "attention"])
def test_too_little_memory_in_other_commands(folder, capsys, full, command):
    full(NO_MEMORY["torch on a CPU"])
    words = ["-W128", "-H128"] if command == "explore" else []
    Image.new("RGB", (128, 128), "red").save("large.png")
    assert main([command, "fire", "-I", "large.png", "-s2", "-S1", *words]) == 2
    err = capsys.readouterr().err
    assert "there is not enough memory to draw" in err and "128x128" in err
    assert "Traceback" not in err and "alloc_cpu" not in err


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_too_little_memory_for_the_model(folder, capsys, monkeypatch, error):
    """The device is not blamed."""

    def load(*_, **__):
        raise error

    monkeypatch.setattr(studio, "load", load)
    assert main(["txt2img", "fire", "-s1"]) == 2
    (err,) = capsys.readouterr().err.splitlines()
    assert "not enough memory to load" in err and "--dtype bfloat16 needs half" in err
    assert "--device" not in err


def test_too_little_memory_does_not_mean_a_damaged_file(monkeypatch, tiny_path):
    def safe_open(*_, **__):
        raise MemoryError

    monkeypatch.setattr("minisd.checkpoint.tensors.safe_open", safe_open)
    with pytest.raises(MemoryError):
        minisd.load(tiny_path)


def test_other_errors_are_not_taken_for_it():
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("memory")):
        assert not is_out_of_memory(error)


def test_a_bug_in_a_line_does_not_end_the_list(folder, capsys, loaded):
    """One's own sampler may raise anything: its traceback is shown, and the next line is drawn."""
    (folder / "own.py").write_text("def f(predict_eps, x, sigmas):\n    yield x.nonsense\n")
    (folder / "list.txt").write_text("fire -s1 -S1 -A own.py:f\nfire -s1 -S2\n")
    assert main(["--from_file", "list.txt"]) == 1
    err = capsys.readouterr().err
    assert "yield x.nonsense" in err and err.endswith("line 1: AttributeError, see above\n")
    assert pictures(folder) == ["000001.2.png"]


@pytest.mark.slow
def test_a_real_limit(folder):
    """In a process of its own, which may have 6 GB of addresses."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    (folder / "list.txt").write_text("fire -s1 -S1\nfire -W8192 -H8192 -s1 -S2\nfire -s1 -S3\n")
    words = [sys.executable, "-m", "minisd", "--from_file", "list.txt"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "line 2: there is not enough memory to draw 8192x8192 pixels" in done.stderr
    assert pictures(folder) == ["000001.1.png", "000002.3.png"]


# ---- pictures far larger than the model's --------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "fit", "says"),
    [
        ((128, 128), False, ""),
        ((160, 128), False, "160x128 is 5 times as large as 64x64, the model's own size"),
        ((1024, 512), False, "128 to 16,384 times as long, and there are up to 7. --fit scales it"),
        ((1024, 512), True, ""),
    ],
)
def test_large_pictures_are_warned_of_before_the_model_runs(emoji, size, fit, says):
    recipe = Recipe("fire", steps=7, fit=fit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare(recipe, emoji, Image.new("RGB", size))
    text = "\n".join(str(warning.message) for warning in caught)
    assert says in text and ("times as large" in text) == bool(says)


def test_large_pictures_from_noise_are_warned_of(emoji):
    with pytest.warns(UserWarning, match="512x512 is 64 times as large .*Take smaller -W and -H"):
        prepare(Recipe("fire", width=512, height=512), emoji)


def test_a_picture_of_100_megapixels_says_what_to_do(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("L", (8, 8)).save("large.png")
    with pytest.raises(ValueError, match="more than 50 pixels; scale it down first"):
        minisd.images.open_image("large.png")


# ---- numbers that are too large for float16 ------------------------------------------------------

PARTS = {
    "encoder": "first_stage_model.encoder.conv_in.",
    "decoder": "first_stage_model.decoder.conv_in.",
    "UNet": "model.diffusion_model.input_blocks.0.0.",
}


@pytest.fixture(scope="module")
def hot_paths(tiny_path, tmp_path_factory):
    """Models with a first layer 32,768 times larger, which the norm behind it undoes."""
    paths = {}
    for part, layer in PARTS.items():
        tensors = load_file(tiny_path)
        for name in (f"{layer}weight", f"{layer}bias"):
            tensors[name] = tensors[name] * 2**15
        facts = {"unet_heads": 8, "text_heads": 4, "native_size": 64, "name": "hot"}
        paths[part] = tmp_path_factory.mktemp("hot") / f"{part}.safetensors"
        save_file(tensors, paths[part], {"minisd": json.dumps(facts)})
    return paths


COMMANDS = {
    "txt2img": ["txt2img", "fire"],
    "img2img": ["img2img", "fire", "-I", str(DRAWING), "-f1"],
    "strip": ["strip", "fire", "-I", str(DRAWING), "-f1"],
    "sweep": ["sweep", "fire", "-I", str(DRAWING), "-f1"],
    "explore": ["explore", "fire", "-I", str(DRAWING), "-f1"],
    "attention": ["attention", "fire", "-I", str(DRAWING), "-f1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_black_picture_in_half_precision(folder, capsys, hot_paths, command, part):
    if command == "txt2img" and part == "encoder":
        return  # it has no init image
    words = [*COMMANDS[command], "-s2", "-S1", "-C2", "--model", str(hot_paths[part])]
    assert main([*words, "--dtype", "float16"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert {"encoder": "the encoder's", "decoder": "the decoder's", "UNet": "step 1: the UNet's"}[
        part
    ] in err
    assert "(NaN or Inf); its numbers are too large for float16: load the model as bfloat16" in err
    assert pictures(folder) == [] and not list(folder.rglob("*.html"))


@pytest.mark.parametrize("part", ["encoder", "decoder"])  # in the UNet, a skip goes past the norm
def test_the_same_picture_in_float32(tiny, hot_paths, part):
    """What overflows in float16 is right in float32: only the arithmetic is at fault."""
    settings = {"steps": 2, "strength": 1.0, "seed": 1, "guidance": 2}
    hot = minisd.load(hot_paths[part])
    a, b = (minisd.img2img(sd, "fire", DRAWING, **settings).latent for sd in (tiny, hot))
    assert (a - b).norm() <= 0.05 * a.norm()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["decoder", "UNet"])
def test_no_black_picture_from_python(hot_paths, part):
    sd = minisd.load(hot_paths[part], dtype=torch.float16)
    with pytest.raises(ValueError, match="not finite"):
        minisd.txt2img(sd, "fire", steps=1, seed=1, guidance=1)


def test_a_sampler_that_explodes_is_stopped_at_its_step(emoji):
    def exploding(predict_eps, x, sigmas):
        for step in minisd.SAMPLERS["k_euler"](predict_eps, x, sigmas):
            x_next = step.x_next * (torch.inf if step.i == 1 else 1)
            yield minisd.Step(step.i, step.sigma, step.sigma_next, step.x, step.eps, x_next)

    with pytest.raises(NotFinite, match=r"step 2: the sampler's next latent .* another sampler"):
        minisd.txt2img(
            emoji, "fire", steps=4, seed=1, sampler=exploding, observe=stop_at_nan(emoji)
        )
    job = prepare(Recipe("fire", sampler=exploding, steps=4, seed=1), emoji, Image.open(DRAWING))
    with pytest.raises(ValueError, match="strength 1, step 2"):
        list(draw_all(job, [0, 1]))


# ---- processors without instructions for half precision ------------------------------------------


@pytest.fixture
def old_processor(monkeypatch):
    """As on a processor without AVX-512: torch says so, and its functions raise."""

    def no() -> bool:
        return False

    def reorder(*_):
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", no)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", no)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", reorder)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_a_processor_that_cannot_pack(
    folder, capsys, tiny_path, old_processor, dtype
):
    tensors = load_file(tiny_path)
    facts = {"unet_heads": 8, "text_heads": 4, "native_size": 256}  # large models are packed
    save_file(tensors, "large.safetensors", {"minisd": json.dumps(facts)})
    words = ["txt2img", "fire", "-s1", "-S1", "-C1", "-W64", "-H64", "--model", "large.safetensors"]
    assert main([*words, "--dtype", dtype]) == 0
    assert f"this processor has no instructions for {dtype}" in capsys.readouterr().err
    sd = minisd.load("large.safetensors", dtype=getattr(torch, dtype))
    unpacked = minisd.txt2img(sd, "fire", width=64, height=64, steps=1, seed=1, guidance=1)
    drawn = Image.open("outputs/img-samples/000001.1.png")
    assert drawn.tobytes() == unpacked.image.tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pack_refuses_on_such_a_processor(tiny_path, old_processor, dtype):
    sd = minisd.load(tiny_path, dtype=dtype)
    assert not fast.can_pack(sd)
    with pytest.raises(ValueError, match="a processor with instructions for the model's dtype"):
        fast.pack(sd)
    assert type(sd.unet.out[2]) is torch.nn.Conv2d  # nothing was packed


def test_float32_can_always_be_packed(tiny, old_processor):
    assert fast.can_pack(tiny)


@pytest.mark.parametrize("device", ["meta", "cuda:99", "nonsense", "hpu"])
def test_a_device_that_cannot_compute(folder, capsys, device):
    assert main(["txt2img", "fire", "-s1", "--device", device]) == 2
    (err,) = capsys.readouterr().err.splitlines()
    assert err.startswith(f"minisd: --device {device} ")


# ---- the same weights in another file ------------------------------------------------------------


@pytest.mark.parametrize("extra", range(0, 64, 8))
def test_the_same_bits_from_every_file(tmp_path, tiny, tiny_path, extra):
    """The length of a file's header decides where its numbers are. Guidance 1 multiplies matrices
    by single vectors, whose sums depend on the matrix's address."""
    tensors = load_file(tiny_path)
    facts = {"unet_heads": 8, "text_heads": 4, "native_size": 64, "name": "tiny"}
    metadata = {"minisd": json.dumps(facts), "x": "x" * extra}
    save_file(tensors, tmp_path / "copy.safetensors", metadata)
    copy = minisd.load(tmp_path / "copy.safetensors")
    for model in (copy.unet, copy.vae):
        small = [p for p in model.parameters() if p.nbytes <= 1 << 23]
        assert all(p.data_ptr() % 64 == 0 for p in small)
    for guidance in (1, 4):
        settings = {"steps": 2, "seed": 1, "guidance": guidance, "sampler": "k_euler"}
        a, b = (minisd.txt2img(sd, "fire", **settings).latent for sd in (tiny, copy))
        assert torch.equal(a, b)


# ---- arguments from Python -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "seeds"),
    [
        (np.int64(3), [3]),
        (np.uint32(2**32 - 1), [2**32 - 1]),
        ([np.int64(3), 4], [3, 4]),
        (np.array([3, 4]), [3, 4]),
        (range(2), [0, 1]),
        (torch.tensor([5, 6]), [5, 6]),
    ],
)
def test_seeds_of_all_kinds_of_whole_numbers(seed, seeds):
    settings = {"steps": 1, "sampler": "k_euler"}
    result = minisd.txt2img(StandIn(), "x", seed=seed, **settings)
    assert result.seeds == seeds and all(type(n) is int for n in result.seeds)
    expected = minisd.txt2img(StandIn(), "x", seed=seeds, **settings)
    assert torch.equal(result.latent, expected.latent)


@pytest.mark.parametrize("seed", [1.5, "7", [1, 2.5], [], -1, [3, 2**32], np.array([])])
def test_seeds_that_are_none(seed):
    with pytest.raises(ValueError, match=r"seed must be between 0 and 4294967295, not .*whole num"):
        minisd.txt2img(StandIn(), "x", seed=seed, steps=1)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), np.float64("nan")])
@pytest.mark.parametrize("function", [minisd.txt2img, minisd.img2img, minisd.inpaint])
def test_guidance_that_is_not_finite(emoji, function, guidance):
    picture = [] if function is minisd.txt2img else [Image.new("RGBA", (64, 64))]
    with pytest.raises(ValueError, match="guidance must be a finite number, not"):
        function(emoji, "fire", *picture, guidance=guidance, steps=1, seed=1)


def test_no_negative_prompt(emoji):
    """None, which other programs have as the default, is the empty prompt."""
    settings = {"steps": 1, "seed": 1}
    a, b = (minisd.txt2img(emoji, "x", negative_prompt=n, **settings).latent for n in (None, ""))
    assert torch.equal(a, b)


@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize("pixels", [0, -64])
def test_sizes_below_1(emoji, side, pixels):
    with pytest.raises(ValueError, match="width and height must be"):
        minisd.txt2img(emoji, "fire", steps=1, **{side: pixels})
    with pytest.raises(ValueError, match=f"{side} must be 1 or more, not {pixels}"):
        Recipe("fire", **{side: pixels})


def test_notebooks_show_a_result_as_pictures():
    result = minisd.txt2img(StandIn(), "x", seed=[1, 2, 3], steps=1)
    picture = Image.open(io.BytesIO(result._repr_png_()))
    assert picture.size == (48, 16)
    for i, image in enumerate(result.images):
        assert picture.crop((16 * i, 0, 16 * i + 16, 16)).tobytes() == image.tobytes()
    assert "tensor" not in repr(result) and "[1, 2, 3]" in repr(result)


def test_a_trace_is_one_line(emoji):
    trace = minisd.observe.Trace(emoji, {"prompt": "fire", "sampler": "k_euler"})
    minisd.txt2img(emoji, "fire", steps=2, seed=1, sampler="k_euler", observe=trace)
    assert repr(trace) == "<Trace of 2 steps: prompt fire, sampler k_euler, model minisd emoji 64>"
