"""What a user chooses of a model: clip skip, another autoencoder, averages, its own schedule."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr
from transformers import CLIPTextConfig, CLIPTextModel

import minisd
from minisd.checkpoint import PREFIXES
from minisd.checkpoint.diffusers_names import vae_names
from minisd.checkpoint.training_schedule import (
    LEAST_ABAR,
    TrainingSchedule,
    with_own_schedule,
    zero_terminal_snr,
)
from minisd.checkpoint.v_prediction import VPredictionUNet
from minisd.cli.main import main
from minisd.cli.model_files import find_model
from minisd.files import sha256
from minisd.guidance import Guided
from minisd.prompts.states import text_states, with_clip_skip
from minisd.recipes.metadata import Model, model_in, read_chunks, read_model
from minisd.samplers import SAMPLERS
from minisd.schedule import ABAR, BETAS, SCHEDULES, sigma_to_t, t_to_sigma
from minisd.stable_diffusion import StableDiffusion
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import VOCABULARY, Tokenizer
from minisd.unet import UNet

from .hostile_files import micro, safetensors_bytes, saved, write
from .test_checkpoint import assert_holds
from .test_file_states import averages, vae_of

VAE = PREFIXES["vae"]
DRAW = ["-s1", "-S1", "-C1", "-W16", "-H16", "-A", "k_euler"]

# ---- clip skip -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> CLIPTextModel:
    """A small text encoder of four layers, with transformers' own random weights."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, hidden_act="quick_gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    return CLIPTextModel(config).eval()


@pytest.fixture(scope="module")
def reader(clip: CLIPTextModel) -> StableDiffusion:
    """A model of which only the text encoder is there, with the same weights."""
    encoder = TextEncoder(32, layers=4, hidden=64, heads=4)
    names = (name.removeprefix("text_model.") for name in clip.state_dict())
    state = dict(zip(names, clip.state_dict().values(), strict=True))
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    nothing: Any = None
    return StableDiffusion(
        Tokenizer(), encoder.eval(), nothing, nothing, Path(), torch.device("cpu")
    )


@pytest.mark.parametrize("clip_skip", [1, 2, 3, 4])
def test_clip_skip_is_a_hidden_state_of_transformers(
    clip_skip: int, clip: CLIPTextModel, reader: StableDiffusion
):
    """AUTOMATIC1111: hidden_states[-N], through the final normalisation."""
    ids = reader.tokenizer(["a fire at night"])
    norm = getattr(clip, "text_model", clip).final_layer_norm  # transformers 5 has no text_model
    with torch.no_grad():
        hidden = clip(ids, output_hidden_states=True).hidden_states[-clip_skip]
        expected = norm(hidden)
        states, _ = text_states(with_clip_skip(reader, clip_skip), "a fire at night")
    # Values are about 1; float32 sums in another order differ by a few 1e-7.
    torch.testing.assert_close(states, expected, rtol=0, atol=2e-6)


def test_clip_skip_shares_the_weights_and_changes_nothing(reader: StableDiffusion):
    before = reader.text_states("fire")
    shorter = with_clip_skip(reader, 3)
    assert with_clip_skip(reader, 1) is reader
    weight = "encoder.layers.0.mlp.fc1.weight"
    pointers = [sd.text_encoder.state_dict()[weight].data_ptr() for sd in (reader, shorter)]
    assert pointers[0] == pointers[1]
    assert torch.equal(reader.text_states("fire"), before)
    assert not torch.equal(shorter.text_states("fire"), before)
    assert [len(sd.text_encoder.encoder.layers) for sd in (reader, shorter)] == [4, 2]


@pytest.mark.parametrize("clip_skip", [0, 5, -1])
def test_more_layers_than_there_are(clip_skip: int, reader: StableDiffusion):
    with pytest.raises(ValueError, match=f"between 1 and 4, not {clip_skip}"):
        with_clip_skip(reader, clip_skip)


def test_clip_skip_in_a_recipe(emoji: StableDiffusion):
    settings: dict[str, Any] = {"prompt": "fire", "negative_prompt": "red", "steps": 1, "seed": 1}
    plain = minisd.recipes.prepare(minisd.Recipe(**settings), emoji)
    skipping = minisd.recipes.prepare(minisd.Recipe(**settings, clip_skip=2), emoji)
    for name in ("context", "uncond"):  # the negative prompt too
        assert not torch.equal(getattr(plain, name), getattr(skipping, name))
    assert skipping.sd is emoji
    assert "--clip-skip 2" in skipping.recipe.command()
    read = minisd.read_recipe('"fire" -s 1 -S 1 --clip-skip 2')
    assert read.clip_skip == 2 and minisd.read_recipe('"fire" -s 1 -S 1').clip_skip == 1


# ---- what a picture says about the model, and --from ---------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a checkpoint that has averages, and an autoencoder."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model.ckpt", saved({**micro(), **averages(micro())}))
    write(tmp_path / "other-vae.safetensors", safetensors_bytes(vae_of(0.05)))
    return tmp_path


CHOSEN = ["--vae", "other-vae.safetensors", "--ema", "--prediction", "v"]


@pytest.mark.filterwarnings("ignore")
def test_choices_are_in_the_picture_and_come_back(folder: Path, capsys: pytest.CaptureFixture):
    draw = ["txt2img", "fire", *DRAW, "--model", "model.ckpt"]
    assert main([*draw, *CHOSEN, "-o", "chosen"]) == 0
    assert main([*draw, "-o", "plain"]) == 0
    (picture,), (plain,) = folder.glob("chosen/*.png"), folder.glob("plain/*.png")
    model = read_model(picture)
    assert model[4:] == (
        "other-vae.safetensors", sha256("other-vae.safetensors"), True, "v"
    )  # fmt: skip
    assert model.sha256 == sha256("model.ckpt")
    assert read_model(plain)[4:] == ("", "", False, "")
    parameters = read_chunks(picture)["parameters"]
    assert f"VAE hash: {model.vae_sha256}, VAE: other-vae.safetensors, EMA: True" in parameters
    assert model_in({"parameters": parameters})[4:] == model[4:]  # where only this text is left
    assert picture.read_bytes() != plain.read_bytes()

    capsys.readouterr()
    assert main(["recall", str(picture)]) == 0
    assert capsys.readouterr().out.strip().endswith(" ".join(CHOSEN))
    assert any("it was drawn with --vae" in note for note in minisd.read_recipe(picture).notes)

    redraw = ["txt2img", "--model", "model.ckpt", "--from", str(picture)]
    assert main([*redraw, "-o", "again"]) == 0
    (redrawn,) = folder.glob("again/*.png")
    assert pixels(redrawn) == pixels(picture) != pixels(plain)
    default = ["--vae", "default", "--no-ema", "--prediction", "eps"]  # typed switches count
    assert main([*redraw, *default, "-o", "own"]) == 0
    (own,) = folder.glob("own/*.png")
    assert pixels(own) == pixels(plain) and read_model(own)[4:] == ("", "", False, "eps")


def pixels(path: Path) -> bytes:
    with minisd.images.Image.open(path) as image:
        return image.tobytes()


def test_the_autoencoder_of_a_picture_is_not_here(folder: Path, capsys: pytest.CaptureFixture):
    assert main(["txt2img", "fire", *DRAW, "--model", "model.ckpt", *CHOSEN[:2], "-o", "a"]) == 0
    (picture,) = folder.glob("a/*.png")
    redraw = ["txt2img", "--model", "model.ckpt", "--from", str(picture), "-o"]
    write(folder / "other-vae.safetensors", safetensors_bytes(vae_of(0.1)))
    assert main([*redraw, "b"]) == 0
    wrong = "other-vae.safetensors is not the autoencoder that the picture was drawn with"
    assert wrong in capsys.readouterr().err
    (folder / "other-vae.safetensors").unlink()
    assert main([*redraw, "c"]) == 0
    assert "which is not here: give its file with --vae (SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stored",
    [
        {"VAE": "../../etc/passwd", "EMA": ["True"], "Prediction": "sample", "model_id": {}},
        {"VAE": "/", "EMA": 1, "Prediction": None, "VAE hash": "x" * 10_000},
        [],
    ],
)
def test_a_strangers_text_about_the_model(stored: Any):
    """It chooses no folder, and only values that the switches have."""
    text = json.dumps(stored | {"app_id": "minisd"} if stored else stored)
    model = model_in({"sd-metadata": text})
    assert model.vae in ("passwd", "") and model.prediction == "" and not model.ema
    assert len(model.vae_sha256) <= 200
    assert model_in({"sd-metadata": json.dumps({"VAE": "a", "app_id": "x"})}) == Model()
    assert model_in({"sd-metadata": "{"}) == model_in({"parameters": "x"}) == Model()


# ---- an autoencoder in the diffusers layout ------------------------------------------------------


def diffusers_vae(shift: float) -> bytes:
    names = vae_names(2)
    vae = {name.removeprefix(VAE): value for name, value in vae_of(shift).items()}
    new = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
    tensors = {}
    for name, value in vae.items():
        head, attention, tail = names.diffusers(name).partition("mid_block.attentions.0.")
        layer, _, last = tail.partition(".")
        matrix = attention and value.ndim == 4
        key = f"{head}{attention}{new[layer]}.{last}" if attention else head
        tensors[key] = value[:, :, 0, 0].contiguous() if matrix else value
    return safetensors_bytes(tensors)


def test_a_diffusers_autoencoder(tmp_path: Path):
    """A lone file of a hub's vae/ folder, that folder, and a whole model's folder."""
    path = write(tmp_path / "model.ckpt", saved(micro()))
    folder = tmp_path / "hub" / "vae"
    folder.mkdir(parents=True)
    file = write(folder / "diffusion_pytorch_model.safetensors", diffusers_vae(0.5))
    for vae in (file, folder, folder.parent):
        sd = minisd.load(path, vae=vae)
        assert_holds(sd, {**micro(), **vae_of(0.5)})
        assert sd.vae_path == vae
    assert minisd.inspect(file).kind == "an autoencoder in the diffusers layout"
    (folder / "config.json").write_text(json.dumps({"scaling_factor": 0.13025}))
    with pytest.raises(minisd.CheckpointError, match=r"scaling_factor = 0\.13025, but SD 1\.x has"):
        minisd.load(path, vae=folder)
    shutil.rmtree(folder)
    with pytest.raises(minisd.CheckpointError, match="has no weights that minisd reads"):
        minisd.load(path, vae=tmp_path / "hub")


# ---- the file's own training schedule ------------------------------------------------------------


def test_of_sd1_itself_it_is_the_models_own():
    schedule = TrainingSchedule(ABAR)
    assert schedule(7) == pytest.approx(SCHEDULES["model"](7), rel=1e-12)
    for t in (0.0, 0.3, 500.25, 999.0):
        assert schedule.t_to_sigma(t) == pytest.approx(t_to_sigma(t), rel=1e-12)
        assert schedule.sigma_to_t(t_to_sigma(t)) == pytest.approx(sigma_to_t(t_to_sigma(t)))
    assert SCHEDULES["file"](7) == SCHEDULES["model"](7)


def test_zero_terminal_snr_is_diffusers():
    betas = rescale_zero_terminal_snr(torch.tensor(BETAS))  # float64
    expected = (1 - betas).cumprod(0).numpy()
    abar = zero_terminal_snr()
    # diffusers goes from abar to betas and back, which costs a few bits.
    assert abar == pytest.approx(expected, abs=1e-12) and abar[-1] == 0
    schedule = TrainingSchedule(abar)
    assert schedule.trained_on == pytest.approx((t_to_sigma(0), (1 / LEAST_ABAR - 1) ** 0.5))


@pytest.mark.parametrize(
    "abar",
    [
        [],
        [0.5] * 1000,
        np.linspace(1.1, 0, 1000),
        np.linspace(0.9, -0.1, 1000),
        [[0.5]],
        ABAR[::-1],
    ],
)
def test_impossible_schedules(abar: Any):
    with pytest.raises(ValueError, match="1000 numbers that fall"):
        TrainingSchedule(abar)


MEAN, SPREAD = 0.6, 0.5  # of the latents that the exact model below draws


def exact_v(self: UNet, x_in: torch.Tensor, t: torch.Tensor, context: torch.Tensor):
    """The best v of a network that was trained with zero terminal SNR on normal latents."""
    levels = TrainingSchedule(zero_terminal_snr())
    sigma = torch.tensor([levels.t_to_sigma(float(value)) for value in t], dtype=torch.float64)
    alpha, s = ((sigma**2 + 1) ** -0.5)[:, None, None, None], None
    s = (1 - alpha**2).sqrt()
    x0 = (alpha * SPREAD**2 * x_in + s**2 * MEAN) / ((alpha * SPREAD) ** 2 + s**2)
    return alpha * (x_in - alpha * x0) / s - s * x0


@pytest.fixture
def zero_snr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StableDiffusion:
    """A v-prediction model with zero terminal SNR, whose network is exact."""
    monkeypatch.setattr(UNet, "forward", exact_v)
    weights = {**micro(), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    path = write(tmp_path / "model.ckpt", saved(weights))
    with pytest.warns(UserWarning, match="unless a recipe has the schedule file"):
        return minisd.load(path)


@pytest.mark.filterwarnings("ignore:16x16")
def test_pictures_down_from_pure_noise(zero_snr: StableDiffusion):
    """The exact solution of the flow from sigma * noise is known, and the mean is right.

    From SD 1.x's highest level, 14.61, the mean is too low: SPREAD / 14.61 of it is missing.
    """
    assert isinstance(zero_snr.unet, VPredictionUNet)
    recipe = minisd.Recipe(
        "fire", width=16, height=16, steps=60, sampler="k_heun", guidance=1.0, seed=3
    )
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def flow(sigma: float) -> torch.Tensor:
        """x at sigma 0, of x = sigma * noise: distances from the mean shrink in proportion."""
        return MEAN + SPREAD * (sigma * noise - MEAN) / (SPREAD**2 + sigma**2) ** 0.5

    own = replace(recipe, schedule="file").draw(zero_snr).latent
    # Heun's own error at 60 steps, over a range of five decades.
    torch.testing.assert_close(own.float(), flow(4096.0), rtol=0, atol=5e-3)
    assert (own - flow(14.61)).abs().mean() > 0.01
    levels = SCHEDULES["model"](60)
    schedule = with_own_schedule(zero_snr).unet.schedule
    assert schedule(60)[0] == pytest.approx(4096, rel=1e-6) and levels[0] < 15


def test_zero_terminal_snr_against_diffusers(zero_snr: StableDiffusion):
    """DDIM in ten steps with the same exact network, from the same noise."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(10)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    x = noise
    for t in scheduler.timesteps:
        v = exact_v(zero_snr.unet, x, t[None], torch.zeros(1, 77, 12))
        x = scheduler.step(v, t, x).prev_sample
    sd = with_own_schedule(zero_snr)
    levels = [sd.unet.schedule.t_to_sigma(float(t)) for t in scheduler.timesteps] + [0.0]
    context = torch.zeros(1, 77, 12)
    predict_eps = Guided(sd.unet, context, context, 1)
    *_, last = SAMPLERS["ddim"](predict_eps, levels[0] * noise, levels)
    # diffusers starts at an abar of 0, minisd at 2^-24, whose root is 2.4e-4.
    torch.testing.assert_close(last.x_next, x, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_the_schedule_of_the_file_at_the_shell(
    zero_snr: StableDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["txt2img", "fire", *DRAW, "--model", str(zero_snr.path), "-o", str(tmp_path)]
    assert main([*words, "--schedule", "file"]) == 0
    text = capsys.readouterr().out
    assert "on the file schedule; the noise added has sigma 4095.9999 (t = 999.0)" in text
    assert ", 4095.9999 expected" in text
    (picture,) = tmp_path.glob("*.png")
    assert minisd.read_recipe(picture).schedule == "file"
    assert main(words) == 0
    assert "sigma 14.6146 added, 14.6146 expected" in capsys.readouterr().out


# ---- names of models -----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".pt", ".pth", ".bin"])
def test_a_model_by_its_name(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the home folder that ~ stands for, and in a folder below."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINISD_MODELS", f"{tmp_path / 'none'}:~/models")
    monkeypatch.chdir(tmp_path)
    below = tmp_path / "models" / "merges" / "2023"
    below.mkdir(parents=True)
    for path in (tmp_path / "models" / f"first{ending}", below / f"second{ending}"):
        path.write_bytes(b"")
        assert find_model(path.stem) == find_model(path.name) == find_model(str(path)) == path
    (tmp_path / "models" / "folder").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        find_model("third")
    searched = f"these folders, and those in them, were searched: {tmp_path / 'models'}"
    assert f"there is no checkpoint named third; {searched}" in str(error.value)
    monkeypatch.setenv("MINISD_MODELS", "")
    with pytest.raises(FileNotFoundError, match="name that folder in MINISD_MODELS"):
        find_model("third")


def test_the_laboratory_takes_names_and_checks_them_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "k_euler", "--compare", "k_lms", "--model", "nothing"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "there is no checkpoint named nothing" in output.err


# ---- docs/checkpoint-files.md --------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "checkpoint-files.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
def test_the_python_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL):
        exec(compile(code, "checkpoint-files.md", "exec"), names)
    assert Path("copy.safetensors").stat().st_size > 1e7
    expected = minisd.txt2img(names["sd"], "fire", steps=2, seed=1)
    assert names["result"].image.tobytes() == expected.image.tobytes()


def test_the_commands_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """All switches are known: the commands fail because the files are not here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    blocks = re.findall(r"^```\n((?:minisd .*\n)+)```$", GUIDE, re.MULTILINE)
    lines = "".join(blocks).splitlines()
    assert len(lines) == 9
    for line in lines:
        assert main(shlex.split(line)[1:]) == 2
        assert "there is no checkpoint named" in capsys.readouterr().err, line
