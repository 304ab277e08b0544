"""The recipe of the weights: its parts, and a toy trained from end to end on 292 pictures."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

import minisd
from minisd.unet import SD1
from weights.train import autoencoder, captions, data, evaluate, loop, pictures, profiles
from weights.train.__main__ import main, on_white
from weights.train.export import take_up

EMOJI = Path(__file__).parent / "data" / "emoji"


@pytest.fixture(scope="module")
def pack() -> data.Pack:
    return data.read(EMOJI, 32)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, in which everything is done."""
    folder = tmp_path_factory.mktemp("toy")
    threads = torch.get_num_threads()
    main(["--quick", "--data", str(EMOJI), "--run", str(folder), "--device", "cpu"])
    torch.set_num_threads(threads)
    return folder


# ---- data ----------------------------------------------------------------------------------------


def test_split_is_a_function_of_the_rows(pack: data.Pack) -> None:
    parts = data.split(pack.rows)
    shuffled = np.random.default_rng(0).permutation(len(pack.rows))
    assert (data.split([pack.rows[i] for i in shuffled]) == parts[shuffled]).all()
    drawings = np.array([row["style"] == "noto sketch" for row in pack.rows])
    assert ((parts == "drawing") == drawings).all()
    trained = Counter(r["codepoint"] for r, part in zip(pack.rows, parts) if part == "train")
    held = [row for row, part in zip(pack.rows, parts) if part == "held"]
    assert 0.03 < len(held) / (~drawings).sum() < 0.08
    assert all(trained[row["codepoint"]] >= 2 for row in held)


def test_order_shows_every_picture_once_an_epoch() -> None:
    seen = np.concatenate([data.order(50, 7, step, 8) for step in range(25)])  # four epochs
    assert (np.bincount(seen) == 4).all()
    assert all(len(set(epoch)) == 50 for epoch in seen.reshape(4, 50))
    assert (data.order(50, 7, 3, 8) == seen[24:32]).all()
    assert (data.order(50, 8, 3, 8) != seen[24:32]).any()


def test_white_is_lifted_off() -> None:
    axis = torch.arange(64) - 31.5
    disc = (24.5 - torch.hypot(axis[:, None], axis)).clamp(0, 1)
    hole = (torch.hypot(axis[:, None], axis) > 8).float()
    red = torch.tensor([1.0, 0.1, 0.1])[:, None, None]
    white_inside = 1 - disc + disc * (hole * red + 1 - hole)  # a red disc with a white middle
    rgb = (white_inside[None] * 255).round().to(torch.uint8)
    lifted = data.lift(rgb, torch.tensor([False])).float()[0] / 255
    assert (lifted[3] - disc).abs().max() < 0.12
    assert (lifted[:3] * lifted[3] + 1 - lifted[3] - white_inside).abs().max() < 0.02
    lines = data.lift(rgb, torch.tensor([True]))[0]
    assert (lines[:3] == 0).all()


# ---- captions ------------------------------------------------------------------------------------


def test_captions_say_what_is_odd_and_tokens_are_clip_s(pack: data.Pack) -> None:
    stylist, alike = pictures.Stylist(pack.rows), captions.synonyms(pack.rows)
    assert "flame" in alike["1f525"]
    which = np.arange(len(pack.rows)).repeat(4)
    looks = stylist(which, np.random.default_rng(3))
    words, tokenizer, said = captions.Words(), minisd.tokenizer.Tokenizer(), Counter()
    for i, at in enumerate(which):
        look, row = looks.of(i), pack.rows[at]
        arguments = (row, alike[row["codepoint"]], look, pack.rows[looks.other[i]])
        text = captions.caption(Random(i), *arguments)
        assert text == captions.caption(Random(i), *arguments)
        ids = tokenizer([text])[0, : captions.PLACES]
        if ids[-1] == minisd.tokenizer.END:
            assert (words(text) == ids.numpy()).all()
        if look["rough"]:
            assert any(word in text for word in ("rough", "crude", "daubed"))
        if look["together"] == "on fire":
            assert any(word in text for word in ("fire", "burning", "flames"))
        said[f"{look['kind']}: {any(w in text for w in ('background', ' on ', 'dark'))}"] += 1
    assert said["plain: True"] > said["plain: False"] > 0
    assert said["white: False"] > said["white: True"] > 0


# ---- pictures ------------------------------------------------------------------------------------


def test_pictures_are_drawn_as_the_seed_says(pack: data.Pack) -> None:
    stylist, which = pictures.Stylist(pack.rows), np.arange(64)
    looks = [stylist(which, np.random.default_rng([0, step])) for step in (5, 5, 6)]
    a, b, c = (pictures.draw(pack, which, look) for look in looks)
    assert a.shape == (64, 3, 32, 32)
    assert a.min() >= -1 and a.max() <= 1
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    halves = [pictures.draw(pack, *half) for half in autoencoder.pieces(which, looks[0], 32)]
    assert torch.allclose(torch.cat(halves), a, atol=1e-5)


def test_plain_pictures_are_the_pictures(pack: data.Pack) -> None:
    which = np.arange(len(pack.rows))
    looks = pictures.Stylist(pack.rows)(which, np.random.default_rng(0), plain=True)
    drawn = pictures.draw(pack, which, looks)
    assert (drawn - on_white(pack.rgba)).abs().max() < 1e-4


def test_what_reads_or_points_is_not_flipped() -> None:
    row = {"group": "objects", "text": "open book"}
    assert not pictures.may_flip(row)
    assert not pictures.may_flip({"group": "symbols", "text": "red heart"})
    assert not pictures.may_flip({"group": "people-body", "text": "man walking facing right"})
    assert pictures.may_flip({"group": "animals-nature", "text": "dog face"})


# ---- models and training -------------------------------------------------------------------------


def test_table_of_sd1_from_its_widths() -> None:
    assert profiles.unet_table((320, 640, 1280, 1280), 2, (0, 1, 2), 768) == SD1


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_profiles_stay_below_40_megabytes(name: str) -> None:
    with torch.device("meta"):
        parts = [profiles.new_unet, profiles.new_text_encoder, profiles.new_vae]
        models = [new(profiles.PROFILES[name]) for new in parts]
    count = sum(p.numel() for model in models for p in model.parameters())
    assert 2 * count < 39.9e6


def test_scale_is_folded_into_the_weights(pack: data.Pack) -> None:
    torch.manual_seed(0)
    vae = profiles.new_vae(profiles.PROFILES["quick"]).requires_grad_(False)
    images = on_white(pack.rgba[:64])
    before, moments = vae.decode(vae.encode(images)), vae.moments(images)
    autoencoder.fold_scale(vae, [images])
    z = vae.encode(images)
    assert torch.allclose(vae.decode(z), before, atol=1e-4)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    # The posterior's spread is in the new unit too.
    spread, was = (torch.exp(0.5 * m[:, 4:]) for m in (vae.moments(images), moments))
    ratio = z.std((0, 2, 3)) / moments[:, :4].std((0, 2, 3)) / autoencoder.SCALE
    assert torch.allclose(spread, was * ratio[:, None, None], rtol=1e-3)


def test_a_run_that_was_stopped_ends_as_if_it_were_not(tmp_path: Path) -> None:
    stage = profiles.Stage(batch=4, lr=1e-2, minutes=1, steps=12, warmup=3, average=0.9)
    profile = profiles.Profile("toy", 32, (32,), (32,), (), (32, 1), *[stage] * 4, 1)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def run(folder: Path, stop_at: int | None) -> torch.Tensor:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        state = loop.State(nn.ModuleDict({"layer": nn.Linear(8, 1)}))
        if (path := folder / "autoencoder.pt").exists():
            state.load(path, profile.facts("autoencoder"))

        def losses_of(step: int) -> dict[str, torch.Tensor]:
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
            loss = (state.model["layer"](x) - x[:, :1]).square().mean()
            loss.backward()
            return {"loss": loss}

        loop.train("autoencoder", state, losses_of, profile, folder, profile.facts("autoencoder"))
        return state.average["layer"].weight

    with pytest.raises(loop.Stopped, match="saved at step 6"):
        run(tmp_path / "a", stop_at=5)
    assert not [*tmp_path.glob("a/*.part")]
    assert torch.equal(run(tmp_path / "a", None), run(tmp_path / "b", None))
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_parts_side_by_side_give_the_gradients_of_the_whole() -> None:
    """Of a batch that does not divide evenly; float32 sums in another order."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)), torch.randn(5, 8)

    def loss_of(model: nn.Module, some: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": model(some).square().mean()}

    passes = loop.Passes(model, torch.float32)
    with torch.no_grad():
        model[0].weight *= 2  # the copy follows
    whole = loss_of(model, x)["loss"]
    wanted = torch.autograd.grad(whole, [*model.parameters()])
    torch.set_num_threads(2)
    try:
        losses = passes(loss_of, [x])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.allclose(losses["loss"], whole)
    for parameter, gradient in zip(model.parameters(), wanted):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


def test_toy_is_a_checkpoint_that_draws(toy: Path) -> None:
    sd = minisd.load(toy / "model.safetensors")
    assert (sd.name, sd.native_size, sd.multiple) == ("minisd emoji 32", 32, 8)
    assert "MIT" in sd.licence
    drawn = minisd.txt2img(sd, "fire, 3d", steps=3, seed=1).image
    assert drawn.size == (32, 32)
    result = minisd.img2img(sd, "fire", drawn, steps=4, strength=0.5, seed=1)
    assert result.image.size == (32, 32)
    pack = data.read(EMOJI, 32)
    z = sd.vae.encode(on_white(pack.rgba))
    assert 0.6 < z.std() < 1.5
    for name in ("reconstructions.png", "samples.png"):
        assert (toy / name).exists()


def test_toy_learned_and_goes_on_where_it_was(toy: Path, tmp_path: Path) -> None:
    log = [json.loads(line) for line in (toy / "log.jsonl").read_text().splitlines()]
    last = {row["stage"]: row for row in log}
    assert last["autoencoder"]["step"] == last["diffusion"]["step"] == 60
    assert last["diffusion"]["mse"] < 0.9  # untrained it predicts nothing, which is 1
    before = (toy / "model.safetensors").read_bytes()
    arguments = ["--quick", "--data", str(EMOJI), "--device", "cpu"]
    assert main([*arguments, "--run", str(toy)]).read_bytes() == before  # nothing left to do
    with pytest.raises(SystemExit, match="another profile or seed"):
        main([*arguments, "--run", str(toy), "--seed", "1"])
    start = take_up(toy / "model.safetensors")
    assert (start["step"], set(start)) == (60, {"vae", "unet", "text_encoder", "step", "seconds"})
    path = main([*arguments, "--run", str(tmp_path), "--from", str(toy / "model.safetensors")])
    a, b = (minisd.load(p).unet.state_dict() for p in (toy / "model.safetensors", path))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_stopped_run_leaves_a_file_too(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffusion.pt", "model.safetensors"):
        (toy / name).rename(toy / f"kept {name}")
    steps = []

    def rate(*_: object) -> float:
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1e-3

    monkeypatch.setattr(loop, "learning_rate", rate)
    with pytest.raises(loop.Stopped, match="step 4"):
        main(["--quick", "--data", str(EMOJI), "--run", str(toy), "--device", "cpu"])
    assert take_up(toy / "model.safetensors")["step"] == 4
    for name in ("diffusion.pt", "model.safetensors"):
        (toy / f"kept {name}").replace(toy / name)


def test_toy_is_evaluated(toy: Path, tmp_path: Path) -> None:
    arguments = [str(toy / "model.safetensors"), "--data", str(EMOJI), "--out", str(tmp_path)]
    few = ["--labels", "2", "--each", "1", "--drawings", "3", "--prompts", "4", "--steps", "10"]
    found = evaluate.main([*arguments, *few, "--device", "cpu"])
    assert found == json.loads((tmp_path / "evaluation.json").read_text())
    assert found["autoencoder"]["on white"]["n"] == 13
    assert found["captions"]["ceiling: the real held-out pictures"]["top5"] > 0
    assert 0 <= found["img2img"]["distance grows"] <= 1
    assert "| img2img: distance grows with strength |" in (tmp_path / "card.md").read_text()
    sheets = {path.name for path in tmp_path.glob("*.png")}
    assert {"prompts.png", "img2img.png", "another prompt.png", "fire.png"} <= sheets
    assert len((Path(evaluate.__file__).parent / "prompts.txt").read_text().splitlines()) == 100


def test_measures_on_known_pictures() -> None:
    a = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (evaluate.psnr(a * 0.5, a * 0.5 + 0.1) - 20).abs().max() < 1e-3
    assert (evaluate.ssim(a, a) - 1).abs().max() < 1e-5
    assert evaluate.ssim(a, 1 - a).max() < 0


def test_features_know_a_picture_moved_and_on_another_ground(pack: data.Pack) -> None:
    white = (on_white(pack.rgba) + 1) / 2
    space = evaluate.Space(white, [row["codepoint"] for row in pack.rows])
    moved = torch.roll(white, (1, 2), (2, 3))
    codes = np.array([row["codepoint"] for row in pack.rows])
    assert (space.nearest(moved)[:, 0] == codes).mean() > 0.9
