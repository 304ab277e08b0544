"""Only the transparent part changes, with every sampler, and in the same way each time."""

import numpy as np
import pytest
import torch
from PIL import Image

import minisd

SETTINGS = {"steps": 8, "strength": 0.8, "guidance": 4, "seed": 5}


def face(emoji, words):
    """A face whose forehead is a transparent square; the colours under it are kept."""
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
def test_only_the_transparent_part_changes(emoji, picture, sampler):
    result = minisd.inpaint(emoji, "crown, noto", picture, sampler=sampler, **SETTINGS)
    kept, kept_after, hidden, hidden_after = parts(picture, result)
    assert np.array_equal(kept, kept_after)
    assert (hidden != hidden_after).mean() > 0.5
    repeated = minisd.inpaint(emoji, "crown, noto", picture, sampler=sampler, **SETTINGS)
    assert repeated.image.tobytes() == result.image.tobytes()


@pytest.mark.parametrize("sampler", ["k_lms", "ddim"])
def test_kept_latents_are_the_picture_and_the_run_s_own_noise(emoji, picture, sampler):
    """Where the picture is kept, every step is x0 + sigma * the noise inserted at the start."""
    events = []
    minisd.inpaint(emoji, "crown", picture, sampler=sampler, observe=events.append, **SETTINGS)
    (noised,) = [event for event in events if isinstance(event, minisd.Noised)]
    x0, noise, keep = noised.x0, noised.noise, noised.keep
    kept = keep.expand_as(x0) == 1
    steps = [event for event in events if isinstance(event, minisd.Step)]
    assert len(steps) == 6
    for step in steps:
        error = (step.x_next - x0 - step.sigma_next * noise)[kept].abs().max()
        # float32 rounding of numbers up to 50 that are divided by sigma and multiplied again
        assert error < 2e-4
    assert (step.x_next - x0)[keep.expand_as(x0) == 0].abs().max() > 0.1


def test_without_pasting_the_decoder_s_picture_is_returned(emoji, picture):
    result = minisd.inpaint(emoji, "crown", picture, paste=False, **SETTINGS)
    kept, kept_after, *_ = parts(picture, result)
    difference = np.abs(kept.astype(int) - kept_after)
    assert 0 < difference.mean() < 10  # decoded: not the same pixels, but the same picture


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
    half_change = np.abs(np.asarray(changed.image) - before).mean()
    full_change = np.abs(np.asarray(redrawn.image) - before).mean()
    assert 0 < half_change < 0.7 * full_change


def test_strength_0_changes_only_by_decoding(emoji, picture):
    result = minisd.inpaint(emoji, "crown", picture, **SETTINGS | {"strength": 0})
    _, _, hidden, hidden_after = parts(picture, result)
    assert np.abs(hidden.astype(int) - hidden_after).mean() < 10


def test_nothing_to_inpaint(emoji, picture):
    for image in (picture.convert("RGB"), picture.convert("RGB").convert("RGBA")):
        with pytest.raises(ValueError, match="nothing to inpaint"):
            minisd.inpaint(emoji, "crown", image, **SETTINGS)


def test_seam(emoji):
    """Across the edge, neighbouring pixels differ no more than inside the redrawn part. (An alien's
    head has no line of its own along that edge; a cat's ears have.)"""
    result = minisd.inpaint(emoji, "alien, noto", face(emoji, "alien, noto"), **SETTINGS)
    after = np.asarray(result.image, float).mean(axis=2)
    across = np.abs(np.diff(after[8:32, 15:17], axis=1)).mean()
    across += np.abs(np.diff(after[31:33, 16:48], axis=0)).mean()
    inside = np.abs(np.diff(after[9:31, 17:47], axis=1)).mean()
    inside += np.abs(np.diff(after[9:31, 17:47], axis=0)).mean()
    assert across < 1.5 * inside + 4


def test_observers_see_the_mask(emoji, picture):
    events = []
    minisd.inpaint(emoji, "x", picture, observe=events.append, **SETTINGS)
    keep = events[1].keep
    assert keep.shape == (1, 1, 16, 16) and torch.equal(keep.unique(), torch.tensor([0.0, 1.0]))
    expected = [minisd.Encoded, minisd.Noised, *[minisd.Step] * 6, minisd.Decoded]
    assert [type(event) for event in events] == expected


@pytest.mark.slow
def test_guidance_rule_and_both_keep_the_picture_too(emoji, picture):
    """Where the picture is kept, a rule of one's own and `predict_eps.both` get the known noise."""
    events = []

    def cfg(eps_uncond, eps_cond, x, sigma):
        return eps_uncond + 4 * (eps_cond - eps_uncond)

    settings = {**SETTINGS, "guidance": cfg, "observe": events.append}
    by_rule = minisd.inpaint(emoji, "crown", picture, **settings)
    by_number = minisd.inpaint(emoji, "crown", picture, **SETTINGS)
    assert torch.equal(by_rule.latent, by_number.latent)

    halves = []

    def euler(predict_eps, x, sigmas):
        for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:])):
            eps_uncond, eps_cond = predict_eps.both(x, sigma)
            halves.append((x, sigma, eps_uncond, eps_cond))
            eps = eps_uncond + 4 * (eps_cond - eps_uncond)
            x_next = x + (sigma_next - sigma) * eps
            yield minisd.Step(i, sigma, sigma_next, x, eps, x_next)
            x = x_next

    by_both = minisd.inpaint(emoji, "crown", picture, sampler=euler, **SETTINGS)
    plain = minisd.inpaint(emoji, "crown", picture, sampler="k_euler", **SETTINGS)
    # The rule is applied after the blend instead of before it: float32 rounding.
    assert (by_both.latent - plain.latent).abs().max() < 1e-3
    x0, kept = events[1].x0, events[1].keep.expand_as(events[1].x0) == 1
    for x, sigma, *both in halves:
        for eps in both:
            assert torch.equal(eps[kept], ((x - x0) / sigma)[kept])
