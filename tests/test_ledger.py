"""The ledger's numbers are right, measured in runs and computed before them; and it refuses."""

import subprocess
import sys
from itertools import cycle, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minisd
from minisd.__main__ import main
from minisd.schedule import start_index, steps_after
from minisd.trace.ledger import CALLS, Ledger, Refused, auditing, gains, plan

FIRE = Image.new("RGB", (64, 64), "white")
FIRE.paste("red", (20, 20, 44, 50))


# ---- before a run ------------------------------------------------------------------------------


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
    assert (planned.run, planned.dropped, planned.calls) == (run, steps - run, run)
    assert planned.sigma == pytest.approx(sigma, abs=6e-4)


def test_strength_1_leaves_7_percent_of_the_image():
    """The square root of the last abar, 0.00466: known as SD's terminal signal."""
    assert plan(50, 1).share == pytest.approx(0.0683, abs=1e-4)


@pytest.mark.parametrize("sampler", list(minisd.SAMPLERS))
def test_planned_calls_are_those_made(emoji, sampler):
    for schedule, strength in product(minisd.SCHEDULES, (0.1, 0.7, 1.0)):
        with auditing(emoji.unet) as ledger:
            minisd.img2img(
                emoji, "fire", FIRE, steps=3, strength=strength, sampler=sampler,
                schedule=schedule, guidance=1, seed=1, observe=ledger,
            )  # fmt: skip
        planned = plan(3, strength, sampler, schedule)
        assert (ledger.calls, ledger.run) == (planned.calls, planned.run)


def test_all_samplers_are_known():
    assert CALLS.keys() == minisd.SAMPLERS.keys()


def test_names_that_are_none():
    with pytest.raises(ValueError, match="no sampler"):
        plan(10, 0.5, "k_lsm")
    with pytest.raises(ValueError, match="no schedule"):
        plan(10, 0.5, "k_lms", "carras")


# ---- how many steps to ask for -----------------------------------------------------------------


def test_the_documents_step_counts():
    """20 / 0.4 is 50. 20 / 0.7 is "roughly 30": 29 run 20, 30 run 21."""
    assert steps_after(20, 0.4) == 50
    assert steps_after(20, 0.7) == 29
    assert steps_after(21, 0.7) == 30


@given(
    st.integers(1, 150), st.one_of(st.floats(1e-3, 1), st.integers(1, 100).map(lambda p: p / 100))
)
def test_it_is_the_smallest_that_runs_so_many(run, strength):
    try:
        steps = steps_after(run, strength)
    except ValueError:
        assert 10_000 - start_index(10_000, strength) < run
        return
    assert steps - start_index(steps, strength) == run
    assert steps == 1 or steps - 1 - start_index(steps - 1, strength) < run


@pytest.mark.parametrize(("run", "strength"), [(1, 0), (20, 0.0019), (0, 0.5), (5, 1.5)])
def test_where_there_is_no_count(run, strength):
    with pytest.raises(ValueError):
        steps_after(run, strength)


# ---- in a run ----------------------------------------------------------------------------------


def test_measured_numbers(emoji):
    """Against the formulas, for a latent that was encoded: what float32 leaves of them."""
    with auditing(emoji.unet) as ledger:
        minisd.img2img(emoji, "fire", FIRE, steps=10, strength=0.7, seed=1, observe=ledger)
    sigma = 2.918307  # as published
    assert ledger.image_gain == pytest.approx(1, abs=1e-6)
    assert ledger.sigma_put == pytest.approx(sigma, rel=1e-6)
    assert ledger.sigma_told == pytest.approx(sigma, rel=1e-6)
    assert ledger.told_by_scale == pytest.approx(sigma, rel=1e-6)
    assert ledger.share_of_image == pytest.approx(1 / (1 + sigma**2) ** 0.5, rel=1e-6)
    x0 = emoji.vae.encode(torch.from_numpy(np.array(FIRE)).permute(2, 0, 1)[None] / 127.5 - 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    assert ledger.snr == pytest.approx(float(x0.var() / noise.var()) / sigma**2, rel=0.05)


def test_gains_by_hand():
    x0, noise = torch.tensor([1.0, 2.0, 0.0, 1.0]), torch.tensor([1.0, -1.0, 3.0, 2.0])
    assert gains(0.5 * x0 + 3 * noise, x0, noise) == pytest.approx((0.5, 3))
    assert gains(3 * noise, 0 * x0, noise) == (None, pytest.approx(3))


def insert(**wrong):
    """A ledger shown an insertion at sigma 2, and what is wrong with it."""
    values = {"gain": 1.0, "put": 2.0, "told": 2.0, "scaled": 2.0} | wrong
    rng = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 4, 16, 16, generator=rng) for _ in range(2))
    x = values["gain"] * x0 + values["put"] * noise
    ledger = Ledger()
    ledger("noised", x0=x0, noise=noise, sigma=2.0, x=x)
    t = torch.tensor([minisd.schedule.sigma_to_t(values["told"])])
    ledger.called(x / (values["scaled"] ** 2 + 1) ** 0.5, t, torch.zeros(1), x)
    return ledger


def test_the_right_one_passes():
    assert insert().sigma_put == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"told": 1.99},  # one of 200 steps off
        {"put": 2.0001},
        {"gain": 0.501},  # the build that drew the document's strength-0.7 figure
        {"put": 3.34776, "told": 2.29285, "scaled": 2.29285},  # CompVis's img2img at 10 steps, 0.7
        {"put": 2.0 / 5**0.5, "gain": 1 / 5**0.5},  # DDIM's formula given to a k-sampler
    ],
)
def test_it_refuses(wrong):
    with pytest.raises(Refused):
        insert(**wrong)


def test_a_refused_run_ends_before_the_first_step(monkeypatch, emoji):
    module = sys.modules["minisd.img2img"]
    right = module.guided
    monkeypatch.setattr(
        module, "guided", lambda *given: lambda x, sigma: right(*given)(x, 0.9 * sigma)
    )
    steps = []
    with pytest.raises(Refused, match=r"put in has sigma 3\.8308"), auditing(emoji.unet) as ledger:

        def observe(name, **values):
            ledger(name, **values)
            steps.extend([name] * (name == "step"))

        minisd.img2img(emoji, "fire", FIRE, seed=1, observe=observe)
    assert not steps


# ---- all of them -------------------------------------------------------------------------------


class Enough(Exception):
    pass


class Told(torch.nn.Module):
    factor = 1

    def __init__(self):
        super().__init__()
        self.ledger = None

    def forward(self, x, t, context):
        self.ledger.called(x, t, context, x)
        raise Enough  # the insertion is what is looked at: spare the steps


class Pixels:
    """An autoencoder whose latents are pixels, of the picture's size."""

    factor = 1

    def encode(self, image):
        return torch.cat([image, image[:, :1]], dim=1)

    def decode(self, latent):
        return latent[:, :3]


class Stub:
    multiple, native_size, device = 1, 8, torch.device("cpu")
    unet, vae, context = Told(), Pixels(), torch.zeros(1, 77, 8)

    def text_states(self, prompt):
        return self.context


def check_insertions(cases):
    """Each through img2img up to the network's first call. Returns how many there were.

    1e-6: single precision's 6e-8 relative, on x that is up to 15 times larger than the image."""
    sd, n, grids = Stub(), 0, {}
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (8, 8, 3), np.uint8))
    for n, (sampler, schedule, steps, strength) in enumerate(cases, 1):
        if (schedule, steps) not in grids:
            grids[schedule, steps] = minisd.SCHEDULES[schedule](steps)
        sigmas, called = list(grids[schedule, steps]), False
        sd.unet.ledger = ledger = Ledger()
        try:
            minisd.img2img(
                sd, "", picture, strength=strength, steps=steps, sampler=sampler,
                schedule=lambda _, sigmas=sigmas: sigmas, guidance=1, seed=n, observe=ledger,
            )  # fmt: skip
        except Enough:
            called = True
        run = int(round(steps * strength * 100) // 100)  # strengths of two decimals: exact
        case = (sampler, schedule, steps, strength)
        assert called == (run > 0), case
        assert abs(ledger.image_gain - 1) <= 1e-6, case
        if run:
            sigma = sigmas[steps - run]
            assert abs(ledger.sigma_put / sigma - 1) <= 1e-6, case
            assert abs(ledger.sigma_told / sigma - 1) <= 1e-6, case
        else:
            assert abs(ledger.sigma_put) <= 1e-6, case
    return n


def test_insertion_of_some():
    strengths = cycle(p / 100 for p in range(0, 101, 7))
    steps = range(1, 151, 17)
    assert check_insertions(zip_with(strengths, product(minisd.SAMPLERS, minisd.SCHEDULES, steps)))


def zip_with(strengths, cases):
    return [(*case, strength) for case, strength in zip(cases, strengths)]


@pytest.mark.slow
def test_insertion_of_100_000():
    """All samplers and schedules, steps 1..150, and of each 17 of the strengths 0, 0.01 ... 1, so
    spread that every strength comes with every sampler and schedule."""
    strengths = cycle(p / 100 for p in range(101))
    seventeen = range(17)
    cases = product(minisd.SAMPLERS, minisd.SCHEDULES, range(1, 151), seventeen)
    n = check_insertions((*case[:3], strength) for case, strength in zip(cases, strengths))
    assert n == 10 * 4 * 150 * 17


# ---- minisd explain ----------------------------------------------------------------------------


def test_explain(capsys):
    assert main(["explain", "-s", "30", "-f", "0.7"]) == 0
    out = capsys.readouterr().out
    assert "29                [30]                31" in out  # the neighbours
    assert "20                [21]                21" in out  # run
    assert "3.0557            [3.1913]            2.9183" in out
    picture = [line for line in out.splitlines() if "┤" in line]
    assert sum(line.count("○") for line in picture) == 9
    assert sum(line.count("◆") for line in picture) == 1
    assert sum(line.count("●") for line in picture) == 20


@pytest.mark.parametrize("f", ["0", "1"])
@pytest.mark.parametrize("s", ["1", "2", "150", "998", "999"])
@pytest.mark.parametrize("sampler", ["k_lms", "ddim"])
def test_explain_at_the_ends(s, f, sampler, capsys):
    assert main(["explain", "a prompt too", "-s", s, "-f", f, "-A", sampler]) == 0
    assert f"[{s}]" in capsys.readouterr().out


def test_explain_steps_after(capsys):
    assert main(["explain", "--steps-after", "20", "-f", "0.4"]) == 0
    assert "50 steps at strength 0.4" in capsys.readouterr().out
    assert main(["explain", "--steps-after", "20", "-f", "0"]) == 2


def test_explain_loads_no_torch():
    code = "import sys, minisd.__main__ as m; m.main(['explain']); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"
