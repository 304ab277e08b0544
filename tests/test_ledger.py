"""The plan's and the ledger's numbers are right, and the ledger refuses wrong noise."""

import warnings
from itertools import cycle, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minisd
from minisd.cli.main import main
from minisd.guidance import Guided
from minisd.observe import Ledger, NoiseMismatch, plan, steps_after, together
from minisd.observe.ledger import gains
from minisd.observe.plan import count_calls
from minisd.run import Noised
from minisd.schedule import start_index
from minisd.stable_diffusion import StableDiffusion

FIRE = Image.new("RGB", (64, 64), "white")
FIRE.paste("red", (20, 20, 44, 50))


class Identity(torch.nn.Module):
    """A network that predicts its input."""

    def forward(self, x, t, context):
        return x


class Pixels:
    """An autoencoder whose latents are pixels, of the picture's size."""

    factor = 1

    def encode(self, image):
        return torch.cat([image, image[:, :1]], dim=1)

    def decode(self, latent):
        return latent[:, :3]


SD = StableDiffusion(None, None, Identity(), Pixels(), None, torch.device("cpu"), multiple=1)
CONTEXT = torch.zeros(1, 77, 8)
NOISY = Image.fromarray(np.random.RandomState(0).randint(0, 256, (8, 8, 3), np.uint8))


# ---- before a run --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "strength", "sampler", "schedule", "run", "sigma"),
    [  # the original programs' tables, computed elsewhere (float32, four or five places)
        (10, 0.7, "k_lms", "karras", 7, 3.16860),
        (10, 0.4, "k_lms", "karras", 4, 0.44692),
        (10, 0.7, "k_lms", None, 7, 2.91831),
        (10, 0.4, "k_euler", None, 4, 0.93236),
        (10, 0.7, "ddim", None, 7, 2.29285),
        (10, 0.4, "ddim", None, 4, 0.83565),
        (30, 0.7, "k_lms", None, 21, 3.191),
        (29, 0.7, "k_lms", None, 20, 3.056),
        (50, 0.4, "k_lms", None, 20, 1.117),
    ],
)
def test_plan(steps, strength, sampler, schedule, run, sigma):
    planned = plan(steps, strength, sampler, schedule)
    counts = (planned.steps_asked, planned.steps_run, planned.steps_skipped, planned.calls)
    assert counts == (steps, run, steps - run, run)
    assert planned.sigma == pytest.approx(sigma, abs=6e-4)


def test_strength_1_leaves_7_percent_of_the_image():
    """The square root of the last abar, 0.00466: known as SD's terminal signal."""
    assert plan(50, 1).image_share == pytest.approx(0.0683, abs=1e-4)


def draw(observe, **settings):
    """img2img with the stand-in models: only the noise and the calls matter."""
    minisd.img2img(
        SD, CONTEXT, NOISY, negative_prompt=CONTEXT, guidance=1, **settings, observe=observe
    )


@pytest.mark.parametrize("sampler", list(minisd.SAMPLERS))
def test_planned_calls_are_the_calls_made(sampler):
    for schedule, steps, strength in product(minisd.SCHEDULES, (3, 10), (0, 0.1, 0.7, 1.0)):
        settings = {"steps": steps, "strength": strength, "sampler": sampler}
        with Ledger(SD) as ledger:
            draw(ledger, **settings, schedule=schedule, seed=1)
        planned = plan(**settings, schedule=schedule)
        assert (ledger.calls, ledger.steps_run) == (planned.calls, planned.steps_run)


@pytest.mark.parametrize("sampler", list(minisd.SAMPLERS))
def test_planned_calls_are_those_in_the_table(sampler):
    """FACTS counts the calls of 10 steps, the last of them to sigma 0; restart's vary."""
    calls = None if sampler == "restart" else plan(10, 1, sampler, "model").calls
    assert calls == minisd.FACTS[sampler].calls


def test_calls_of_a_sampler_of_ones_own(tmp_path):
    """With both halves of guidance, and with noise; as a function and as FILE.py:FUNCTION."""
    (tmp_path / "mine.py").write_text(
        "from minisd.samplers import Step, fresh_noise\n"
        "def mine(predict_eps, x, sigmas, generator=None):\n"
        "    for i, (a, b) in enumerate(zip(sigmas, sigmas[1:])):\n"
        "        uncond, cond = predict_eps.both(x, a)\n"
        "        eps = predict_eps(x, a) + predict_eps(x, a)\n"
        "        yield Step(i, a, b, x, eps, x + b * fresh_noise(x, generator))\n"
    )
    name = f"{tmp_path / 'mine.py'}:mine"
    assert count_calls(name, [3.0, 2.0, 0.0]) == 6
    assert plan(10, 0.5, name).calls == 15

    def one_call(predict_eps, x, sigmas):
        yield minisd.Step(0, sigmas[0], 0.0, x, predict_eps(x, sigmas[0]), x)

    assert plan(10, 0.5, one_call).calls == 1


def test_unknown_names():
    with pytest.raises(ValueError, match="no sampler named 'k_lsm'"):
        plan(10, 0.5, "k_lsm")
    with pytest.raises(ValueError, match="no schedule named 'carras'"):
        plan(10, 0.5, "k_lms", "carras")


# ---- how many steps to ask for -------------------------------------------------------------------


def test_step_counts_of_the_seed_document():
    """20 / 0.4 is 50. 20 / 0.7 is "roughly 30": 29 run 20, 30 run 21."""
    assert steps_after(20, 0.4) == 50
    assert steps_after(20, 0.7) == 29
    assert steps_after(21, 0.7) == 30


@given(
    st.integers(1, 150), st.one_of(st.floats(1e-3, 1), st.integers(1, 100).map(lambda p: p / 100))
)
def test_it_is_the_smallest_count_that_works(run, strength):
    try:
        steps = steps_after(run, strength)
    except ValueError:
        assert 10_000 - start_index(10_000, strength) < run
        return
    assert steps - start_index(steps, strength) == run
    assert steps == 1 or steps - 1 - start_index(steps - 1, strength) < run


@pytest.mark.parametrize(
    ("run", "strength", "message"),
    [
        (1, 0, "no step count up to 10000 runs 1 steps at strength 0"),
        (20, 0.0019, "10000 steps run 19"),
        (0, 0.5, "steps must be a whole number, 1 or more"),
        (5, 1.5, "strength must be between 0"),
    ],
)
def test_where_no_count_works(run, strength, message):
    with pytest.raises(ValueError, match=message):
        steps_after(run, strength)


# ---- in a run ------------------------------------------------------------------------------------


def test_measured_numbers(emoji):
    """Against the formulas, for an encoded latent: float32's rounding is left."""
    with Ledger(emoji) as ledger:
        minisd.img2img(emoji, "fire", FIRE, steps=10, strength=0.7, seed=1, observe=ledger)
    sigma = 2.918307  # as published
    assert ledger.image_gain == pytest.approx(1, abs=1e-6)
    assert ledger.sigma_added == pytest.approx(sigma, rel=1e-6)
    assert ledger.sigma_expected == pytest.approx(sigma, rel=1e-6)
    assert ledger.sigma_of_input == pytest.approx(sigma, rel=1e-6)
    assert ledger.image_share == pytest.approx(1 / (1 + sigma**2) ** 0.5, rel=1e-6)
    assert ledger.noise_share == pytest.approx(sigma / (1 + sigma**2) ** 0.5, rel=1e-6)
    x0 = emoji.vae.encode(torch.from_numpy(np.array(FIRE)).permute(2, 0, 1)[None] / 127.5 - 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    assert ledger.snr == pytest.approx(float(x0.var() / noise.var()) / sigma**2, rel=0.05)
    line = ledger.line()
    assert line.startswith("measured: sigma 2.9183 added, 2.9183 expected, image gain 1.000000")
    assert line.endswith("32.4% of the image survives, 7 network calls")


def test_a_run_without_steps(emoji):
    with Ledger(emoji) as ledger:
        minisd.img2img(emoji, "fire", FIRE, steps=10, strength=0, seed=1, observe=ledger)
    assert (ledger.calls, ledger.steps_run, ledger.sigma_expected) == (0, 0, None)
    assert ledger.line() == "measured: image gain 1.000000, no noise, no call of the network"


def test_gains_by_hand():
    x0, noise = torch.tensor([1.0, 2.0, 0.0, 1.0]), torch.tensor([1.0, -1.0, 3.0, 2.0])
    assert gains(0.5 * x0 + 3 * noise, x0, noise) == pytest.approx((0.5, 3))
    assert gains(3 * noise, 0 * x0, noise) == (None, pytest.approx(3))
    with pytest.raises(NoiseMismatch, match="cannot be separated"):
        gains(x0, x0, 2 * x0)


def observed(ledger=None, **wrong):
    """A ledger after an insertion at sigma 2 and the first call, in which `wrong` values differ."""
    values = {"gain": 1.0, "added": 2.0, "expected": 2.0, "scaled": 2.0} | wrong
    ledger = ledger or Ledger()
    rng = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 4, 16, 16, generator=rng) for _ in range(2))
    x = values["gain"] * x0 + values["added"] * noise
    ledger(Noised(x0, noise, 2.0, x))
    t = torch.tensor([minisd.schedule.sigma_to_t(values["expected"])])
    ledger.see_call(x / (values["scaled"] ** 2 + 1) ** 0.5, t, torch.zeros(1), x)
    return ledger


def test_right_noise_passes():
    assert observed().sigma_added == pytest.approx(2, rel=1e-6)


WRONG_NOISE = [
    {"expected": 1.99},  # one of 200 steps off
    {"added": 2.0001},
    {"scaled": 0.0},  # the input is x itself
    {"scaled": 2.0001},
    {"gain": 0.501},  # the build that drew the document's strength-0.7 figure
    # CompVis's img2img at 10 steps, 0.7
    {"added": 3.34776, "expected": 2.29285, "scaled": 2.29285},
    {"added": 2.0 / 5**0.5, "gain": 1 / 5**0.5},  # DDIM's formula given to a k-sampler
]


@pytest.mark.parametrize("wrong", WRONG_NOISE)
def test_wrong_noise_is_refused(wrong):
    with pytest.raises(NoiseMismatch):
        observed(**wrong)


@pytest.mark.parametrize("wrong", WRONG_NOISE)
def test_wrong_noise_on_purpose_warns(wrong):
    with pytest.warns(UserWarning, match="THE NOISE IS WRONG"):
        ledger = observed(Ledger(refuse=False), **wrong)
    assert ledger.mismatch and "THE NOISE IS WRONG" in ledger.line()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert observed(Ledger(refuse=False)).mismatch is None


def wrong_levels(monkeypatch):
    """Every level that the sampler asks for is passed to the network as 0.9 times that."""
    right = Guided.__call__
    monkeypatch.setattr(Guided, "__call__", lambda self, x, sigma: right(self, x, 0.9 * sigma))


def test_a_refused_run_ends_before_the_first_step(monkeypatch, emoji):
    wrong_levels(monkeypatch)
    events = []
    message = r"noise added has sigma 3\.8308.*, but the network expects 3\.447"
    with pytest.raises(NoiseMismatch, match=message), Ledger(emoji) as ledger:
        observe = together(ledger, events.append)
        minisd.img2img(emoji, "fire", FIRE, seed=1, observe=observe)
    assert [type(event).__name__ for event in events] == ["Encoded", "Noised"]


def test_a_wrong_run_on_purpose_is_drawn(monkeypatch, emoji):
    wrong_levels(monkeypatch)
    settings = {"seed": 1, "steps": 3}
    plain = minisd.img2img(emoji, "fire", FIRE, **settings)
    with pytest.warns(UserWarning, match="THE NOISE IS WRONG"), Ledger(emoji, False) as ledger:
        result = minisd.img2img(emoji, "fire", FIRE, **settings, observe=ledger)
    assert torch.equal(result.latent, plain.latent) and ledger.steps_run == 2


# ---- all insertions ------------------------------------------------------------------------------


class FirstCall(Exception):
    """The network was called: the insertion is measured, the steps are not needed."""


def end_run(event):
    if isinstance(event, minisd.Step):
        raise FirstCall


def check_insertions(cases):
    """Each case through img2img up to the first step. Returns the number of cases.

    1e-6: single precision's 6e-8 relative, on x that is up to 15 times larger than the image.
    """
    n, schedules = 0, {}
    for n, (sampler, schedule, steps, strength) in enumerate(cases, 1):
        if (schedule, steps) not in schedules:
            schedules[schedule, steps] = minisd.SCHEDULES[schedule](steps)
        sigmas, called = list(schedules[schedule, steps]), False
        settings = {"steps": steps, "strength": strength, "sampler": sampler, "seed": n}
        with Ledger(SD) as ledger:
            try:
                draw(
                    together(ledger, end_run),
                    **settings,
                    schedule=lambda _, sigmas=sigmas: sigmas,
                )
            except FirstCall:
                called = True
        run = int(round(steps * strength * 100) // 100)  # strengths of two decimals: exact
        case = (sampler, schedule, steps, strength)
        assert called == (run > 0), case
        assert abs(ledger.image_gain - 1) <= 1e-6, case
        if run:
            sigma = sigmas[steps - run]
            assert abs(ledger.sigma_added / sigma - 1) <= 1e-6, case
            assert abs(ledger.sigma_expected / sigma - 1) <= 1e-6, case
        else:
            assert abs(ledger.sigma_added) <= 1e-6, case
    return n


@pytest.mark.slow
def test_insertion():
    """Of all samplers and schedules, at some step counts and strengths."""
    cases = product(minisd.SAMPLERS, minisd.SCHEDULES, range(1, 151, 17))
    strengths = cycle(p / 100 for p in range(0, 101, 7))
    n = check_insertions((*case, strength) for case, strength in zip(cases, strengths))
    assert n == len(minisd.SAMPLERS) * len(minisd.SCHEDULES) * 9


@pytest.mark.slow
def test_insertion_of_100_000():
    """All samplers and schedules, steps 1..150, and for each two of the strengths 0, 0.01 ... 1, so
    spread that every strength occurs with every sampler and schedule."""
    strengths = cycle(p / 100 for p in range(101))
    cases = product(minisd.SAMPLERS, minisd.SCHEDULES, range(1, 151), range(2))
    n = check_insertions((*case[:3], strength) for case, strength in zip(cases, strengths))
    assert n == len(minisd.SAMPLERS) * len(minisd.SCHEDULES) * 150 * 2


# ---- minisd explain ------------------------------------------------------------------------------


def test_explain(capsys):
    assert main(["explain", "-s", "30", "-f", "0.7"]) == 0
    out = capsys.readouterr().out
    rows = {line[2:22].strip(): line[22:].split() for line in out.splitlines()}
    assert rows["steps asked"] == ["29", "[30]", "31"]  # with the neighbours
    assert rows["steps run"] == ["20", "[21]", "21"]
    assert rows["steps skipped"] == ["9", "[9]", "10"]
    assert rows["network calls"] == ["20", "[21]", "21"]
    for label in ("noise added, sigma", "noise expected"):
        assert rows[label] == ["3.0557", "[3.1913]", "2.9183"]
    picture = [line for line in out.splitlines() if "┤" in line]
    assert picture[0].split()[0] == "14.61" and picture[-1].split()[0] == "0.03"
    assert sum(line.count("○") for line in picture) == 9
    assert sum(line.count("◆") for line in picture) == 1
    assert sum(line.count("●") for line in picture) == 20
    assert "the run starts here, at step 10 of 30" in out


@pytest.mark.parametrize("f", ["0", "1"])
@pytest.mark.parametrize("s", ["1", "2", "150", "998", "999"])
@pytest.mark.parametrize("sampler", ["k_lms", "ddim"])
def test_explain_at_the_ends(s, f, sampler, capsys):
    assert main(["explain", "a prompt too", "-s", s, "-f", f, "-A", sampler]) == 0
    out = capsys.readouterr().out
    steps = int(s)
    neighbours = [
        n for n in (steps - 1, steps, steps + 1) if 0 < n < (1000 if sampler == "ddim" else 9999)
    ]
    asked = next(line for line in out.splitlines() if "steps asked" in line)
    assert [int(word.strip("[]")) for word in asked.split()[2:]] == neighbours
    assert f"[{s}]" in asked
    run = next(line for line in out.splitlines() if "steps run" in line)
    assert f"[{steps if f == '1' else 0}]" in run


def test_explain_steps_after(capsys):
    assert main(["explain", "--steps-after", "20", "-f", "0.4"]) == 0
    assert "50 steps at strength 0.4" in capsys.readouterr().out
    assert main(["explain", "--steps-after", "20", "-f", "0"]) == 2
    assert "no step count" in capsys.readouterr().err


# ---- published lists of levels -------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[14.615, 1, 0.029, 0], [14.7, 1, 0.0289, 0]])
@pytest.mark.parametrize("strength", [None, 0.34, 1.0])
def test_a_rounded_level_is_the_networks_own(emoji, levels, strength):
    """The network's levels end at 14.6146 and 0.0292; lists are published as 14.615 ... 0.029."""
    with Ledger(emoji) as ledger:
        settings = {"steps": 3, "schedule": lambda _: levels, "seed": 1, "observe": ledger}
        if strength is None:
            minisd.txt2img(emoji, "fire", **settings)
        else:
            minisd.img2img(emoji, "fire", torch.zeros(1, 4, 8, 8), strength=strength, **settings)
    assert ledger.sigma_added == pytest.approx(levels[2 if strength == 0.34 else 0])


@pytest.mark.parametrize("levels", [[15, 1, 0.029, 0], [14.6, 1, 0.02, 0]])
def test_a_level_that_is_not_the_networks_is_refused(emoji, levels):
    x0, schedule = torch.zeros(1, 4, 8, 8), lambda _: levels
    settings = {"steps": 3, "schedule": schedule, "strength": 1.0 if levels[0] == 15 else 0.34}
    with pytest.raises(NoiseMismatch, match="but the network expects"), Ledger(emoji) as ledger:
        minisd.img2img(emoji, "fire", x0, **settings, observe=ledger)
