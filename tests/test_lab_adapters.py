"""Samplers of other libraries: the adapters, and what they say of diffusers' schedulers."""

import sys
import threading
from functools import partial
from itertools import pairwise

import pytest
import torch

import minisd
from minisd.cli.main import main
from minisd.lab import originals
from minisd.lab.certificate import certify
from minisd.lab.contract import check_noise, check_steps
from minisd.lab.exact import Mixture, as_sd
from minisd.lab.originals import (
    DIFFUSERS,
    confirmed,
    examine,
    function_alone,
    middle_errors,
    theory,
)
from minisd.lab.originals_page import report_page
from minisd.lab.quality import check_order
from minisd.lab.subject import HIGH, MIXTURE, all_steps, latent
from minisd.more_samplers.adapted_functions import adapted_function
from minisd.more_samplers.adapted_schedulers import (
    adapted_scheduler,
    betas_of,
    replaced,
    with_levels_above,
)
from minisd.more_samplers.adapters import adapted, find_sampler
from minisd.samplers import SAMPLERS, ancestral_step
from minisd.schedule import karras, model

slow = pytest.mark.slow

# ---- functions with k-diffusion's signature ------------------------------------------------------


@torch.no_grad()
def euler(model, x, sigmas, extra_args=None, callback=None, disable=None, churn=0.0):
    ones = x.new_ones([x.shape[0]])
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma * ones, **extra_args)
        callback({"x": x, "i": i, "sigma": sigma, "denoised": denoised})
        x = x + (sigma_next - sigma) * (x - denoised) / sigma
    return x


@torch.no_grad()
def heun_in_place(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """It changes its x in place, as some of ComfyUI's samplers do."""
    ones = x.new_ones([x.shape[0]])
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma * ones, **extra_args)
        callback({"x": x, "i": i, "sigma": sigma, "denoised": denoised})
        slope = (x - denoised) / sigma
        if sigma_next > 0:
            x_next = x + (sigma_next - sigma) * slope
            slope_next = (x_next - model(x_next, sigma_next * ones)) / sigma_next
            slope = (slope + slope_next) / 2
        x += (sigma_next - sigma) * slope
    return x


@torch.no_grad()
def euler_a(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, noise_sampler=None
):
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
        callback({"x": x, "i": i, "sigma": sigma, "denoised": denoised})
        down, up = ancestral_step(float(sigma), float(sigma_next), eta)
        x = x + (down - sigma) * (x - denoised) / sigma
        if sigma_next > 0:
            x = x + up * noise_sampler(sigma, sigma_next)
    return x


TWINS = [(euler, "k_euler"), (heun_in_place, "k_heun"), (euler_a, "k_euler_a")]


@pytest.mark.parametrize(("original", "name"), TWINS)
def test_an_adapted_function_is_the_same_sampler(original, name):
    """Its steps, one by one: the arithmetic differs by rounding only."""
    for sigmas in (karras(8), model(10)[4:]):
        x = latent(sigmas[0], size=4)
        before = x.clone()
        ours = all_steps(SAMPLERS[name], MIXTURE, x, sigmas)
        theirs = all_steps(adapted_function(original), MIXTURE, x, sigmas)
        assert torch.equal(x, before)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.i, a.sigma, a.sigma_next) == (b.i, b.sigma, b.sigma_next)
            assert (a.x - b.x).abs().max() < 1e-12 and (a.eps - b.eps).abs().max() < 1e-12
            assert (a.x_next - b.x_next).abs().max() < 1e-12


def test_an_adapted_function_is_certified():
    """It passes what its own arithmetic keeps, and it fails with a bug."""
    certificate = certify(adapted(euler_a), checks=[check_steps, check_noise, check_order])
    assert certificate.passed, certificate.card()

    def half_a_step(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return euler(model, x / 2, sigmas, extra_args, callback)

    assert not certify(adapted(half_a_step), checks=[check_noise]).passed


def test_options_of_an_adapted_function():
    names = {"euler": [], "euler_a": ["eta"]}
    for original, name in ((euler, "euler"), (euler_a, "euler_a")):
        sampler = adapted(original)
        assert sampler.__name__ == name
        with pytest.raises(ValueError, match="has no option 'gamma'"):
            minisd.Recipe("", sampler=sampler, options={"gamma": 1}).functions()
        if names[name]:
            minisd.Recipe("", sampler=sampler, options={"eta": 0.5}).functions()
    x = latent(2.0, size=4)
    no_noise = partial(adapted(euler_a), eta=0.0)
    *_, last = no_noise(MIXTURE, x, [2.0, 1.0, 0.5], generator=torch.Generator().manual_seed(1))
    *_, expected = SAMPLERS["k_euler"](MIXTURE, x, [2.0, 1.0, 0.5])
    assert (last.x_next - expected.x_next).abs().max() < 1e-12


def test_a_run_that_is_left_ends_its_thread():
    run = adapted(euler)(MIXTURE, latent(2.0, size=1), [2.0, 1.0, 0.5, 0.0])
    next(run)
    threads = [thread for thread in threading.enumerate() if thread.name == "sampler"]
    assert threads
    run.close()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_errors_of_an_adapted_function():
    def broken(model, x, sigmas, extra_args=None, callback=None, disable=None):
        raise RuntimeError("no idea")

    def silent(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return x

    def adaptive(model, x, sigma_min, sigma_max, extra_args=None, callback=None):
        return x

    x = latent(2.0, size=1)
    with pytest.raises(RuntimeError, match="no idea"):
        list(adapted(broken)(MIXTURE, x, [2.0, 1.0]))
    with pytest.raises(ValueError, match="silent calls back 0 times in 1 steps"):
        list(adapted(silent)(MIXTURE, x, [2.0, 1.0]))
    with pytest.raises(ValueError, match=r"adaptive\(model, x, sigma_min, sigma_max, \.\.\.\)"):
        adapted(adaptive)
    with pytest.raises(ZeroDivisionError):  # the network's own error reaches the caller
        list(adapted(euler)(lambda x, sigma: x / (1 // 0), x, [2.0, 1.0]))
    assert list(adapted(euler)(MIXTURE, x, [2.0])) == []


def test_k_diffusion_itself():
    sampling = pytest.importorskip("k_diffusion.sampling", reason="pip install minisd[originals]")
    x, sigmas = latent(HIGH, size=4), karras(8)
    for original, name in (("sample_lms", "k_lms"), ("sample_dpmpp_2m", "k_dpmpp_2")):
        ours = all_steps(SAMPLERS[name], MIXTURE, x, sigmas)[-1].x_next
        theirs = all_steps(adapted(getattr(sampling, original)), MIXTURE, x, sigmas)[-1].x_next
        assert (ours - theirs)[..., :-1].abs().max() < 0.1  # lms extrapolates to 0 in another way


# ---- schedulers of diffusers ---------------------------------------------------------------------

SCHEDULERS = [
    ("EulerDiscreteScheduler", {}, "k_euler", {}),
    ("DDIMScheduler", {}, "k_euler", {}),
    ("HeunDiscreteScheduler", {}, "k_heun", {}),
    ("KDPM2DiscreteScheduler", {}, "k_dpm_2", {}),
    ("LMSDiscreteScheduler", {}, "k_lms", {}),
    ("DPMSolverMultistepScheduler", {}, "k_dpmpp_2", {}),
    ("UniPCMultistepScheduler", {"lower_order_final": False}, "uni_pc_bh2", {"order": 2}),
    ("PNDMScheduler", {}, "plms", {}),
    ("EulerAncestralDiscreteScheduler", {}, "k_euler_a", {}),
    ("DDPMScheduler", {}, "k_euler_a", {}),
]


@pytest.mark.parametrize(("kind", "settings", "name", "options"), SCHEDULERS)
def test_an_adapted_scheduler_is_the_same_sampler(kind, settings, name, options):
    """In float64, on a schedule that ends above 0: LMS's integrals are good to 1e-8."""
    sampler = partial(adapted_scheduler(find_class(kind), double=True), **settings)
    for sigmas in (karras(8)[:-1], model(10)[4:-1]):
        x = latent(sigmas[0], size=4)
        ours = all_steps(partial(SAMPLERS[name], **options), MIXTURE, x, sigmas)
        theirs = all_steps(sampler, MIXTURE, x, sigmas)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.sigma, a.sigma_next) == (b.sigma, b.sigma_next)
            assert (a.x_next - b.x_next).abs().max() < 1e-8


def find_class(name: str):
    import diffusers

    return getattr(diffusers, name)


def test_ipndm_is_that_of_diffusers():
    """Its scheduler takes the network's answer in another form: eps = beta x + alpha answer."""
    kind = find_class("IPNDMScheduler")
    module = sys.modules[kind.__module__]
    for sigmas in (karras(12)[:-1], model(10)[4:-1]):
        x = latent(sigmas[0], size=4)
        with replaced(module, lambda x: x, double=True):
            scheduler = kind(trained_betas=[s / (1 + s**2) ** 0.5 for s in sigmas])
            scheduler.set_timesteps(len(sigmas))
            y = x / (1 + sigmas[0] ** 2) ** 0.5
            for i, t in enumerate(scheduler.timesteps[: len(sigmas) - 1]):
                eps = MIXTURE(y * (1 + sigmas[i] ** 2) ** 0.5, sigmas[i])
                answer = (eps - scheduler.betas[i] * y) / scheduler.alphas[i]
                y = scheduler.step(answer, t, y).prev_sample
        ours = all_steps(SAMPLERS["ipndm"], MIXTURE, x, sigmas)[-1].x_next
        assert (ours - y * (1 + sigmas[-1] ** 2) ** 0.5).abs().max() < 1e-12


def test_a_table_of_levels():
    levels = [3.0, 1.0, 0.2]
    abars = torch.tensor(betas_of(levels), dtype=torch.float64).neg().add(1).cumprod(0)
    assert ((1 - abars) / abars).sqrt().tolist() == pytest.approx([0.2, 1.0, 3.0], rel=1e-12)
    assert with_levels_above(levels, 2) == pytest.approx([27.0, 9.0, 3.0, 1.0, 0.2])


@pytest.mark.parametrize(
    ("kind", "fails"),
    [
        ("LMSDiscreteScheduler", True),
        ("PNDMScheduler", True),
        ("EulerDiscreteScheduler", False),
        ("DPMSolverMultistepScheduler", False),
        ("UniPCMultistepScheduler", False),
        ("HeunDiscreteScheduler", False),
    ],
)
def test_schedulers_that_img2img_starts_in_the_middle(kind, fails):
    """From noise all pass. From the middle those fail that go by the number of the step.

    The adapter and the library alone agree: strength 0.7 of 20 steps, on a mixture of normals, has
    several times the error of minisd's sampler on the same levels.
    """
    scheduler = find_class(kind)
    sampler = adapted_scheduler(scheduler, double=True)
    assert certify(sampler, checks=[check_noise]).passed
    assert certify(partial(sampler, skipped=3), checks=[check_noise]).passed is not fails
    twin = SAMPLERS[DIFFUSERS[kind][0]]
    error, ours = middle_errors(scheduler, twin, 20, 6)
    assert (error > 3 * ours) is fails


def test_batches_draw_their_own_noise():
    kind = find_class("EulerAncestralDiscreteScheduler")
    sampler, sigmas = adapted(kind), karras(4)
    x = torch.cat([latent(sigmas[0], size=4)] * 2).float()
    rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = all_steps(sampler, MIXTURE, x, sigmas, rngs)[-1].x_next
    alone = all_steps(sampler, MIXTURE, x[:1], sigmas, torch.Generator().manual_seed(2))
    assert (both[1:] - alone[-1].x_next).abs().max() < 1e-5
    assert not torch.equal(both[0], both[1])


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere_at_all:f", "nowhere_at_all is not installed: pip install nowhere-at-all"),
        ("minisd.nowhere:f", "minisd.nowhere cannot be imported"),
        ("diffusers:LMS", "diffusers has no sampler named 'LMS'"),
        (
            "torch.nn:Linear",
            "Linear(in_features, out_features, bias, device, ...) is not a sampler",
        ),
        ("k_lsm", "there is no sampler named 'k_lsm'"),
    ],
)
def test_names_that_are_no_samplers(name, complaint):
    with pytest.raises(ValueError) as error:
        find_sampler(name)
    assert complaint in str(error.value)


@pytest.mark.slow
def test_pictures_with_samplers_of_others(tmp_path, capsys, tiny_path):
    """`-A` takes a scheduler and a file; both give the picture of minisd's own sampler."""
    from PIL import Image

    (tmp_path / "own.py").write_text(
        "def euler(model, x, sigmas, extra_args=None, callback=None, disable=None):\n"
        "    for i in range(len(sigmas) - 1):\n"
        "        denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **extra_args)\n"
        "        callback({'x': x, 'i': i, 'denoised': denoised})\n"
        "        x = x + (sigmas[i + 1] - sigmas[i]) * (x - denoised) / sigmas[i]\n"
        "    return x\n"
    )
    words = ["txt2img", "fire", "-s", "3", "-S", "1", "-W", "64", "-H", "64"]
    words += ["--model", str(tiny_path), "-o"]
    pictures = []
    for i, name in enumerate(
        ("k_euler", "diffusers:EulerDiscreteScheduler", f"{tmp_path}/own.py:euler")
    ):
        assert main([*words, str(tmp_path / f"{i}"), "-A", name]) == 0
        (path,) = (tmp_path / f"{i}").glob("*.png")
        pictures.append(torch.tensor(list(Image.open(path).tobytes())))
    for other in pictures[1:]:
        assert (other - pictures[0]).abs().max() <= 1  # float32 in another order
    output = capsys.readouterr().out
    assert "diffusers:EulerDiscreteScheduler on the model schedule" in output


def test_brownian_paths_on_the_command_line(tmp_path, capsys, tiny_path):
    """`--set brownian=True`; the recipe in the picture has it too."""
    words = ["txt2img", "fire", "-s", "2", "-S", "1", "-W", "64", "-H", "64", "-A", "dpmpp_2m_sde"]
    words += ["--model", str(tiny_path), "-o", str(tmp_path)]
    assert main([*words, "--set", "brownian=True"]) == 0
    (path,) = tmp_path.glob("*.png")
    recipe = minisd.read_recipe(path)
    assert recipe.options == {"brownian": True} and "brownian=True" in recipe.command()
    assert main(["txt2img", "fire", "-A", "k_lms", "--set", "brownian=True"]) == 2
    assert "only a sampler with a parameter named generator" in capsys.readouterr().err


# ---- the report ----------------------------------------------------------------------------------


def last_step_fails(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The first step is taken as one that has a step before it, as in k-diffusion's 2M SDE."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma * x.new_ones([x.shape[0]]))
        if callback:
            callback({"x": x, "i": i, "denoised": denoised})
        if sigma_next > 0:
            h = sigma - sigma_next
        x = denoised + sigma_next / sigma * (x - denoised)
        h_last = h  # noqa: F841
    return x


def test_a_failure_is_confirmed_without_the_adapter():
    entry = originals.Original("own", "last_step_fails", last_step_fails, theory("k_euler", {}))
    assert "raises UnboundLocalError" in function_alone(entry)
    assert "the last step of karras(10)" in function_alone(entry)
    correct = originals.Original("own", "euler", without_callback, theory("k_euler", {}))
    assert confirmed(correct, "from noise") == ""


def without_callback(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return euler(model, x, sigmas, {}, callback or (lambda state: None))


@slow
def test_the_report_of_three_samplers(monkeypatch, tmp_path, capsys):
    entries = [
        originals.Original("own", "last_step_fails", last_step_fails, theory("k_euler", {})),
        originals.Original("own", "euler", without_callback, theory("k_euler", {})),
        originals.Original(
            "diffusers", "PNDMScheduler", find_class("PNDMScheduler"), theory("plms", {})
        ),
    ]
    results = [examine(entry) for entry in entries]
    page = report_page(results, 1.0)
    assert "| `own` euler | passes | passes | 1.00 |" in page
    assert "### last_step_fails" in page and "### PNDMScheduler, from the middle" in page
    assert "With 20 steps, begun at the 7th (strength 0.7): 0." in page
    monkeypatch.setattr("minisd.cli.laboratory.originals", lambda: entries[1:2])
    path = tmp_path / "report.md"
    for _ in range(2):  # the second replaces the first
        assert main(["lab", "--report", str(path)]) == 0
    path.write_text("mine")
    assert main(["lab", "--report", str(path)]) == 0
    assert path.read_text() == "mine" and (tmp_path / "report-2.md").exists()
    assert main(["lab", "--report", "page.txt"]) == 2
    assert "should end in .md" in capsys.readouterr().err


def test_every_original_has_a_theory():
    for name, twin in originals.K_DIFFUSION.items():
        assert theory(twin, {}).order in (1, 2, 4), name
    for name, (twin, options) in originals.DIFFUSERS.items():
        assert not twin or theory(twin, options).order, name
    assert theory("uni_pc", {"order": 2}).order == 3


def test_exact_data_in_img2img():
    """An adapted scheduler in the real img2img: it finds the only picture that there is."""
    point = Mixture(((1.0, 0.0, 0.0),))
    x0 = torch.zeros(1, 4, 8, 8)
    sampler = adapted(find_class("DPMSolverMultistepScheduler"))
    settings = {"sampler": sampler, "steps": 6, "strength": 0.5, "seed": 1, "guidance": 1.0}
    assert minisd.img2img(as_sd(point), "", x0, **settings).latent.abs().max() < 1e-5
