"""The training of the weights: its parts, and two trainings from end to end on 292 pictures."""

import argparse
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import minisd
from minisd.guidance import Guided
from minisd.tokenizer import END, Tokenizer
from minisd.unet import SD1
from weights.train import __main__ as train_main
from weights.train import (
    autoencoder,
    build_dataset,
    captions,
    data,
    diffusion,
    doodles,
    evaluate,
    loop,
    pictures,
    profiles,
)
from weights.train.cache import Cache
from weights.train.enlarge import enlarge
from weights.train.export import resume
from weights.train.pictures import Background, Company, on_white
from weights.train.pool import draw_pool

pytestmark = pytest.mark.slow  # training is not part of the installed package

EMOJI = Path(__file__).parent / "data" / "emoji"
BOTH = pytest.mark.parametrize(
    ("name", "profile", "steps"),  # a fixture, its profile, and the UNet's steps
    [("brief", "brief", 6), pytest.param("toy", "quick", 60, marks=pytest.mark.slow)],
    ids=["brief", "toy"],
)


@pytest.fixture(scope="module")
def pack() -> data.Pack:
    return data.read(EMOJI, 32)


def train(folder: Path, profile: str, *switches: str) -> Path:
    arguments = ["--data", str(EMOJI), "--run", str(folder), "--device", "cpu"]
    return train_main.main(["--profile", profile, *arguments, *switches])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training with the profile `quick`."""
    folder = tmp_path_factory.mktemp("toy")
    train(folder, "quick")
    return folder


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same with a profile of only a few steps. The model has learned nothing."""
    quick = profiles.PROFILES["quick"]
    steps = {"autoencoder": 2, "decoder": 2, "words": 2, "diffusion": 6}
    stages: dict[str, Any] = {
        name: replace(getattr(quick, name), steps=n) for name, n in steps.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            profiles.PROFILES,
            "brief",
            replace(quick, name="brief", variants=1, anything=8, **stages),
        )
        patch.setattr(train_main, "FIT_PICTURES", 20)
        patch.setattr(train_main, "PROMPTS", ("fire", "red heart"))
        folder = tmp_path_factory.mktemp("brief")
        train(folder, "brief")
        yield folder


# ---- data ----------------------------------------------------------------------------------------


def test_split_is_a_function_of_the_rows(pack: data.Pack) -> None:
    parts = data.split(pack.rows)
    shuffled = np.random.default_rng(0).permutation(len(pack.rows))
    assert (data.split([pack.rows[i] for i in shuffled]) == parts[shuffled]).all()
    drawings = np.array([row["style"] == "noto sketch" for row in pack.rows])
    assert ((parts == "drawing") == drawings).all()
    rows_of = {
        name: [row for row, part in zip(pack.rows, parts, strict=True) if part == name]
        for name in ("train", "held")
    }
    trained, held = Counter(row["codepoint"] for row in rows_of["train"]), rows_of["held"]
    assert 0.03 < len(held) / (~drawings).sum() < 0.08
    assert all(trained[row["codepoint"]] >= 2 for row in held)


def test_order_shows_every_picture_once_an_epoch() -> None:
    order = np.concatenate([data.order(50, 7, step, 8) for step in range(25)])  # four epochs
    assert (np.bincount(order) == 4).all()
    assert all(len(set(epoch)) == 50 for epoch in order.reshape(4, 50))
    assert (data.order(50, 7, 3, 8) == order[24:32]).all()
    assert (data.order(50, 8, 3, 8) != order[24:32]).any()


def test_the_white_around_a_subject_becomes_transparent() -> None:
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


def test_captions_name_unusual_features_and_have_clip_s_tokens(pack: data.Pack) -> None:
    stylist, alike = pictures.Stylist(pack.rows), captions.synonyms(pack.rows)
    assert "flame" in alike["1f525"]
    which = np.arange(len(pack.rows)).repeat(4)
    looks = stylist(which, np.random.default_rng(3))
    words, tokenizer = captions.Words(), Tokenizer()
    counts: Counter[tuple[Background, bool]] = Counter()  # (background, whether it is named)
    for i, index in enumerate(which):
        look, row = looks.of(i), pack.rows[index]
        arguments = (row, alike[row["codepoint"]], look, pack.rows[looks.other[i]])
        text = captions.caption(Random(i), *arguments)
        assert text == captions.caption(Random(i), *arguments)
        ids = tokenizer([text])[0, : captions.PLACES]
        if ids[-1] == END:
            assert (words(text) == ids.numpy()).all()
        if look.rough:
            assert any(word in text for word in ("rough", "crude", "daubed"))
        if look.company is Company.ON_FIRE:
            assert any(word in text for word in ("fire", "burning", "flames"))
        counts[look.background, any(w in text for w in ("background", " on ", "dark"))] += 1
    assert counts[Background.PLAIN, True] > counts[Background.PLAIN, False] > 0
    assert counts[Background.WHITE, False] > counts[Background.WHITE, True] > 0


# ---- pictures ------------------------------------------------------------------------------------


# The sum of each field of the looks for seed 1. If one changes, seeds give other pictures.
SUMS = {
    "background": 314,
    "colour": 1429,
    "company": 55,
    "other": 42580,
    "rough": 24,
    "ink": 22,
    "arch": 23,
    "place": 387.048818,
    "place2": 393.950397,
    "ground": 1871.024449,
    "slope": 2334.906119,
    "glow": 440.172019,
    "strokes": 1226.562001,
    "wobble": -149.110836,
}


def test_the_looks_of_a_seed_stay_the_same(pack: data.Pack) -> None:
    stylist, which = pictures.Stylist(pack.rows), np.arange(len(pack.rows))
    looks = vars(stylist(which, np.random.default_rng(1)))
    assert {name: values.sum() for name, values in looks.items()} == pytest.approx(SUMS, abs=1e-5)


def test_pictures_depend_on_the_seed_only(pack: data.Pack) -> None:
    stylist, which = pictures.Stylist(pack.rows), np.arange(64)
    looks = [stylist(which, np.random.default_rng([0, step])) for step in (5, 5, 6)]
    a, b, c = (pictures.draw(pack, which, look) for look in looks)
    assert a.shape == (64, 3, 32, 32)
    assert a.min() >= -1 and a.max() <= 1
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    halves = [pictures.draw(pack, *half) for half in pictures.pieces(which, looks[0], 32)]
    assert torch.allclose(torch.cat(halves), a, atol=1e-5)


def test_plain_pictures_are_unchanged(pack: data.Pack) -> None:
    which = np.arange(len(pack.rows))
    looks = pictures.Stylist(pack.rows)(which, np.random.default_rng(0), plain=True)
    drawn = pictures.draw(pack, which, looks)
    assert (drawn - on_white(pack.rgba)).abs().max() < 1e-4


def test_pictures_of_anything_depend_on_the_seed_only(pack: data.Pack) -> None:
    which = torch.arange(12)

    def drawn(seed: int) -> torch.Tensor:
        return doodles.anything(pack.rgba, which, torch.Generator().manual_seed(seed))

    a = drawn(1)
    assert a.shape == (12, 3, 32, 32) and a.dtype == torch.uint8
    assert torch.equal(a, drawn(1)) and not torch.equal(a, drawn(2))
    assert len({picture.numpy().tobytes() for picture in a}) == 12


def test_a_redrawn_picture_has_few_colours_unless_it_keeps_detail(pack: data.Pack) -> None:
    """At most 6 colours, 1 of outlines, and mixtures of the two at their rims."""
    rgba = pack.rgba[:8]

    def colours(detail: float) -> float:
        hand = doodles.Hand(8, 32, torch.Generator().manual_seed(0))
        hand.normal = lambda *shape: torch.zeros(8, *shape)  # no crayon grain
        layer = doodles.placed(hand, rgba, *(torch.full((8,), v) for v in (0.9, 0.0, 0.0, 0.0)))
        drawn = doodles.redrawn(hand, layer, torch.full((8,), detail))
        solid = [picture[:3, picture[3] == 1] for picture in drawn]
        counts = [len(pixels.unique(dim=1).T) / pixels.shape[1] for pixels in solid]
        return float(np.mean(counts))

    assert colours(0.0) < 0.1 < colours(0.9)


def test_the_pool_has_things_drawings_and_anything_in_this_order(pack: data.Pack) -> None:
    which = np.flatnonzero(data.split(pack.rows) == "train")[:5]
    profile = replace(profiles.PROFILES["quick"], variants=3, drawings=2, anything=7, captions=2)
    pool = draw_pool(pack, which, profile, None, seed=0)
    assert pool.kinds == (15, 10, 7) and len(pool.pictures) == len(pool.tokens) == 32
    plain = pool.pictures[:15:3].float() / 127.5 - 1
    assert (plain - on_white(pack.rgba[torch.from_numpy(which)])).abs().max() < 0.01
    assert pool.tokens.shape == (32, 2, captions.PLACES)
    batch = pool.batch(20, torch.Generator().manual_seed(0))
    assert batch.shape == (20, 3, 32, 32) and batch.min() >= -1 and batch.max() <= 1


def test_the_noise_level_decides_which_pictures_are_learned() -> None:
    """Latents whose values are their kind: 0 for things, 1 for drawings, 2 for anything."""
    counts = (40, 30, 50)
    kinds = torch.arange(3).repeat_interleave(torch.tensor(counts))
    latents = kinds.half()[:, None, None, None].expand(-1, 4, 2, 2)
    tokens = torch.full((120, 2, captions.PLACES), END, dtype=torch.int32)
    choice = diffusion.Choice(Cache(latents, tokens, counts, 4, {}), 4000, seed=0)
    x0, _, t, abar, present, noise = choice(0)
    assert torch.equal(x0, choice(0)[0]) and not torch.equal(noise, choice(1)[5])
    assert torch.equal(t.sort().values, torch.arange(1000).repeat_interleave(4))
    assert torch.allclose(abar, torch.tensor(diffusion.ABAR, dtype=torch.float32)[t])
    kind = x0[:, 0, 0, 0].long()
    assert (kind[t >= 930] == 0).all()
    assert (kind[t >= 820] < 2).all()
    low = torch.bincount(kind[t < 300], minlength=3) / (t < 300).sum()
    expected = torch.tensor(diffusion.KINDS_AT[0])
    assert (low - expected).abs().max() < 0.06  # four standard deviations of 1,200 draws
    assert torch.allclose(diffusion.kind_shares().sum(1), torch.ones(1000))
    sigma = (1 / abar - 1).sqrt()
    is_partly = present < 1
    assert not is_partly[sigma <= diffusion.FROM_NOISE].any()
    high = sigma > diffusion.FROM_NOISE
    assert abs(is_partly[high].float().mean() - 0.5) < 0.06
    assert torch.allclose(present[is_partly], 1 - sigma[is_partly] / 14.6146, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_x0_follows_from_the_target_whatever_share_of_it_the_network_sees(share: float) -> None:
    """A model that knows x0 and returns (x - sqrt(abar) x0) / sqrt(1 - abar) has no loss."""
    x0, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    abar = torch.tensor([0.005, 0.2, 0.9])
    a, b = abar.sqrt()[:, None, None, None], (1 - abar).sqrt()[:, None, None, None]

    class Knows(torch.nn.Module):
        def forward(self, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return (x - a * x0) / b

    models = torch.nn.ModuleDict({"unet": Knows(), "text_encoder": torch.nn.Identity()})
    t, present = torch.tensor([990, 700, 100]), torch.full((3,), share)
    losses = diffusion.eps_loss(models, x0, torch.zeros(3, 77), t, abar, present, noise)
    assert max(map(float, losses)) < 1e-9


def test_a_small_pack_keeps_the_held_out_pictures(pack: data.Pack, tmp_path: Path) -> None:
    labels = sorted({row["text"] for row in pack.rows})[:2]
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    few = str(tmp_path / "labels.txt")  # an absolute path replaces the training's own folder
    build_dataset.shrink(EMOJI, tmp_path, 16, few, others=200)
    small = data.read(tmp_path, 16)
    held = [
        {
            (row["codepoint"], row["style"])
            for row, part in zip(rows, parts, strict=True)
            if part == "held"
        }
        for rows, parts in ((p.rows, data.split(p.rows)) for p in (pack, small))
    ]
    assert held[0] == held[1] and len(small.rows) < len(pack.rows)
    with pytest.raises(SystemExit, match="too few"):
        build_dataset.shrink(EMOJI, tmp_path, 16, few, others=0)


def test_writing_and_directions_are_not_flipped() -> None:
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
    assert torch.allclose(z.std((0, 2, 3)), torch.full((4,), autoencoder.STD), atol=1e-3)
    # The posterior's spread is scaled too.
    spread, old_spread = (torch.exp(0.5 * m[:, 4:]) for m in (vae.moments(images), moments))
    ratio = z.std((0, 2, 3)) / moments[:, :4].std((0, 2, 3)) / autoencoder.SCALE
    assert torch.allclose(spread, old_spread * ratio[:, None, None], rtol=1e-3)


def test_a_stopped_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    stage = profiles.Stage(batch=4, lr=1e-2, minutes=1, steps=12, warmup=3, average=0.9)
    profile = profiles.Profile("toy", 32, (32,), (32,), (), (32, 1), *[stage] * 4, 1, 1, 1)
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


def test_a_training_ends_by_a_given_time(tmp_path: Path) -> None:
    profile = train_main.limited(profiles.PROFILES["quick"], time.monotonic() + 2, new=False)
    assert profile.words.minutes == profile.decoder.minutes == 0
    state = loop.State(nn.ModuleDict({"layer": nn.Linear(8, 1)}))

    def losses_of(step: int) -> dict[str, torch.Tensor]:
        loss = state.model["layer"](torch.ones(4, 8)).square().mean()
        loss.backward()
        return {"loss": loss}

    loop.train("autoencoder", state, losses_of, profile, tmp_path, {})
    assert state.step > 1 and state.seconds < 30


def test_compiled_passes_are_compared_with_plain_ones(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 16), "b": nn.Linear(16, 1)})

    def loss_of(model: nn.ModuleDict, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": model["b"](model["a"](x)).float().square().mean()}

    passes = loop.Passes(model)
    passes.check(loss_of, [torch.ones(4, 8)])
    *lines, speeds = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("errors of gradients" in line for line in lines)
    assert re.fullmatch(r"[\d,]+ pictures/s plain, [\d,]+ compiled", speeds)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_failure_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with loop.replacing(path) as part:
        part.write_text("old")
    with pytest.raises(OSError, match="no space"), loop.replacing(path) as part:
        part.write_text("half of the new")
        raise OSError("no space")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["state.pt"]


@torch.inference_mode()
def test_a_file_with_larger_latents_shows_the_same_pictures(
    toy: Path, tmp_path: Path, pack: data.Pack
) -> None:
    with torch.inference_mode(False):
        missed = enlarge(toy / "model.safetensors", tmp_path / "new.safetensors")
    assert missed < 0.05  # the small model's: 0.04 %; the toy has half of its frequencies
    old, new = map(minisd.load, (toy / "model.safetensors", tmp_path / "new.safetensors"))
    images = on_white(pack.rgba[:8])
    z, z_old = new.vae.encode(images), old.vae.encode(images)
    assert torch.allclose(z, 2 * z_old, atol=0.02)  # the weights are rounded to float16
    assert torch.allclose(new.vae.decode(z), old.vae.decode(z_old), atol=0.02)
    # Where the first convolution's factor is right, the UNet predicts what the old one does.
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    context = old.text_states("").expand(8, -1, -1)
    predicted = [
        Guided(sd.unet, context, context, 1.0)(clean + sigma * noise, sigma) - noise
        for sd, clean, sigma in ((old, z_old, 0.5), (new, z, 1.0))
    ]
    assert (predicted[1] - predicted[0]).square().mean() < 0.01 * predicted[0].square().mean()


def test_gradients_of_the_parts_of_a_batch_sum_to_the_batch_s() -> None:
    """For a batch that does not divide evenly. Float32 sums are in another order."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)), torch.randn(5, 8)

    def loss_of(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": model(x).square().mean()}

    passes = loop.Passes(model, torch.float32)
    with torch.no_grad():
        model[0].weight *= 2  # the copy follows
    loss = loss_of(model, x)["loss"]
    gradients = torch.autograd.grad(loss, [*model.parameters()])
    torch.set_num_threads(2)
    try:
        losses = passes(loss_of, [x])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.allclose(losses["loss"], loss)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


# ---- from end to end -----------------------------------------------------------------------------


@BOTH
def test_the_exported_file_is_a_checkpoint_that_draws(
    name: str, profile: str, steps: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    sd = minisd.load(folder / "model.safetensors")
    assert (sd.name, sd.native_size, sd.multiple) == ("minisd emoji 32", 32, 8)
    assert "MIT" in sd.licence
    drawn = minisd.txt2img(sd, "fire, 3d", steps=3, seed=1).image
    assert drawn.size == (32, 32)
    result = minisd.img2img(sd, "fire", drawn, steps=4, strength=0.5, seed=1)
    assert result.image.size == (32, 32)
    pack = data.read(EMOJI, 32)
    z = sd.vae.encode(on_white(pack.rgba))
    assert 0.6 < z.std() / autoencoder.STD < 1.5
    for file in ("reconstructions.png", "samples.png"):
        assert (folder / file).exists()


def test_the_toy_learned(toy: Path) -> None:
    log = [json.loads(line) for line in (toy / "log.jsonl").read_text().splitlines()]
    last = {row["stage"]: row for row in log}
    assert last["autoencoder"]["step"] == last["diffusion"]["step"] == 60
    assert last["diffusion"]["mse"] < 0.9  # an untrained UNet predicts 0, which gives 1


@BOTH
def test_a_finished_training_has_nothing_left_to_do(
    name: str, profile: str, steps: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    before = (folder / "model.safetensors").read_bytes()
    assert train(folder, profile).read_bytes() == before
    with pytest.raises(SystemExit, match="another profile or seed"):
        train(folder, profile, "--seed", "1")


@BOTH
def test_training_continues_from_an_exported_file(
    name: str, profile: str, steps: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    file = request.getfixturevalue(name) / "model.safetensors"
    start = resume(file)
    assert set(start) == {"vae", "unet", "text_encoder", "step", "seconds"}
    assert start["step"] == steps
    path = train(tmp_path, profile, "--from", str(file))
    a, b = (minisd.load(p).unet.state_dict() for p in (file, path))
    assert all(torch.equal(a[key], b[key]) for key in a)


@BOTH
def test_a_stopped_training_leaves_a_file_too(
    name: str,
    profile: str,
    steps: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = request.getfixturevalue(name)
    for file in ("diffusion.pt", "model.safetensors"):
        (folder / file).rename(folder / f"kept {file}")
    calls = []

    def rate(*_: object) -> float:
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1e-3

    monkeypatch.setattr(loop, "learning_rate", rate)
    with pytest.raises(loop.Stopped, match="step 4"):
        train(folder, profile)
    assert resume(folder / "model.safetensors")["step"] == 4
    for file in ("diffusion.pt", "model.safetensors"):
        (folder / f"kept {file}").replace(folder / file)


# ---- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "grows"),
    # With two steps no run changes but the one from 0.4 to 0.5, of eight.
    [("brief", "2", 1 / 8), pytest.param("toy", "10", 1.0, marks=pytest.mark.slow)],
    ids=["brief", "toy"],
)
def test_a_file_is_evaluated(
    name: str, steps: str, grows: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    file = request.getfixturevalue(name) / "model.safetensors"
    arguments = [str(file), "--data", str(EMOJI), "--out", str(tmp_path), "--each", "1"]
    arguments += ["--labels", "2", "--drawings", "3", "--prompts", "4", "--steps", steps]
    report = evaluate.main([*arguments, "--device", "cpu"])
    assert report == json.loads((tmp_path / "evaluation.json").read_text())
    assert report["autoencoder"]["on white"]["n"] == 13
    # The ceilings do not depend on the model: features.py recognizes these real pictures.
    ceiling = {"top1": 1.0, "top5": 1.0}
    assert report["captions"]["ceiling: the real held-out pictures"] == {"n": 2, **ceiling}
    assert report["img2img"]["ceiling: the drawings themselves"] == {"n": 3, **ceiling}
    assert report["img2img"]["distance grows"] == pytest.approx(grows, abs=0.1)
    assert "| img2img: distance grows with strength |" in (tmp_path / "card.md").read_text()
    sheets = {path.name for path in tmp_path.glob("*.png")}
    assert {"prompts.png", "img2img.png", "another prompt.png", "fire.png"} <= sheets
    assert len((Path(evaluate.__file__).parent / "prompts.txt").read_text().splitlines()) == 100


@pytest.mark.parametrize(
    ("sampler", "strength"), [("k_lms", 0.5), ("ddim", 0.0), ("k_euler_a", 1.0)]
)
def test_a_batch_of_prompts_equals_single_runs(
    sampler: str, strength: float, emoji: minisd.StableDiffusion
) -> None:
    """Each picture of `generate` is the one that minisd draws. Picture i has the seed i."""
    prompts = ["fire", "red apple, 3d", "house"]
    settings = argparse.Namespace(sampler=sampler, steps=4, guidance=4.0, batch=2)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    from_noise = evaluate.generate(emoji, prompts, settings)
    from_images = evaluate.generate(emoji, prompts, settings, images, strength)
    for i, prompt in enumerate(prompts):
        events: list[Any] = []
        arguments = {"steps": 4, "sampler": sampler, "guidance": 4.0, "seed": i}
        arguments["observe"] = events.append
        minisd.txt2img(emoji, prompt, **arguments)
        assert_same_picture(from_noise[i], events[-1])
        with torch.inference_mode():
            x0 = emoji.vae.encode(images[i : i + 1])
        minisd.img2img(emoji, prompt, x0, strength=strength, **arguments)
        assert_same_picture(from_images[i], events[-1])


def assert_same_picture(picture: torch.Tensor, event: minisd.Decoded) -> None:
    decoded = (event.image[0].clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(picture, decoded, rtol=0, atol=1e-4)


NO_MODEL: Any = None  # `generate` is replaced in the tests below


def small_settings(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(out=tmp_path, labels=3, each=1, drawings=4)


@pytest.fixture(scope="module")
def space(pack: data.Pack) -> evaluate.Space:
    train_rows = np.flatnonzero(data.split(pack.rows) == "train")
    trained = pack.take(train_rows)
    white = (on_white(trained.rgba) + 1) / 2
    return evaluate.Space(white, [row["codepoint"] for row in trained.rows])


def test_a_perfect_model_is_right_in_captions(
    pack: data.Pack, space: evaluate.Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It returns the real picture for a prompt; a model that always draws the same is wrong."""
    white = (on_white(pack.rgba) + 1) / 2
    index = {f"{r['text']}, {data.STYLES[r['style']][0]}": i for i, r in enumerate(pack.rows)}
    parts, settings = data.split(pack.rows), small_settings(tmp_path)

    def perfect(sd: object, prompts: list[str], settings: object) -> torch.Tensor:
        return white[[index[prompt] for prompt in prompts]]

    monkeypatch.setattr(evaluate, "generate", perfect)
    report = evaluate.evaluate_captions(NO_MODEL, pack, parts, space, settings)
    assert report["seen"]["n"] > 10 and report["seen"]["top1"] == 1.0
    ceiling = report["ceiling: the real held-out pictures"]
    assert {key: report["held out"][key] for key in ceiling} == ceiling

    def constant(sd: object, prompts: list[str], settings: object) -> torch.Tensor:
        return white[[index[prompts[0]] for _ in prompts]]

    monkeypatch.setattr(evaluate, "generate", constant)
    report = evaluate.evaluate_captions(NO_MODEL, pack, parts, space, settings)
    assert report["seen"]["top1"] == pytest.approx(1 / 3, abs=0.05)  # one label of three


@pytest.mark.parametrize(("fades", "grows"), [(True, 1.0), (False, 0.0)])
def test_img2img_is_measured_on_known_results(
    fades: bool,
    grows: float,
    pack: data.Pack,
    space: evaluate.Space,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results that fade to white with strength, or from white: distances, edges, subjects."""

    def faded(
        sd: object, prompts: list[str], settings: object, images: torch.Tensor, strength: float
    ) -> torch.Tensor:
        share = strength / 4 if fades else (1 - strength) / 4
        lines = (images + 1) / 2
        return lines + share * (1 - lines)

    monkeypatch.setattr(evaluate, "generate", faded)
    parts, settings = data.split(pack.rows), small_settings(tmp_path)
    report = evaluate.evaluate_img2img(NO_MODEL, pack, parts, space, settings)
    assert report["distance grows"] == grows
    assert set(report["edges stay"].values()) == {1.0}
    ceiling = report["ceiling: the drawings themselves"]
    assert report["right at 0.4"] == report["right at 0.7"] == ceiling
    assert ceiling["top1"] > 0.7
    assert report["another prompt at 0.7"]["top1"] == 0.0  # these are still the first drawings


class Keeps:
    """A stand-in for a model: its latents are the pictures, and it predicts no noise at all."""

    native_size, device = 32, torch.device("cpu")

    def __init__(self) -> None:
        self.vae = self

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    decode = encode

    def text_states(self, prompt: str) -> torch.Tensor:
        return torch.zeros(1, 77, 4)

    def unet(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def test_the_error_at_low_noise_of_a_model_that_predicts_none(pack: data.Pack) -> None:
    """x0 is then off by sigma times the noise, for drawings and emoji alike."""
    sd: Any = Keeps()
    report = evaluate.evaluate_low_noise(sd, pack, data.split(pack.rows), small_settings(Path()))
    for t in evaluate.LOW_NOISE:
        variance = (1 - evaluate.ABAR[t]) / evaluate.ABAR[t]
        part = report[str(t)]
        # 24 emoji with 3 noises are 220,000 numbers: their variance is known to 1 %.
        assert part["drawings"] == pytest.approx(variance, rel=0.02)
        assert part["ratio"] == pytest.approx(1, abs=0.03)


def test_the_dial_of_results_that_fade_to_the_thing(
    pack: data.Pack, space: evaluate.Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are the drawing up to 0.5, and from 0.6 the picture of the thing."""
    names = [row["text"] for row in pack.rows]
    white = (on_white(pack.rgba) + 1) / 2

    def switched(
        sd: object, prompts: list[str], settings: object, images: torch.Tensor, strength: float
    ) -> torch.Tensor:
        if strength < 0.55:
            return (images + 1) / 2
        return white[[names.index(prompt) for prompt in prompts]]

    monkeypatch.setattr(evaluate, "generate", switched)
    coloured, labels = evaluate.coloured_drawings(Keeps())  # type: ignore[arg-type]
    known = [i for i, label in enumerate(labels) if label in names]
    assert len(coloured) == 52 and len(known) > 10
    picked = coloured[known], [labels[i] for i in known]
    monkeypatch.setattr(evaluate, "coloured_drawings", lambda sd: picked)
    settings = argparse.Namespace(out=tmp_path, each=1, drawings=60)
    sd: Any = Keeps()
    report = evaluate.evaluate_dial(sd, pack, data.split(pack.rows), space, settings)
    part = report["coloured drawings"]
    assert part["n"] == len(known)
    assert part["ssim"]["0.5"] == pytest.approx(1, abs=1e-4)
    assert part["largest step"] == part["share of each step"]["0.6"] == 1.0
    assert part["rises"] == pytest.approx(0.1, abs=1e-6)  # one step of ten
    assert part["seen as"]["0.5"] == {"drawing": 1.0, "thing": 0.0, "neither": 0.0}
    assert part["seen as"]["0.6"]["thing"] > 0.7


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
