"""A trace is complete, exact and bounded, and recording it does not change the run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import minisd
from minisd.observe import AttentionMaps, Ledger, Trace, load_trace, save_trace, together
from minisd.observe.tiles import latent_image
from minisd.run import Encoded, Noised
from minisd.schedule import SCHEDULES
from minisd.sweeps.lockstep import lockstep

FIRE = Image.new("RGB", (64, 64), "white")
FIRE.paste("red", (20, 20, 44, 50))
SETTINGS = {"steps": 10, "strength": 0.7, "guidance": 4.0, "seed": 1}


def traced(sd, **settings):
    """An img2img run with these settings, and its trace."""
    with Trace(sd, {"prompt": "fire", **settings}) as trace:
        result = minisd.img2img(sd, "fire", FIRE, **settings, observe=trace)
    return result, trace


@pytest.fixture(scope="module")
def run(emoji):
    return traced(emoji, **SETTINGS)


def test_a_trace_holds_the_run(run, emoji):
    result, trace = run
    sigmas = SCHEDULES["model"](10)[3:]
    assert trace.sigma == sigmas[:-1] and trace.sigma_next == sigmas[1:]
    assert trace.t == pytest.approx([666, 555, 444, 333, 222, 111, 0])
    assert torch.equal(trace.x[0], trace.noised)
    assert torch.equal(trace.noised, trace.encoded + sigmas[0] * trace.noise)
    assert torch.equal(trace.latent, result.latent)
    assert torch.equal(trace.image, emoji.vae.decode(result.latent))
    assert trace.n_steps == len(trace.steps) == 7 and trace.noised_sigma == sigmas[0]


def test_both_halves_of_guidance_are_recorded(run):
    _, trace = run
    for eps, uncond, cond in zip(trace.eps, trace.eps_uncond, trace.eps_cond, strict=True):
        assert torch.equal(eps, uncond + 4.0 * (cond - uncond))
        assert not torch.equal(uncond, cond)


def test_without_guidance_there_is_one_prediction(emoji):
    with Trace(emoji) as trace:
        minisd.txt2img(emoji, "fire", steps=2, guidance=1, seed=1, observe=trace)
    assert trace.eps_uncond == [None, None]
    assert torch.equal(trace.eps_cond[0], trace.eps[0])
    assert trace.encoded is None


@pytest.mark.parametrize("sampler", ["k_heun", "k_dpm_2_a", "plms"])
def test_the_first_call_of_a_step_is_recorded(emoji, sampler):
    _, trace = traced(emoji, **SETTINGS, sampler=sampler)
    assert trace.steps[0].calls == 2
    for eps, uncond, cond in zip(trace.eps, trace.eps_uncond, trace.eps_cond, strict=True):
        assert torch.equal(eps, uncond + 4.0 * (cond - uncond))


def test_a_trace_of_events_alone(emoji):
    """Without the with block, or without a model, the network's calls are not seen."""
    for trace in (Trace(), Trace(emoji)):
        minisd.img2img(emoji, "fire", FIRE, **SETTINGS, observe=trace)
        assert trace.n_steps == 7 and None not in trace.eps
        assert trace.eps_uncond == trace.eps_cond == [None] * 7
        assert [step.calls for step in trace.steps] == [None] * 7


@pytest.mark.parametrize("sampler", list(minisd.SAMPLERS))
def test_observed_runs_are_bit_identical(emoji, sampler):
    settings = SETTINGS | {"sampler": sampler, "steps": 5}
    plain = minisd.img2img(emoji, "fire", FIRE, **settings)
    with Trace(emoji) as trace, Ledger(emoji) as ledger, AttentionMaps(emoji, "fire") as maps:
        observe = together(trace, ledger, maps)
        result = minisd.img2img(emoji, "fire", FIRE, **settings, observe=observe)
    assert torch.equal(plain.latent, result.latent)
    assert plain.image.tobytes() == result.image.tobytes()


def test_three_observers_record_the_same_run(emoji):
    settings = SETTINGS | {"sampler": "k_heun"}
    with Trace(emoji) as trace, Ledger(emoji) as ledger, AttentionMaps(emoji, "fire") as maps:
        observe = together(trace, ledger, maps)
        minisd.img2img(emoji, "fire", FIRE, **settings, observe=observe)
    assert trace.n_steps == ledger.steps_run == len(maps.steps) == 7
    assert sum(step.calls for step in trace.steps) == ledger.calls == 13
    assert trace.sigma == maps.sigmas
    assert ledger.sigma_added == pytest.approx(trace.noised_sigma, rel=1e-6)
    assert ledger.t_expected == pytest.approx(trace.t[0], rel=1e-6)
    assert maps.shape == trace.noised.shape


def test_a_batch_of_seeds_is_traced(emoji):
    with Trace(emoji) as trace, Ledger(emoji) as ledger, AttentionMaps(emoji, "fire") as maps:
        settings = SETTINGS | {"seed": [1, 2, 3]}
        observe = together(trace, ledger, maps)
        result = minisd.img2img(emoji, "fire", FIRE, **settings, observe=observe)
    shapes = [(3, 4, 16, 16)] * 7
    for latents in (trace.x, trace.eps, trace.x0, trace.eps_uncond, trace.eps_cond):
        assert [tuple(latent.shape) for latent in latents] == shapes
    assert trace.encoded.shape == (1, 4, 16, 16) and trace.image.shape == (3, 3, 64, 64)
    assert torch.equal(trace.latent, result.latent)
    guided = trace.eps_uncond[0] + 4 * (trace.eps_cond[0] - trace.eps_uncond[0])
    assert torch.equal(trace.eps[0], guided)
    _, alone = traced(emoji, **SETTINGS | {"seed": 2})
    assert torch.equal(trace.noise[1:2], alone.noise)
    # In a batch sums are rounded differently: 1e-3 is far below what 8 bits show.
    assert torch.allclose(trace.x0[3][1:2], alone.x0[3], atol=1e-3)
    assert ledger.calls == 7 and ledger.image_gain == pytest.approx(1, abs=1e-6)
    assert ledger.sigma_added == pytest.approx(trace.noised_sigma, rel=1e-6)
    assert maps.steps[0].shape[0] == 3


def test_a_second_run_starts_a_new_trace(emoji):
    with Trace(emoji) as trace, Ledger(emoji) as ledger:
        observe = together(trace, ledger)
        minisd.img2img(emoji, "fire", FIRE, **SETTINGS, observe=observe)
        minisd.txt2img(emoji, "fire", steps=2, seed=1, observe=observe)
    assert trace.n_steps == len(trace.steps) == ledger.steps_run == ledger.calls == 2
    assert trace.encoded is None and ledger.image_gain is None
    assert trace.sigma == SCHEDULES["model"](2)[:2]
    assert ledger.sigma_expected == pytest.approx(trace.sigma[0], rel=1e-6)


def test_the_hooks_are_removed(emoji):
    for watcher in (Trace(emoji), Ledger(emoji)):
        with pytest.raises(RuntimeError), watcher:
            assert len(emoji.unet._forward_hooks) == 1
            raise RuntimeError
        assert not emoji.unet._forward_hooks


def test_together_passes_each_event_in_order():
    first, second = [], []
    observe = together(first.append, lambda event: second.append((event, len(first))))
    x = torch.zeros(1, 4, 8, 8)
    events = [Encoded(x), Noised(x, x, 2.0, x)]
    for event in events:
        observe(event)
    assert first == events and second == [(events[0], 1), (events[1], 2)]


def test_memory_is_bounded():
    """1,000 steps of 1 kB tensors, twice each, under a limit of 100 kB."""
    trace = Trace(limit=100_000)
    x = torch.zeros(1, 4, 8, 8)
    for i in range(1000):
        trace(minisd.Step(i, 1000.0 - i, 999.0 - i, x + i, x, x + i + 1))
        assert sum(step.x.nbytes + step.eps.nbytes for step in trace.steps) <= 100_000
    kept = [step.i for step in trace.steps]
    assert kept[0] == 0 and kept[-1] == 999 and trace.n_steps == 1000
    assert kept[:-1] == list(range(0, 999, trace.stride))
    assert all(float(step.x[0, 0, 0, 0]) == step.i for step in trace.steps)
    assert float(trace.latent[0, 0, 0, 0]) == 1000


def test_later_changes_do_not_reach_a_trace():
    """A sampler may work in place."""
    trace, x = Trace(), torch.zeros(1, 4, 8, 8)
    trace(minisd.Step(0, 2.0, 1.0, x, x, x))
    x += 1
    assert not trace.x[0].any() and not trace.eps[0].any() and not trace.latent.any()


def test_in_a_notebook(run):
    _, trace = run
    html = trace._repr_html_()
    assert html.count("<img") == 14 and "7 steps" in html and "strength 0.7" in html
    assert "http" not in html


def test_latent_to_rgb():
    """One latent, by hand: L1 = 1 gives (0.298, 0.207, 0.208) in -1..1, truncated to 8 bits."""
    latent = torch.zeros(1, 4, 1, 2)
    latent[0, 0, 0, 0] = 1
    image = latent_image(latent)
    assert np.asarray(image).tolist() == [[[165, 153, 154], [127, 127, 127]]]


# ---- files ---------------------------------------------------------------------------------------


def test_saved_and_loaded(run, tmp_path):
    _, trace = run
    loaded = load_trace(save_trace(trace, tmp_path / "a.safetensors"))
    assert loaded.settings == trace.settings
    assert loaded.settings["prompt"] == "fire" and loaded.settings["seed"] == 1
    for name in ("x", "x0", "eps", "eps_uncond", "eps_cond"):
        pairs = list(zip(getattr(loaded, name), getattr(trace, name), strict=True))
        assert len(pairs) == 7 and all(torch.equal(*pair) for pair in pairs)
    for name in ("encoded", "noise", "noised", "latent", "image"):
        assert torch.equal(getattr(loaded, name), getattr(trace, name))
    for name in ("sigma", "sigma_next", "n_steps", "noised_sigma", "stride"):
        assert getattr(loaded, name) == getattr(trace, name)
    assert [step.calls for step in loaded.steps] == [1] * 7
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_run_without_steps_is_saved(tmp_path, emoji):
    _, trace = traced(emoji, steps=5, strength=0, seed=1)
    loaded = load_trace(save_trace(trace, tmp_path / "a.safetensors"))
    assert loaded.steps == [] and loaded.n_steps == 0 and loaded.noised_sigma == 0
    assert torch.equal(loaded.encoded, trace.encoded) and torch.equal(loaded.image, trace.image)


def test_latents_of_other_programs(tmp_path):
    """x and sigma are enough, with the batch axis or without."""
    x = torch.randn(3, 4, 8, 8)
    save_file({"x": x, "sigma": torch.tensor([3.0, 2.0, 1.0])}, tmp_path / "a.safetensors")
    trace = load_trace(tmp_path / "a.safetensors")
    assert torch.equal(trace.x[1], x[1:2])
    assert trace.sigma_next == [2, 1, 0] and trace.eps == trace.x0 == [None] * 3
    save_file({"x": x[:, None], "sigma": torch.tensor([3.0, 2, 1])}, tmp_path / "b.safetensors")
    assert torch.equal(load_trace(tmp_path / "b.safetensors").x[1], x[1:2])


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": torch.zeros(2, 4, 8, 8)},
        {"sigma": torch.ones(2)},
        {"x": torch.zeros(3, 4, 8, 8), "sigma": torch.ones(2)},
    ],
)
def test_files_that_are_not_traces(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is not a trace"):
        load_trace(tmp_path / "a.safetensors")


def test_broken_and_missing_files(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as a trace"):
        load_trace(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors"):
        load_trace(tmp_path / "b.safetensors")


def test_a_trace_that_cannot_be_written(run, tmp_path):
    _, trace = run
    with pytest.raises(OSError, match="could not write"):
        save_trace(trace, tmp_path / "missing" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


# ---- runs in lockstep ----------------------------------------------------------------------------


def test_lockstep_gives_the_results_of_single_runs(emoji):
    """Runs of all kinds at the same time. A batch's sums are rounded differently: 1e-3 in the
    latent is far below what 8 bits show (0.1 is about 5 levels of 255)."""

    def run_of(strength, steps, sampler, seed):
        def run(network):
            sd = replace(emoji, unet=network)
            settings = {"strength": strength, "steps": steps, "sampler": sampler, "seed": seed}
            return minisd.img2img(sd, "fire", FIRE, guidance=2, **settings).latent

        return run

    runs = [
        run_of(0.7, 5, "k_lms", 1),
        run_of(0.2, 5, "k_heun", 2),
        run_of(1.0, 8, "ddim", 1),
        run_of(0.0, 5, "k_lms", 1),
        run_of(0.5, 6, "k_euler_a", 3),
    ]
    single = [run(emoji.unet) for run in runs]
    for alone, in_batch in zip(single, lockstep(emoji.unet, runs), strict=True):
        assert torch.allclose(alone, in_batch, atol=1e-3)


def test_lockstep_ends_when_a_run_fails(emoji):
    context = emoji.text_states("")

    def complete(network):
        for _ in range(3):
            network(torch.zeros(1, 4, 16, 16), torch.zeros(1), context)

    def failing(network):
        network(torch.zeros(1, 4, 16, 16), torch.zeros(1), context)
        raise ArithmeticError("enough")

    with pytest.raises(ArithmeticError, match="enough"):
        lockstep(emoji.unet, [complete, failing, complete])
    with pytest.raises(RuntimeError):  # in the network itself
        lockstep(emoji.unet, [complete, lambda network: network(*[torch.zeros(1)] * 3)])
