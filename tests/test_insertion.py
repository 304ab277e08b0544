"""The noise put in is the noise that the network is told of, whatever the sampler and schedule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import minisd
from minisd.schedule import sigma_to_t

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (16, 16, 3), np.uint8))


class Told(torch.nn.Module):
    """A UNet that notes what it is shown, and predicts nothing."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, context):
        self.calls.append((x.clone(), t.clone()))
        return torch.zeros_like(x)


class Pixels:
    """An autoencoder whose latents are the picture's own pixels."""

    factor = 1

    def encode(self, image):
        return torch.cat([image, image[:, :1]], dim=1)

    def decode(self, latent):
        return latent[:, :3]


class Stub:
    multiple, native_size, device = 16, 16, torch.device("cpu")

    def __init__(self):
        self.unet, self.vae = Told(), Pixels()

    def text_states(self, prompt):
        return torch.zeros(1, 77, 8)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(minisd.SAMPLERS)),
    st.sampled_from([None, *minisd.SCHEDULES]),
    st.integers(1, 150),
    st.integers(0, 100),
    st.integers(0, 2**32 - 1),
)
def test_noise_put_in_is_noise_told(sampler, schedule, steps, percent, seed):
    sd, seen, took = Stub(), {}, []

    def observe(name, **values):
        seen[name] = values
        took.extend([values["step"]] if name == "step" else [])

    minisd.img2img(
        sd,
        "",
        PICTURE,
        strength=percent / 100,
        steps=steps,
        sampler=sampler,
        schedule=schedule,
        seed=seed,
        observe=observe,
    )
    run = steps * percent // 100
    x0, noise, sigma, x = (seen["noised"][name] for name in ("x0", "noise", "sigma", "x"))
    assert len(took) == run
    assert torch.equal(noise, torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(x, x0 + sigma * noise)
    if run == 0:
        assert sigma == 0 and not sd.unet.calls and torch.equal(x, x0)
        return
    grid = minisd.SCHEDULES[schedule or ("ddim" if sampler == "ddim" else "model")](steps)
    assert sigma == took[0].sigma == grid[steps - run]
    assert [s.sigma for s in took] + [took[-1].sigma_next] == grid[steps - run :]
    x_in, t = sd.unet.calls[0]
    assert t.tolist() == pytest.approx([sigma_to_t(sigma)] * len(t), rel=1e-6)  # t is float32
    told = torch.stack([x_in[0] * (sigma**2 + 1) ** 0.5 - x0[0]]) / sigma
    # float32: x_in holds x0 / sigma beside the noise, and at the last levels that is 30 times it
    torch.testing.assert_close(told, noise, rtol=0, atol=2e-5)


def test_strength_0_is_the_round_trip(emoji):
    for sampler in ("k_lms", "ddim"):
        result = minisd.img2img(emoji, "fire", PICTURE, strength=0, sampler=sampler, seed=1)
        image = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)[None] / 255 * 2 - 1
        with torch.inference_mode():
            latent = emoji.vae.encode(image)
            assert torch.equal(result.latent, latent)
            decoded = ((emoji.vae.decode(latent) + 1) / 2).clamp(0, 1) * 255
        wanted = decoded[0].permute(1, 2, 0).to(torch.uint8).numpy()
        assert np.array_equal(np.asarray(result.image), wanted)


def test_strength_1_differs_from_txt2img_by_the_image_alone(emoji):
    """The same noise goes in at the same level; what is left of the picture is the difference."""
    seen = []

    def observe(name, **values):
        if name == "noised":
            seen.append(values)

    picture = PICTURE.resize((64, 64))
    settings = {"steps": 2, "seed": 7, "observe": observe}
    minisd.img2img(emoji, "fire", picture, strength=1, **settings)
    minisd.txt2img(emoji, "fire", **settings)
    a, b = seen
    assert a["sigma"] == b["sigma"] and torch.equal(a["noise"], b["noise"])
    # x0 is about 1 and sigma 14.6: float32 keeps 1e-6 of their sum
    torch.testing.assert_close(a["x"] - b["x"], a["x0"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sampler": "k_lsm"}, "no sampler is named 'k_lsm'; there are k_lms"),
        ({"schedule": "linear"}, "no schedule is named 'linear'; there are model"),
        ({"strength": 1.5}, "strength must lie between"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"seed": -1}, "seed must lie between"),
        ({"seed": 2**32}, "seed must lie between"),
        ({"noise": torch.zeros(1, 4, 8, 8)}, r"noise must be \(1, 4, 16, 16\)"),
    ],
)
def test_wrong_arguments(wrong, says):
    with pytest.raises(ValueError, match=says):
        minisd.img2img(Stub(), "", PICTURE, **wrong)


def test_seed_is_drawn_and_reported():
    results = [minisd.img2img(Stub(), "", PICTURE, steps=1) for _ in range(2)]
    assert results[0].seed != results[1].seed
    again = minisd.img2img(Stub(), "", PICTURE, steps=1, seed=results[0].seed)
    assert torch.equal(again.latent, results[0].latent)


def test_own_sampler_and_schedule():
    def one_jump(predict_eps, x, sigmas):
        eps = predict_eps(x, sigmas[0])
        yield minisd.Step(0, sigmas[0], 0.0, x, eps, x - sigmas[0] * eps)

    result = minisd.img2img(
        Stub(), "", PICTURE, strength=1, sampler=one_jump, schedule=lambda n: [5.0, 0.0], steps=1
    )
    assert result.latent.shape == (1, 4, 16, 16)
