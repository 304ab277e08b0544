"""A trace is what the run was: complete, exact, bounded, and nothing to the run itself."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import minisd
from minisd.schedule import SCHEDULES
from minisd.trace.lockstep import lockstep
from minisd.trace.tiles import SD1, latent_image
from minisd.trace.trace import Trace, load_trace, save_trace, traced
from minisd.trace.watch import together, watching

FIRE = Image.new("RGB", (64, 64), "white")
FIRE.paste("red", (20, 20, 44, 50))
SETTINGS = {"steps": 10, "strength": 0.7, "guidance": 4.0, "seed": 1}


@pytest.fixture(scope="module")
def run(emoji):
    return traced(minisd.img2img, emoji, "fire", FIRE, **SETTINGS)


def test_it_holds_the_run(run, emoji):
    result, trace = run
    sigmas = SCHEDULES["model"](10)[3:]
    assert trace.sigma == sigmas[:-1] and trace.sigma_next == sigmas[1:]
    assert trace.t == pytest.approx([666, 555, 444, 333, 222, 111, 0])
    assert torch.equal(trace.x[0], trace.noised)
    assert torch.equal(trace.noised, trace.encoded + sigmas[0] * trace.noise)
    assert torch.equal(trace.latent, result.latent)
    assert torch.equal(trace.image, emoji.vae.decode(result.latent))
    assert trace.n_steps == len(trace.steps) == 7 and trace.noised_sigma == sigmas[0]


def test_guidance_parts(run):
    _, trace = run
    for eps, uncond, cond in zip(trace.eps, trace.eps_uncond, trace.eps_cond):
        assert torch.equal(eps, uncond + 4.0 * (cond - uncond))
        assert not torch.equal(uncond, cond)


def test_without_guidance_there_is_one_part(emoji):
    _, trace = traced(minisd.txt2img, emoji, "fire", steps=2, guidance=1, seed=1)
    assert trace.eps_uncond == [None, None]
    assert torch.equal(trace.eps_cond[0], trace.eps[0])


@pytest.mark.parametrize("sampler", ["k_heun", "k_dpm_2_a", "plms"])
def test_of_several_calls_in_a_step_the_first_counts(emoji, sampler):
    settings = SETTINGS | {"sampler": sampler}
    _, trace = traced(minisd.img2img, emoji, "fire", FIRE, **settings)
    assert trace.steps[0].calls == 2
    for eps, uncond, cond in zip(trace.eps, trace.eps_uncond, trace.eps_cond):
        assert torch.equal(eps, uncond + 4.0 * (cond - uncond))


@pytest.mark.parametrize("sampler", list(minisd.SAMPLERS))
def test_observed_runs_are_bit_identical(emoji, sampler):
    settings = SETTINGS | {"sampler": sampler, "steps": 5}
    plain = minisd.img2img(emoji, "fire", FIRE, **settings)
    result, _ = traced(minisd.img2img, emoji, "fire", FIRE, **settings)
    assert torch.equal(plain.latent, result.latent)
    assert plain.image.tobytes() == result.image.tobytes()


def test_saved_and_loaded(run, tmp_path):
    _, trace = run
    again = load_trace(save_trace(trace, tmp_path / "a.safetensors"))
    assert again.settings == trace.settings
    assert again.settings["prompt"] == "fire" and again.settings["seed"] == 1
    for name in ("x", "x0", "eps", "eps_uncond", "eps_cond"):
        assert all(torch.equal(*pair) for pair in zip(getattr(again, name), getattr(trace, name)))
    for name in ("encoded", "noise", "noised", "latent", "image"):
        assert torch.equal(getattr(again, name), getattr(trace, name))
    for name in ("sigma", "sigma_next", "n_steps", "noised_sigma"):
        assert getattr(again, name) == getattr(trace, name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_other_programs_latents(tmp_path):
    """x and sigma are enough, with the batch axis or without."""
    x = torch.randn(3, 4, 8, 8)
    save_file({"x": x, "sigma": torch.tensor([3.0, 2.0, 1.0])}, tmp_path / "a.safetensors")
    trace = load_trace(tmp_path / "a.safetensors")
    assert torch.equal(trace.x[1], x[1:2])
    assert trace.sigma_next == [2, 1, 0] and trace.eps == trace.x0 == [None] * 3


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": torch.zeros(2, 4, 8, 8)},
        {"sigma": torch.ones(2)},
        {"x": torch.zeros(3, 4, 8, 8), "sigma": torch.ones(2)},
    ],
)
def test_files_that_are_none(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is no trace"):
        load_trace(tmp_path / "a.safetensors")


def test_broken_and_missing_files(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can be read"):
        load_trace(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError):
        load_trace(tmp_path / "b.safetensors")


def test_memory_is_bounded():
    """1,000 steps of 1 kB tensors, twice each, under a limit of 100 kB."""
    trace = Trace(limit=100_000)
    x = torch.zeros(1, 4, 8, 8)
    for i in range(1000):
        trace("step", step=minisd.Step(i, 1000.0 - i, 999.0 - i, x + i, x, x + i + 1))
        assert sum(s.x.nbytes + s.eps.nbytes for s in trace.steps) <= 100_000
    kept = [step.i for step in trace.steps]
    assert kept[0] == 0 and kept[-1] == 999 and trace.n_steps == 1000
    assert kept[:-1] == list(range(0, 999, trace.stride))
    assert all(float(step.x[0, 0, 0, 0]) == step.i for step in trace.steps)
    assert float(trace.latent[0, 0, 0, 0]) == 1000


def test_later_changes_do_not_reach_it():
    """A sampler that works in place leaves the trace as it was."""
    trace, x = Trace(), torch.zeros(1, 4, 8, 8)
    trace("step", step=minisd.Step(0, 2.0, 1.0, x, x, x))
    x += 1
    assert not trace.x[0].any() and not trace.latent.any()


def test_the_hook_is_taken_off(emoji):
    with pytest.raises(RuntimeError), watching(emoji.unet, print):
        raise RuntimeError
    assert not emoji.unet._forward_hooks


def test_together():
    seen = []
    observe = together(lambda name, **_: seen.append(name), lambda _, x0: seen.append(x0))
    observe("encoded", x0=1)
    assert seen == ["encoded", 1]


def test_in_a_notebook(run):
    _, trace = run
    html = trace._repr_html_()
    assert html.count("<img") == 14 and "7 steps" in html and "strength 0.7" in html
    assert "http" not in html


def test_latent_to_rgb():
    """One latent, by hand: L1 = 1 gives (0.298, 0.207, 0.208) in -1..1, truncated in 8 bits."""
    latent = torch.zeros(1, 4, 1, 2)
    latent[0, 0, 0, 0] = 1
    image = latent_image(latent, SD1)
    assert np.asarray(image).tolist() == [[[165, 153, 154], [127, 127, 127]]]


# ---- runs in lockstep --------------------------------------------------------------------------


def test_lockstep_is_each_run_by_itself(emoji):
    """Runs of all kinds at once. A batch's sums are rounded otherwise: 1e-3 in the latent is far
    below what 8 bits show (0.1 is about 5 levels of 255)."""
    from dataclasses import replace

    def job(strength, steps, sampler, seed):
        def go(network):
            sd = replace(emoji, unet=network)
            settings = {"strength": strength, "steps": steps, "sampler": sampler, "seed": seed}
            return minisd.img2img(sd, "fire", FIRE, guidance=2, **settings).latent

        return go

    jobs = [
        job(0.7, 5, "k_lms", 1),
        job(0.2, 5, "k_heun", 2),
        job(1.0, 8, "ddim", 1),
        job(0.0, 5, "k_lms", 1),
        job(0.5, 6, "k_euler_a", 3),
    ]
    for alone, together_ in zip([go(emoji.unet) for go in jobs], lockstep(emoji.unet, jobs)):
        assert torch.allclose(alone, together_, atol=1e-3)


def test_lockstep_ends_when_a_run_fails(emoji):
    context = emoji.text_states("")

    def fine(network):
        for _ in range(3):
            network(torch.zeros(1, 4, 16, 16), torch.zeros(1), context)

    def fails(network):
        network(torch.zeros(1, 4, 16, 16), torch.zeros(1), context)
        raise ArithmeticError("enough")

    with pytest.raises(ArithmeticError):
        lockstep(emoji.unet, [fine, fails, fine])
    with pytest.raises(RuntimeError):  # in the network itself
        lockstep(emoji.unet, [fine, lambda network: network(*[torch.zeros(1)] * 3)])
