"""Values from the original implementations (tests/golden/README.md), for a tiny model and SD 1.x.

Single calls agree within 2e-5 of the largest value. That is float32 rounding: another correct
implementation agrees within 1e-5. Trajectories agree within 2e-4 at every step, because the
rounding of each step goes through the network again.

A run of the full-size model takes a minute or more, so only two of its five are here.
`python -m bench.gpu --out FOLDER --device cpu --parts golden` runs all.
"""

import ast

import pytest
import torch

from minisd.guidance import Guided
from minisd.samplers import ddim, k_lms
from minisd.schedule import SCHEDULES, SIGMAS, start_index

from .conftest import full_size, golden

CALL, TRAJECTORY = 2e-5, 2e-4
SD1 = [pytest.mark.slow, full_size]


@pytest.fixture(scope="module", params=["tiny", pytest.param("sd1", marks=SD1)])
def case(request):
    if request.param == "sd1":
        request.getfixturevalue("all_threads")
    sd = request.getfixturevalue(request.param)
    values, facts = golden(request.param)
    with torch.inference_mode():
        yield sd, values, {key: ast.literal_eval(text) for key, text in facts.items()}


def assert_close(result: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert result.shape == expected.shape and result.dtype == expected.dtype
    worst = ((result - expected).abs().max() / expected.abs().max()).item()
    print(f"{worst:.1e} of {tolerance:.0e}")
    assert worst <= tolerance


def test_text(case):
    sd, values, facts = case
    tokens = sd.tokenizer(facts["prompts"])
    assert torch.equal(tokens, values["clip.tokens"])
    assert_close(sd.text_encoder(tokens), values["clip.context"], CALL)


def test_unet(case):
    sd, values, _ = case
    assert_close(
        sd.unet(values["unet.x"], values["unet.t"], values["unet.context"]),
        values["unet.eps"],
        CALL,
    )


def test_vae(case):
    sd, values, _ = case
    assert_close(sd.vae.moments(values["vae.image"]), values["vae.moments"], CALL)
    assert_close(sd.vae.decode(0.18215 * values["vae.latent"]), values["vae.decoded"], CALL)


@pytest.mark.parametrize("case", ["tiny"], indirect=True)
def test_encode(case):
    """The rest is computed from the moments alone, so it needs no large model."""
    sd, values, _ = case
    with_noise = sd.vae.encode(values["vae.image"], values["img2img.posterior_noise"])
    assert_close(with_noise, values["img2img.init_latent"], CALL)
    mean = sd.vae.encode(values["vae.image"])
    assert_close(mean, 0.18215 * values["vae.moments"][:, :4], CALL)


def test_noise(case):
    _, values, facts = case
    rng = torch.Generator("cpu").manual_seed(facts["seed"])
    assert torch.equal(
        torch.randn(values["img2img.noise"].shape, generator=rng), values["img2img.noise"]
    )


@pytest.mark.parametrize(
    ("case", "schedule", "strength"),
    [
        *[
            ("tiny", schedule, strength)
            for schedule in ("karras", "model")
            for strength in (0.7, 0.4)
        ],
        pytest.param("sd1", "karras", 0.7, marks=SD1),
    ],
    indirect=["case"],
)
def test_k_lms(case, schedule, strength):
    sd, values, facts = case
    expected = {
        name: values[f"img2img.k_lms.{schedule}.{strength}.{name}"]
        for name in ("sigmas", "x", "denoised")
    }
    sigmas = SCHEDULES[schedule](facts["steps"])[start_index(facts["steps"], strength) :]
    # The original's sigmas come from a float32 abar. 1 - abar loses digits where abar is near 1:
    # 1.3e-5 at t = 0.
    torch.testing.assert_close(torch.tensor(sigmas), expected["sigmas"], rtol=2e-5, atol=0)

    x = values["img2img.init_latent"] + sigmas[0] * values["img2img.noise"]
    predict_eps = Guided(
        sd.unet, values["img2img.context"], values["img2img.uncond"], facts["scale"]
    )
    steps = list(k_lms(predict_eps, x, sigmas))
    for i, step in enumerate(steps):
        assert_close(step.x[0], expected["x"][i], TRAJECTORY)
        assert_close(step.x0[0], expected["denoised"][i], TRAJECTORY)
    assert len(steps) == len(expected["x"]) - 1
    assert_close(steps[-1].x_next[0], expected["x"][-1], TRAJECTORY)
    if (schedule, strength) == ("karras", facts["strengths"][0]):
        assert_close(sd.vae.decode(steps[-1].x_next), values["img2img.decoded"], TRAJECTORY)


@pytest.mark.parametrize(
    ("case", "strength"),
    [("tiny", 0.7), ("tiny", 0.4), pytest.param("sd1", 0.4, marks=SD1)],
    indirect=["case"],
)
def test_ddim(case, strength):
    """The original adds the noise of one level above, so this starts from the original's x."""
    sd, values, facts = case
    expected = {
        name: values[f"img2img.ddim.{strength}.{name}"] for name in ("timesteps", "x", "denoised")
    }
    sigmas = SCHEDULES["ddim"](facts["steps"])[start_index(facts["steps"], strength) :]
    assert sigmas[:-1] == [SIGMAS[t] for t in expected["timesteps"]] and sigmas[-1] == SIGMAS[0]

    def scaled(sigma: float) -> float:
        return (sigma**2 + 1) ** -0.5

    x = expected["x"][:1] / scaled(sigmas[0])
    predict_eps = Guided(
        sd.unet, values["img2img.context"], values["img2img.uncond"], facts["scale"]
    )
    for i, step in enumerate(ddim(predict_eps, x, sigmas)):
        assert_close(step.x0[0], expected["denoised"][i], TRAJECTORY)
        assert_close(step.x_next[0] * scaled(step.sigma_next), expected["x"][i + 1], TRAJECTORY)
    assert i == len(expected["timesteps"]) - 1
