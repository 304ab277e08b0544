"""Recipes: one frozen value from Python, the command line and pictures to the run."""

import dataclasses
import shlex
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minisd
from minisd.cli.main import main
from minisd.prompts import text_states
from minisd.recipes import prepare
from minisd.recipes.dream import dream_line, read_dream
from minisd.recipes.recipe import fitted
from minisd.recipes.variations import varied_noise
from tests.stand_ins import StandIn

RECIPE = minisd.Recipe("fire", strength=0.5, steps=4, seed=3, guidance=4.0)


@pytest.fixture
def drawing():
    image = Image.radial_gradient("L").resize((64, 64))
    return Image.merge("RGB", (image, image.rotate(90), image))


def test_it_is_frozen_and_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPE.steps = 5
    for wrong, message in [
        ({"strength": 1.5}, "strength must be between"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"dialect": "klingon"}, "no dialect named 'klingon'"),
    ]:
        with pytest.raises(ValueError, match=message):
            minisd.Recipe("fire", **wrong)


def test_it_draws_what_img2img_draws(emoji, drawing):
    settings = {"strength": 0.5, "steps": 4, "seed": 3, "guidance": 4.0}
    result = RECIPE.draw(emoji, drawing)
    assert torch.equal(result.latent, minisd.img2img(emoji, "fire", drawing, **settings).latent)
    del settings["strength"]
    plain = minisd.txt2img(emoji, "fire", **settings)
    assert torch.equal(RECIPE.draw(emoji).latent, plain.latent)


def test_every_field_counts(emoji, drawing, tmp_path):
    """Each field, changed alone, changes the picture as the matching argument does."""
    drawing.save(tmp_path / "in.png")
    context, negative = text_states(emoji, "a (red)1.5 fire [smoke]")
    recipe = dataclasses.replace(
        RECIPE, prompt="a (red)1.5 fire [smoke]", image=tmp_path / "in.png", sampler="ddim",
        schedule="karras", negative_prompt="water", variations=((8, 0.4),), options={"eta": 0.7},
    )  # fmt: skip
    result = recipe.draw(emoji)
    wanted = minisd.img2img(
        emoji, context, drawing, strength=0.5, steps=4, seed=3, guidance=4.0,
        negative_prompt=f"{negative} water", schedule="karras",
        noise=varied_noise(3, ((8, 0.4),), (1, 4, 16, 16)),
        sampler=lambda predict_eps, x, sigmas, generator: minisd.SAMPLERS["ddim"](
            predict_eps, x, sigmas, eta=0.7, generator=generator
        ),
    )  # fmt: skip
    assert torch.equal(result.latent, wanted.latent)
    for name, value in [
        ("prompt", "fire"),
        ("negative_prompt", ""),
        ("variations", ()),
        ("options", {}),
        ("schedule", None),
        ("seed", 4),
        ("guidance", 3.0),
        ("strength", 0.75),
        ("steps", 6),
    ]:
        other = dataclasses.replace(recipe, **{name: value}).draw(emoji)
        assert not torch.equal(other.latent, result.latent), name


def test_a_latent_and_a_mask_replace_the_files(emoji, drawing):
    pixels = torch.from_numpy(np.array(drawing)).permute(2, 0, 1)[None] / 255 * 2 - 1
    with torch.inference_mode():
        latent = emoji.vae.encode(pixels.float())
    by_picture, by_latent = RECIPE.draw(emoji, drawing), RECIPE.draw(emoji, latent)
    assert torch.equal(by_picture.latent, by_latent.latent)

    mask = Image.new("L", (64, 64), "white")
    mask.paste("black", (32, 0, 64, 64))
    kept = np.asarray(RECIPE.draw(emoji, drawing, mask).image)[:, :32]
    assert np.array_equal(kept, np.asarray(drawing)[:, :32])
    with pytest.raises(ValueError, match="not a latent"):
        RECIPE.draw(emoji, latent, mask)
    with pytest.raises(ValueError, match="a mask needs an init image"):
        RECIPE.draw(emoji, mask=mask)


def test_a_list_of_seeds(emoji, drawing):
    batch = dataclasses.replace(RECIPE, seed=[3, 5], variations=((8, 0.4),)).draw(emoji, drawing)
    assert batch.seeds == [3, 5] and len(batch.images) == 2
    for i, seed in enumerate((3, 5)):
        alone = dataclasses.replace(RECIPE, seed=seed, variations=((8, 0.4),))
        latent = alone.draw(emoji, drawing).latent
        # A batch's sums are rounded in another order; see test_insertion.py.
        torch.testing.assert_close(batch.latent[i : i + 1], latent, rtol=0, atol=1e-3)


def test_jobs_share_pictures_and_texts(emoji, drawing):
    texts = []
    hook = emoji.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    job = prepare(RECIPE, emoji, drawing)
    for seed in (1, 2):
        dataclasses.replace(job, recipe=dataclasses.replace(RECIPE, seed=seed)).draw()
    hook.remove()
    assert len(texts) == 2  # the prompt and the negative prompt


def test_a_seed_is_drawn_once(emoji, drawing):
    job = prepare(dataclasses.replace(RECIPE, seed=None), emoji, drawing)
    assert torch.equal(job.draw().latent, job.draw().latent)


def test_unknown_options(emoji):
    with pytest.raises(ValueError, match="k_euler has no option 'eta'; it has no options"):
        dataclasses.replace(RECIPE, sampler="k_euler", options={"eta": 1}).draw(emoji)


# ---- sizes ---------------------------------------------------------------------------------------


class Model64(StandIn):
    native_size = 64


def prepared(recipe, size):
    """The job for a picture of this size, and the warnings as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        job = prepare(recipe, Model64(), Image.new("RGB", size))
    return job, "; ".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("size", "box", "expected", "change"),
    [
        ((100, 70), (64, 64), (64, 48), "7%"),
        ((63, 65), (64, 64), (64, 64), "3%"),
        ((65, 63), (64, 64), (64, 64), "3%"),
        ((300, 200), (64, 64), (64, 48), "13%"),
        ((400, 300), (64, 64), (64, 48), None),
        ((30, 40), (64, 64), (48, 64), None),
        ((128, 128), (64, 48), (48, 48), None),
        ((200, 100), (100, 100), (96, 48), None),
        ((220, 100), (110, 110), (96, 48), "10%"),
        ((1000, 10), (64, 64), (64, 16), "2400%"),
        ((16, 16), (8, 8), (16, 16), None),
        ((1024, 683), (512, 512), (512, 336), None),
    ],
)
def test_fit_keeps_the_proportions_as_nearly_as_it_can(size, box, expected, change):
    job, notes = prepared(minisd.Recipe("x", fit=True, width=box[0], height=box[1]), size)
    assert job.size == expected == job.image.size
    assert (f"its proportions change by {change}" in notes) if change else "change" not in notes
    repeated, _ = prepared(job.recipe, size)  # the recipe keeps the box, and so the same size
    assert repeated.size == expected


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(1, 9), st.integers(1, 9))
def test_fit_rounds_to_the_nearest_multiples_inside_the_box(size, columns, rows):
    box = (16 * columns, 16 * rows)
    exact = [side * min(box[0] / size[0], box[1] / size[1]) for side in size]
    for side, exact_side, limit in zip(fitted(size, box, 16), exact, box):
        assert side % 16 == 0 and 16 <= side <= limit
        assert abs(side - exact_side) <= 8.001 or side == 16


@pytest.mark.parametrize(
    ("size", "notes"),
    [
        ((64, 64), ""),
        ((160, 130), "the init image: 160x130 becomes 160x128, multiples of 16"),
        ((70, 50), "becomes 64x48, multiples of 16; its proportions change by 5%"),
        ((63, 65), "becomes 48x64, multiples of 16; its proportions change by 29%"),
    ],
)
def test_without_fit_both_sides_are_rounded_down(size, notes):
    job, text = prepared(minisd.Recipe("x"), size)
    assert notes in text and bool(notes) == bool(text)
    assert job.size == tuple(n // 16 * 16 for n in size)


@pytest.mark.parametrize(
    ("prompt", "syntax"),
    [
        ("fire [smoke:ash:0.5]", "[smoke:ash:0.5]"),
        ("fire [smoke:0.5]", "[smoke:0.5]"),
        ("a [cow|horse] in a field", "[cow|horse]"),
        ("fire AND water", "AND"),
        ("fire BREAK water", "BREAK"),
        ("fire [smoke, ash] (big)1.3 tree+", None),
        ("fire:2 tree:1 [ratio 16:9]", None),
        (r"fire \[smoke\:ash\:0.5\]", None),
        ("sand and BREAKFAST", None),
    ],
)
def test_syntax_of_another_program_gets_a_note(emoji, prompt, syntax):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare(minisd.Recipe(prompt), emoji)
    notes = [str(warning.message) for warning in caught if "syntax" in str(warning.message)]
    assert notes == ([] if syntax is None else [f"{syntax!r} in the prompt is AUTOMATIC1111's "
                     "syntax: here it is plain words"])  # fmt: skip


# ---- as text -------------------------------------------------------------------------------------

RECIPES = [
    minisd.Recipe("fire"),
    minisd.Recipe('a "big" \\(fire\\)', seed=2, width=64, height=96, guidance=3.3),
    minisd.Recipe("-v", image="a b.png", strength=0.37, sampler="ddim", options={"eta": 0.5}),
    minisd.Recipe("fire:2 sea:1", image="i.png", mask="m.png", paste=False, normalize=False),
    minisd.Recipe("x", seed=1, variations=((5, 0.25), (6, 1.0)), schedule="karras"),
    minisd.Recipe("日本", image="i.png", fit=True, width=128, seed=7),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.prompt)
def test_the_line_reads_back(recipe):
    fields, notes = read_dream(dream_line(recipe))
    assert minisd.Recipe(**fields) == recipe and notes == []
    assert minisd.read_recipe(dream_line(recipe)) == recipe


def test_the_negative_prompt_goes_into_the_line():
    recipe = minisd.Recipe("fire", negative_prompt="smoke (grey)")
    assert recipe.command() == r"minisd txt2img 'fire [smoke \(grey\)]' -s 50 -C 7.5 -A k_lms"


@pytest.mark.parametrize("image", [False, True])
def test_the_command_draws_it(tmp_path, monkeypatch, emoji, drawing, image):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    drawing.save("in.png")
    recipe = dataclasses.replace(RECIPE, image="in.png" if image else None, negative_prompt="sea")
    words = shlex.split(recipe.command())
    assert main(words[1:]) == 0
    (path,) = tmp_path.glob("outputs/img-samples/*.png")
    assert Image.open(path).tobytes() == recipe.draw(emoji).image.tobytes()
    read = minisd.read_recipe(path)
    assert read.draw(emoji).image.tobytes() == recipe.draw(emoji).image.tobytes()


def test_metadata_as_text(tmp_path):
    text = "a fire\nNegative prompt: smoke\nSteps: 12, Sampler: Euler a, CFG scale: 5, Seed: 9"
    recipe = minisd.read_recipe(text)
    assert (recipe.prompt, recipe.negative_prompt, recipe.steps) == ("a fire", "smoke", 12)
    assert (recipe.sampler, recipe.guidance, recipe.seed) == ("k_euler_a", 5.0, 9)
    assert "AUTOMATIC1111" in recipe.notes[0]
    with pytest.raises(FileNotFoundError):
        minisd.read_recipe("nowhere.png")
    with pytest.raises(ValueError, match="no settings that can be read"):
        minisd.read_recipe("{}")
