"""Only what is transparent changes, by every sampler, the same each time."""

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd.inpaint import colours_erased

SETTINGS = {"steps": 8, "strength": 0.8, "guidance": 4, "seed": 5}


def face(emoji, words):
    """A face with a transparent square over its forehead, the colours under it kept."""
    image = minisd.txt2img(emoji, words, seed=3, steps=10, guidance=4).image
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[8:32, 16:48] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.fixture(scope="module")
def picture(emoji):
    return face(emoji, "cat face, noto")


def parts(picture, result):
    before, after = np.asarray(picture.convert("RGB")), np.asarray(result.image)
    alpha = np.asarray(picture.getchannel("A"))
    return before[alpha == 255], after[alpha == 255], before[alpha == 0], after[alpha == 0]


@pytest.mark.parametrize("sampler", list(minisd.SAMPLERS))
def test_opaque_stays_transparent_changes(emoji, picture, sampler):
    result = minisd.inpaint(emoji, "crown, noto", picture, sampler=sampler, **SETTINGS)
    kept, kept_after, hidden, hidden_after = parts(picture, result)
    assert np.array_equal(kept, kept_after)
    assert (hidden != hidden_after).mean() > 0.5
    again = minisd.inpaint(emoji, "crown, noto", picture, sampler=sampler, **SETTINGS)
    assert again.image.tobytes() == result.image.tobytes()


@pytest.mark.parametrize("sampler", ["k_lms", "ddim"])
def test_kept_latents_are_the_picture_and_the_run_s_own_noise(emoji, picture, sampler):
    """At every step, where nothing is redrawn: x0 + sigma * the noise put in at the start."""
    seen, steps = {}, []

    def observe(name, **values):
        seen[name] = values
        steps.extend(values.values() if name == "step" else [])

    minisd.inpaint(emoji, "crown", picture, sampler=sampler, observe=observe, **SETTINGS)
    x0, noise, keep = (seen["noised"][name] for name in ("x0", "noise", "keep"))
    kept = keep.expand_as(x0) == 1
    for step in steps:
        error = (step.x_next - x0 - step.sigma_next * noise)[kept].abs().max()
        assert error < 2e-4  # float32, of numbers up to 50 divided by sigma and multiplied again
    assert (step.x_next - x0)[keep.expand_as(x0) == 0].abs().max() > 0.1


def test_no_paste_gives_what_the_decoder_gives(emoji, picture):
    result = minisd.inpaint(emoji, "crown", picture, paste=False, **SETTINGS)
    kept, kept_after, *_ = parts(picture, result)
    difference = np.abs(kept.astype(int) - kept_after)
    assert 0 < difference.mean() < 10  # decoded, so not the same, and still the picture


def test_mask_instead_of_transparency(emoji, picture):
    by_alpha = minisd.inpaint(emoji, "crown", picture, **SETTINGS).image.tobytes()
    rgb, mask = picture.convert("RGB"), picture.getchannel("A")
    white_is_kept = minisd.inpaint(emoji, "crown", rgb, mask, **SETTINGS)
    assert white_is_kept.image.tobytes() == by_alpha
    transparent = Image.new("RGBA", rgb.size)
    transparent.putalpha(mask)
    assert minisd.inpaint(emoji, "crown", rgb, transparent, **SETTINGS).image.tobytes() == by_alpha


def test_half_transparent_is_blended(emoji, picture):
    half = picture.copy()
    half.putalpha(Image.new("L", half.size, 128))
    changed = minisd.inpaint(emoji, "crown, noto", half, **SETTINGS | {"strength": 1.0})
    full = half.copy()
    full.putalpha(Image.new("L", half.size, 0))
    redrawn = minisd.inpaint(emoji, "crown, noto", full, **SETTINGS | {"strength": 1.0})
    before = np.asarray(picture.convert("RGB"), float)
    near = np.abs(np.asarray(changed.image) - before).mean()
    far = np.abs(np.asarray(redrawn.image) - before).mean()
    assert 0 < near < 0.7 * far


def test_strength_0_changes_only_by_decoding(emoji, picture):
    result = minisd.inpaint(emoji, "crown", picture, **SETTINGS | {"strength": 0})
    _, _, hidden, hidden_after = parts(picture, result)
    assert np.abs(hidden.astype(int) - hidden_after).mean() < 10


def test_nothing_to_inpaint(emoji, picture):
    for image in (picture.convert("RGB"), picture.convert("RGB").convert("RGBA")):
        with pytest.raises(ValueError, match="nothing to inpaint"):
            minisd.inpaint(emoji, "crown", image, **SETTINGS)


@pytest.mark.parametrize(
    ("colour", "erased"), [((0, 0, 0), True), ((255, 255, 255), True), ((9, 0, 0), False)]
)
def test_erased_colours_are_noticed(colour, erased):
    image = Image.new("RGBA", (4, 4), (5, 5, 5, 255))
    image.putpixel((1, 1), (*colour, 0))
    assert colours_erased(image) == erased


def test_seam(emoji):
    """The step across the edge is no larger than steps inside of the redrawn part are. (An alien's
    head has nothing of its own along that edge; a cat's ears do.)"""
    result = minisd.inpaint(emoji, "alien, noto", face(emoji, "alien, noto"), **SETTINGS)
    after = np.asarray(result.image, float).mean(axis=2)
    across = np.abs(np.diff(after[8:32, 15:17], axis=1)).mean()
    across += np.abs(np.diff(after[31:33, 16:48], axis=0)).mean()
    inside = np.abs(np.diff(after[9:31, 17:47], axis=1)).mean()
    inside += np.abs(np.diff(after[9:31, 17:47], axis=0)).mean()
    assert across < 1.5 * inside + 4


def test_observers_see_the_mask(emoji, picture):
    seen = {}
    minisd.inpaint(
        emoji, "x", picture, observe=lambda name, **v: seen.update({name: v}), **SETTINGS
    )
    keep = seen["noised"]["keep"]
    assert keep.shape == (1, 1, 16, 16) and torch.equal(keep.unique(), torch.tensor([0.0, 1.0]))
