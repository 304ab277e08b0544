"""The noise that is added is the noise that the network expects, for all samplers and schedules.

And the arguments of img2img: pictures and latents, functions and files in place of names.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import minisd
from minisd.guidance import Guided
from minisd.schedule import default_schedule, sigma_to_t

from .stand_ins import StandIn

PIXELS = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
LARGE = Image.fromarray(PIXELS)
PICTURE = Image.fromarray(PIXELS[:16, :16])  # for StandIn


def run_and_record(draw, *args, **kwargs):
    """The result, and the events in order."""
    events = []
    return draw(*args, observe=events.append, **kwargs), events


@pytest.mark.filterwarnings("ignore:the schedule starts at sigma")  # ddim with one step
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(minisd.SAMPLERS)),
    st.sampled_from([None, *minisd.SCHEDULES]),
    st.integers(1, 150),
    st.integers(0, 100),
    st.integers(0, 2**32 - 1),
)
def test_noise_added_is_noise_expected(sampler, schedule, steps, percent, seed):
    sd = StandIn()
    settings = {"steps": steps, "strength": percent / 100, "sampler": sampler, "seed": seed}
    _, events = run_and_record(minisd.img2img, sd, "", PICTURE, schedule=schedule, **settings)
    steps_run = steps * percent // 100
    types = [minisd.Encoded, minisd.Noised, *[minisd.Step] * steps_run, minisd.Decoded]
    assert [type(event) for event in events] == types
    encoded, noised, *taken, _ = events
    x0, noise, sigma, x = noised.x0, noised.noise, noised.sigma, noised.x
    assert torch.equal(encoded.x0, x0)
    assert torch.equal(noise, torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(x, x0 + sigma * noise)
    if steps_run == 0:
        assert sigma == 0 and not sd.unet.calls and torch.equal(x, x0)
        return
    sigmas = minisd.SCHEDULES[schedule or default_schedule(sampler)](steps)
    assert sigma == taken[0].sigma == sigmas[steps - steps_run]
    assert [step.sigma for step in taken] + [taken[-1].sigma_next] == sigmas[steps - steps_run :]
    assert torch.equal(taken[0].x, x)
    x_in, t = sd.unet.calls[0]
    assert t.tolist() == pytest.approx([sigma_to_t(sigma)] * len(t), rel=1e-6)  # t is float32
    expected = torch.stack([x_in[0] * (sigma**2 + 1) ** 0.5 - x0[0]]) / sigma
    # In float32 x_in also holds x0 / sigma, which at the last levels is 30 times the noise.
    torch.testing.assert_close(expected, noise, rtol=0, atol=2e-5)


def test_strength_0_encodes_and_decodes(emoji):
    picture = LARGE.crop((0, 0, 16, 16))
    for sampler in ("k_lms", "ddim"):
        result = minisd.img2img(emoji, "fire", picture, strength=0, sampler=sampler, seed=1)
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255 * 2 - 1
        with torch.inference_mode():
            latent = emoji.vae.encode(image)
            assert torch.equal(result.latent, latent)
            decoded = ((emoji.vae.decode(latent) + 1) / 2).clamp(0, 1) * 255
        expected = decoded[0].permute(1, 2, 0).to(torch.uint8).numpy()
        assert np.array_equal(np.asarray(result.image), expected)


def test_strength_1_differs_from_txt2img_only_by_the_image(emoji):
    """The same noise is added at the same level; the difference is what remains of the picture."""
    settings = {"steps": 2, "seed": 7}
    _, events = run_and_record(minisd.img2img, emoji, "fire", LARGE, strength=1, **settings)
    a = events[1]
    _, events = run_and_record(minisd.txt2img, emoji, "fire", **settings)
    b = events[0]
    assert [type(event) for event in events] == [minisd.Noised, *[minisd.Step] * 2, minisd.Decoded]
    assert not b.x0.any() and torch.equal(b.x, b.sigma * b.noise)
    assert a.sigma == b.sigma and torch.equal(a.noise, b.noise)
    # x0 is about 1 and sigma 14.6: float32 keeps 1e-6 of their sum.
    torch.testing.assert_close(a.x - b.x, a.x0, rtol=0, atol=1e-5)


# ---- init images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["k_lms", "k_euler_a"])
def test_latent_as_init_image(emoji, sampler):
    """A picture and the latent it is encoded to give the same run, bit for bit."""
    settings = {"steps": 5, "strength": 0.6, "seed": 3, "sampler": sampler}
    with torch.inference_mode():
        latent = emoji.vae.encode(torch.from_numpy(PIXELS).permute(2, 0, 1)[None] / 255 * 2 - 1)
    before = latent.clone()
    a, events_a = run_and_record(minisd.img2img, emoji, "fire", LARGE, **settings)
    b, events_b = run_and_record(minisd.img2img, emoji, "fire", latent, **settings)
    assert torch.equal(events_a[0].x0, latent) and torch.equal(events_b[0].x0, latent)
    assert torch.equal(a.latent, b.latent) and a.image.tobytes() == b.image.tobytes()
    assert torch.equal(latent, before)  # the argument is not changed


def test_result_s_latent_is_an_init_image(emoji):
    """A run can go on from the latent of another, without decoding it: strength 0 gives it back."""
    result = minisd.img2img(emoji, "fire", LARGE, steps=2, seed=3)
    same = minisd.img2img(emoji, "fire", result.latent, strength=0)
    assert torch.equal(same.latent, result.latent)
    assert same.image.tobytes() == result.image.tobytes()


@pytest.mark.parametrize("shape", [(4, 16, 16), (2, 4, 16, 16), (1, 3, 16, 16), (1, 4, 16, 15)])
def test_wrong_latents(emoji, shape):
    with pytest.raises(ValueError, match=r"shape \(1, 4, h, w\) with h and w multiples of 4, not"):
        minisd.img2img(emoji, "fire", torch.zeros(shape))


def test_array_and_path_as_init_image(emoji, tmp_path):
    LARGE.save(tmp_path / "picture.png")
    settings = {"steps": 2, "strength": 0.5, "seed": 3}
    expected = minisd.img2img(emoji, "fire", LARGE, **settings).latent
    for picture in (PIXELS, tmp_path / "picture.png", str(tmp_path / "picture.png")):
        assert torch.equal(minisd.img2img(emoji, "fire", picture, **settings).latent, expected)
    # 255 * (value / 255) rounds back to the value.
    floats = (PIXELS / 255).astype(np.float32)
    assert torch.equal(minisd.img2img(emoji, "fire", floats, **settings).latent, expected)


# ---- guidance ------------------------------------------------------------------------------------


def test_guidance_rule_equals_the_number(emoji):
    calls = []

    def cfg(eps_uncond, eps_cond, x, sigma):
        calls.append((x.shape, sigma))
        return eps_uncond + 4.0 * (eps_cond - eps_uncond)

    settings = {"steps": 6, "strength": 0.7, "seed": 5}
    by_rule, events = run_and_record(minisd.img2img, emoji, "fire", LARGE, guidance=cfg, **settings)
    by_number = minisd.img2img(emoji, "fire", LARGE, guidance=4.0, **settings)
    assert torch.equal(by_rule.latent, by_number.latent)
    steps = [event for event in events if isinstance(event, minisd.Step)]
    assert calls == [(step.x.shape, step.sigma) for step in steps] and len(calls) == 4


def test_both_halves(emoji):
    """predict_eps.both gives the two predictions that guidance combines, in the order of CompVis.

    Each alone, with guidance 1, is a batch of one instead of two: float32 rounding.
    """
    x = 3 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        context, uncond = emoji.text_states("fire"), emoji.text_states("")
        guided = Guided(emoji.unet, context, uncond, 7.5)
        eps_uncond, eps_cond = guided.both(x, 3.0)
        assert eps_uncond.shape == eps_cond.shape == x.shape
        assert torch.equal(guided(x, 3.0), eps_uncond + 7.5 * (eps_cond - eps_uncond))
        for states, eps in ((context, eps_cond), (uncond, eps_uncond)):
            alone = Guided(emoji.unet, states, uncond, 1)(x, 3.0)
            torch.testing.assert_close(eps, alone, rtol=0, atol=1e-5)
        assert (eps_cond - eps_uncond).abs().max() > 1e-2


def test_guidance_1_calls_the_network_for_the_prompt_alone():
    for guidance, size in ((1, 1), (1.5, 2), (lambda u, c, x, sigma: c, 2)):
        sd = StandIn()
        minisd.img2img(sd, "", PICTURE, steps=2, guidance=guidance)
        assert [len(x) for x, _ in sd.unet.calls] == [size]


# ---- functions and files in place of names -------------------------------------------------------


def test_own_sampler_and_schedule():
    def single_jump(predict_eps, x, sigmas):
        eps = predict_eps(x, sigmas[0])
        yield minisd.Step(0, sigmas[0], 0.0, x, eps, x - sigmas[0] * eps)

    settings = {"strength": 1, "sampler": single_jump, "schedule": lambda n: [5.0, 0.0], "steps": 1}
    result, events = run_and_record(minisd.img2img, StandIn(), "", PICTURE, **settings)
    assert result.latent.shape == (1, 4, 16, 16)
    assert events[1].sigma == 5.0 and events[2].x_next is not events[2].x


OWN = """
import minisd


def euler(predict_eps, x, sigmas):
    for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:])):
        eps = predict_eps(x, sigma)
        x_next = x + (sigma_next - sigma) * eps
        yield minisd.Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def karras(steps):
    return minisd.SCHEDULES["karras"](steps)


def cfg(eps_uncond, eps_cond, x, sigma):
    return eps_uncond + 4.0 * (eps_cond - eps_uncond)


NUMBER = 3
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    return tmp_path


def test_functions_of_a_file(emoji, own):
    """FILE.py:FUNCTION for sampler, schedule and guidance."""
    settings = {"steps": 4, "strength": 0.5, "seed": 5}
    by_file = minisd.img2img(
        emoji,
        "fire",
        LARGE,
        sampler=f"{own}/own.py:euler",
        schedule=f"{own}/own.py:karras",
        guidance=f"{own}/own.py:cfg",
        **settings,
    )
    names = {"sampler": "k_euler", "schedule": "karras", "guidance": 4.0}
    by_name = minisd.img2img(emoji, "fire", LARGE, **names, **settings)
    assert torch.equal(by_file.latent, by_name.latent)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("own.py:nothing", ValueError, "own.py has no function named 'nothing'"),
        ("own.py:NUMBER", ValueError, "own.py has no function named 'NUMBER'"),
        ("missing.py:euler", FileNotFoundError, "there is no file .*missing.py"),
        ("broken.py:euler", ValueError, "broken.py cannot be run: ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("argument", ["sampler", "schedule", "guidance"])
def test_wrong_files(own, argument, name, error, message):
    with pytest.raises(error, match=message):
        minisd.img2img(StandIn(), "", PICTURE, **{argument: f"{own}/{name}"})


# ---- wrong arguments, and the seed ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "k_lsm"}, "there is no sampler named 'k_lsm'; choose from k_lms, ddim"),
        ({"schedule": "linear"}, "there is no schedule named 'linear'; choose from model"),
        ({"guidance": "high"}, "there is no guidance rule named 'high'; choose from FILE.py:FUNC"),
        ({"strength": 1.5}, "strength must be between 0"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"seed": -1}, "seed must be between 0 and 4294967295, not -1"),
        ({"seed": 2**32}, "seed must be between"),
        ({"noise": torch.zeros(1, 4, 8, 8)}, r"noise must be \(1, 4, 16, 16\), not \(1, 4, 8, 8\)"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        minisd.img2img(StandIn(), "", PICTURE, **wrong)


def test_seed_is_drawn_and_reported():
    results = [minisd.img2img(StandIn(), "", PICTURE, steps=1, strength=1) for _ in range(2)]
    assert results[0].seed != results[1].seed
    same = minisd.img2img(StandIn(), "", PICTURE, steps=1, strength=1, seed=results[0].seed)
    assert torch.equal(same.latent, results[0].latent)
    assert not torch.equal(same.latent, results[1].latent)


def test_noise_of_one_s_own():
    """It replaces the seed's first draw; later draws are the same as without it."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(9))
    settings = {"steps": 4, "strength": 1, "sampler": "k_euler_a"}
    result, events = run_and_record(
        minisd.img2img, StandIn(), "", PICTURE, seed=[1, 2], noise=noise, **settings
    )
    assert torch.equal(events[1].noise, noise.expand(2, -1, -1, -1))
    plain, plain_events = run_and_record(
        minisd.img2img, StandIn(), "", PICTURE, seed=[1, 2], **settings
    )
    # This network predicts nothing, so x only grows by fresh noise: float32 rounding of sums.
    for step, plain_step in zip(events[2:-1], plain_events[2:-1], strict=True):
        fresh, plain_fresh = step.x_next - step.x, plain_step.x_next - plain_step.x
        torch.testing.assert_close(fresh, plain_fresh, rtol=0, atol=1e-5)
    assert not torch.equal(result.latent, plain.latent)
