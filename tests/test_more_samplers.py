"""Samplers, schedules, guidance rules and Brownian paths beyond the core's.

Beside values from the original programs (tests/golden/README.md) and beside diffusers.
"""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import minisd
from minisd import more_samplers
from minisd.cli.main import main
from minisd.guidance import Guided
from minisd.lab.certificate import certify, theory_of
from minisd.lab.exact import Mixture, as_sd
from minisd.lab.subject import HIGH, LOW, MIXTURE, OneText, latent, rms
from minisd.more_samplers.brownian import BrownianPath, on_brownian_path
from minisd.more_samplers.guidance_rules import (
    GUIDANCE_RULES,
    apg,
    cfg_zero_star,
    dynamic_thresholding,
    guidance_rule,
    interval,
    plain,
    rescale,
)
from minisd.more_samplers.schedules import align_your_steps_a1111, beta_quantiles
from minisd.samplers import FACTS, SAMPLERS, k_dpmpp_2, k_euler, k_heun
from minisd.schedule import SCHEDULES, karras, levels_of, model

from .conftest import golden

slow = pytest.mark.slow
NAMES = [name for name in more_samplers.SAMPLERS if name not in ("k_lms_guarded", "dpmpp_2m")]
STOCHASTIC = ("dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "er_sde", "lcm", "restart")
VALUES, METADATA = golden("more_samplers")
CASES = json.loads(METADATA["cases"])


def final(sampler, x: Tensor, sigmas: list[float], predict_eps=MIXTURE, **options) -> Tensor:
    *_, last = sampler(predict_eps, x, sigmas, **options)
    return last.x_next


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- samplers beside the original programs -------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
def test_whole_runs_are_those_of_the_original_programs(case, tiny):
    """The small network, guided, with that program's levels, timesteps and noise."""
    facts = CASES[case]
    program = case.split(".")[0]
    states = torch.cat([VALUES[f"{program}.uncond"], VALUES[f"{program}.context"]])
    timesteps = iter(facts["t"])

    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        x_in = (x / (sigma**2 + 1) ** 0.5).repeat(2, 1, 1, 1)
        eps_uncond, eps_cond = tiny.unet(x_in, torch.full((2,), next(timesteps)), states).chunk(2)
        return eps_uncond + facts["guidance"] * (eps_cond - eps_uncond)

    options = dict(facts["options"])
    if facts["path"]:
        options["generator"] = BrownianPath(*facts["path"])
    elif f"{case}.noise" in VALUES:
        draws = iter(VALUES[f"{case}.noise"].split(1))
        options["generator"] = lambda x, sigma, sigma_next: next(draws)
    originals = VALUES[f"{case}.x"].split(1)  # all states, or the first and the last
    steps = list(SAMPLERS[facts["sampler"]](predict_eps, originals[0], facts["sigmas"], **options))
    states = [step.x_next for step in (steps if len(originals) > 2 else steps[-1:])]
    assert len(states) == len(originals) - 1
    for x, original in zip(states, originals[1:], strict=True):
        assert (x - original).abs().max() < 2e-5 * original.abs().max()
    assert next(timesteps, None) is None


@pytest.mark.parametrize("case", [name for name in VALUES if name.startswith("k_diffusion.")])
def test_float64_runs_are_those_of_k_diffusion(case):
    """`k_diffusion.SCHEDULE.NAME`, then the options; noise from a generator of seed 7."""
    schedule, name, *settings = case.removeprefix("k_diffusion.").replace("=0.", "=0,").split(".")
    sigmas = {"karras": karras(8), "model": model(10)[4:]}[schedule]
    options = {}
    for setting in settings:
        option, value = setting.replace(",", ".").split("=")
        options[option] = float(value) if value[0].isdigit() else value
    if "sde" in name:
        options["generator"] = rng()
    x = final(SAMPLERS[name], latent(sigmas[0], size=4), sigmas, **options)
    assert (x - VALUES[case]).abs().max() < 1e-12


SCHEDULERS = [
    *[("uni_pc", order, variant, low) for order in (1, 2, 3) for variant in ("bh1", "bh2")
      for low in (True, False)],
    *[("deis", order, "logrho", False) for order in (1, 2, 3)],
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize(("name", "order", "variant", "lower_order_final"), SCHEDULERS)
def test_float64_runs_are_those_of_diffusers(name, order, variant, lower_order_final):
    """From noise and from the middle, down to the lowest level of training."""
    from diffusers import DEISMultistepScheduler, UniPCMultistepScheduler

    schedulers = {"uni_pc": UniPCMultistepScheduler, "deis": DEISMultistepScheduler}
    settings = {"solver_order": order, "lower_order_final": lower_order_final}
    options = {"order": order}
    if name == "uni_pc":
        settings["solver_type"] = variant
        options |= {"variant": variant, "lower_order_final": lower_order_final}
    torch.set_default_dtype(torch.float64)  # its coefficients are of the default dtype
    try:
        for sigmas in (karras(8)[:-1], model(10)[4:-1]):
            scheduler = schedulers[name](**settings)
            scheduler.set_timesteps(len(sigmas) - 1)
            scheduler.sigmas = torch.tensor(sigmas)
            x = latent(sigmas[0], size=4)
            y = x / (1 + sigmas[0] ** 2) ** 0.5  # diffusers scales x to variance 1
            for sigma, t in zip(sigmas, scheduler.timesteps):
                y = scheduler.step(MIXTURE(y * (1 + sigma**2) ** 0.5, sigma), t, y).prev_sample
            y = y * (1 + sigmas[-1] ** 2) ** 0.5
            assert (final(SAMPLERS[name], x, sigmas, **options) - y).abs().max() < 1e-12
    finally:
        torch.set_default_dtype(torch.float32)


# ---- samplers beside each other ------------------------------------------------------------------

TWINS = [
    ("dpmpp_2m", {}, k_dpmpp_2),
    ("dpmpp_2m_sde", {"eta": 0.0}, k_dpmpp_2),
    ("dpmpp_2m_sde", {"eta": 0.0, "solver": "heun"}, SAMPLERS["res_multistep"]),
    ("dpmpp_sde", {"eta": 0.0}, partial(SAMPLERS["k_dpmpp_2_a"], eta=0.0)),
    ("uni_pc_bh2", {"order": 2}, partial(SAMPLERS["uni_pc"], order=2, variant="bh2")),
    ("deis", {"order": 1}, k_euler),
    ("ipndm", {"max_order": 1}, k_euler),
    ("euler_ge", {"gamma": 1.0}, k_euler),
    ("er_sde", {"stages": 1, "eta": 0.0}, k_euler),
    ("restart", {"times": 0}, k_heun),
]


@pytest.mark.parametrize(("name", "options", "twin"), TWINS)
def test_special_cases_are_other_samplers(name, options, twin):
    for sigmas in (karras(12), model(10)[4:]):
        x = latent(sigmas[0], size=4)
        difference = final(SAMPLERS[name], x, sigmas, **options) - final(twin, x, sigmas)
        assert difference.abs().max() < 1e-12


def test_one_step_of_each_formula():
    """At two levels of 1 and 1/2, and a slope that is x itself: every number can be checked."""
    x, sigmas = torch.ones(1, 4, 2, 2, dtype=torch.float64), [2.0, 1.0, 0.5]

    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        return x / 4

    # Euler: 1 + (1 - 2) / 4 = 3/4. The second slopes are 3/16, the first were 1/4.
    first, second = 1 / 4, 3 / 16
    euler_ge = 3 / 4 - 1 / 2 * (2 * second - first)
    ipndm = 3 / 4 - 1 / 2 * (3 / 2 * second - 1 / 2 * first)
    assert final(SAMPLERS["euler_ge"], x, sigmas, predict_eps)[0, 0, 0, 0] == pytest.approx(
        euler_ge
    )
    assert final(SAMPLERS["ipndm"], x, sigmas, predict_eps)[0, 0, 0, 0] == pytest.approx(ipndm)
    noise = [torch.randn(x.shape, generator=g) for g in [rng()] for _ in range(2)]
    x0 = x - 2 * predict_eps(x, 2.0)
    x1 = x0 + 1.0 * noise[0]
    expected = x1 - 1.0 * predict_eps(x1, 1.0) + 0.5 * noise[1]
    assert torch.equal(final(SAMPLERS["lcm"], x, sigmas, predict_eps, generator=rng()), expected)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_er_sde_leaves_the_noise_that_the_next_level_names(eta):
    """Its r and noise satisfy r^2 sigma^2 + up^2 = sigma_next^2; eta 0 keeps the ODE's r."""
    point = Mixture(((1.0, 0.0, 0.0),))
    x = latent(2.0, std=0.0, size=64)
    x_next = final(SAMPLERS["er_sde"], x, [2.0, 1.0], point, eta=eta, generator=rng())
    assert rms(x_next) == pytest.approx(1.0, rel=0.02)
    ratio = (x_next * x).mean() / (x * x).mean()
    phi = [s * (math.exp(s**0.3) + 10) ** eta for s in (1.0, 2.0)]
    assert ratio.item() == pytest.approx(phi[0] / phi[1], abs=0.02)


def test_restart_repeats_the_steps_between_its_levels():
    sigmas = karras(20)
    inside = [sigma for sigma in sigmas if 0.1 <= sigma <= 2.0]
    levels: list[float] = []

    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        levels.append(sigma)
        return MIXTURE(x, sigma)

    x = latent(HIGH, size=4)
    steps = list(SAMPLERS["restart"](predict_eps, x, sigmas, times=2, generator=rng()))
    assert [(step.sigma, step.sigma_next) for step in steps] == list(zip(sigmas, sigmas[1:]))
    assert levels.count(inside[0]) == 2 + 2 * 1 and levels.count(inside[1]) == 2 + 2 * 2
    with pytest.raises(ValueError, match="0 < low < high"):
        next(SAMPLERS["restart"](MIXTURE, x, sigmas, low=3.0))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samplers_that_draw_noise_need_a_generator(name):
    with pytest.raises(ValueError, match="generator"):
        next(SAMPLERS[name](MIXTURE, latent(2.0), [2.0, 1.0]))


WRONG = [
    ("uni_pc", {"order": 4}),
    ("uni_pc", {"variant": "bh3"}),
    ("deis", {"order": 0}),
    ("ipndm", {"max_order": 5}),
    ("dpmpp_2m_sde", {"solver": "euler", "generator": rng()}),
    ("er_sde", {"stages": 4, "generator": rng()}),
]


@pytest.mark.parametrize(("name", "options"), WRONG)
def test_wrong_options_are_named(name, options):
    value = next(iter(options.values()))
    with pytest.raises(ValueError, match=str(value)):
        next(SAMPLERS[name](MIXTURE, latent(2.0), [2.0, 1.0], **options))


# ---- certificates --------------------------------------------------------------------------------

VARIANTS = [  # test_lab.py has those without options
    *[("uni_pc", {"order": order, "variant": v}) for order in (1, 2, 3) for v in ("bh1", "bh2")],
    *[("deis", {"order": order}) for order in (1, 2, 4)],
    *[(name, {"eta": 0.0}) for name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "er_sde")],
    ("dpmpp_2m_sde", {"solver": "heun"}),
    ("dpmpp_2m_sde", {"eta": 0.5}),
    ("er_sde", {"stages": 2}),
    ("ddim_cfg_pp", {"eta": 1.0}),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [VARIANTS[0], *[pytest.param(*variant, marks=slow) for variant in VARIANTS[1:]]],
)
def test_certificates_with_their_theory(name, options):
    """From noise and from the middle: the certificate's schedules start at both."""
    certificate = certify(partial(SAMPLERS[name], **options), name, theory_of(name, options))
    assert certificate.passed, certificate.card()


def test_published_orders():
    """UniPC has order + 1. The 3M formula has order 2: its phi_3 term is half of the right one."""
    assert theory_of("uni_pc").order == 4
    assert theory_of("uni_pc", {"order": 1}).order == 2
    assert theory_of("dpmpp_3m_sde").order == 2
    assert theory_of("dpmpp_sde").weak_order == 1
    assert theory_of("lcm").weak_order == 0


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_eta_1_is_ddpms_noise(name):
    point = Mixture(((1.0, 0.0, 0.0),))
    zero = torch.zeros(1, 4, 8, 8, dtype=torch.float64)
    x_next = final(SAMPLERS[name], zero, [2.0, 1.0], point, generator=rng())
    draw = torch.randn(zero.shape, generator=rng()).double()
    assert (x_next - (1 - 1 / 4) ** 0.5 * draw).abs().max() < 1e-12


# ---- CFG++ ---------------------------------------------------------------------------------------


def two_texts(guidance: float) -> Guided:
    """An exact network for two texts: MIXTURE without the prompt, one normal with it."""
    data = {0.0: MIXTURE, 1.0: Mixture(((1.0, 0.8, 0.2),))}

    def unet(x_in: Tensor, t: Tensor, context: Tensor) -> Tensor:
        sigma = minisd.schedule.t_to_sigma(t[0].item())
        xs = x_in * (sigma**2 + 1) ** 0.5
        predictions = [data[text.item()](x[None], sigma) for x, text in zip(xs, context[:, 0, 0])]
        return torch.cat(predictions)

    ones = torch.ones(1, 1, 1)
    return Guided(unet, ones, 0 * ones, guidance)


@pytest.mark.parametrize("name", ["euler_cfg_pp", "ddim_cfg_pp"])
@pytest.mark.parametrize("guidance", [0.6, 1.0])
def test_cfg_pp_is_the_papers_algorithm(name, guidance):
    """Algorithm 2 in the paper's own variables, y = sqrt(abar) x and abar = 1 / (1 + sigma^2)."""
    predict_eps, sigmas = two_texts(guidance), karras(6)
    x = latent(HIGH, size=4)
    y = x / (1 + HIGH**2) ** 0.5
    for step in SAMPLERS[name](predict_eps, x, sigmas):
        abar, abar_next = 1 / (1 + step.sigma**2), 1 / (1 + step.sigma_next**2)
        eps_uncond, eps_cond = predict_eps.both(y / abar**0.5, step.sigma)
        eps = eps_uncond + guidance * (eps_cond - eps_uncond)
        x0 = (y - (1 - abar) ** 0.5 * eps) / abar**0.5
        y = abar_next**0.5 * x0 + (1 - abar_next) ** 0.5 * eps_uncond
        assert (step.x_next * abar_next**0.5 - y).abs().max() < 1e-9
        assert (step.x0 - x0).abs().max() < 1e-9


def test_cfg_pp_needs_both_predictions():
    with pytest.raises(ValueError, match="needs the predictions with and without the prompt"):
        next(SAMPLERS["euler_cfg_pp"](MIXTURE, latent(2.0), [2.0, 1.0]))
    with pytest.warns(UserWarning, match="guidance of 0 to 1"):
        next(SAMPLERS["euler_cfg_pp"](two_texts(7.5), latent(2.0), [2.0, 1.0]))


def test_cfg_pp_in_inpainting_keeps_what_is_kept(tiny):
    """Both predictions are the true noise there."""
    from minisd.inpaint import Keeping

    x0, keep = torch.zeros(1, 4, 8, 8), torch.ones(1, 1, 8, 8)
    keeping = Keeping(two_texts(0.6), x0, keep)
    x = final(SAMPLERS["euler_cfg_pp"], latent(HIGH).float(), karras(5), keeping)
    assert x.abs().max() < 1e-5


# ---- schedules -----------------------------------------------------------------------------------

HERE = {
    "a1.beta": "beta_a1111",
    "a1.kl_optimal": "kl_optimal_a1111",
    "a1.ddim": "ddim_uniform",
}


@pytest.mark.parametrize("case", [name for name in VALUES if ".schedule." in name])
def test_schedules_are_those_of_the_original_programs(case):
    program, _, name, steps = case.split(".")
    schedule = SCHEDULES[HERE.get(f"{program}.{name}", name)]
    if (program, name) == ("a1", "align_your_steps"):
        schedule = align_your_steps_a1111
    sigmas = schedule(int(steps))
    assert sigmas == pytest.approx(VALUES[case].tolist(), rel=2e-5, abs=0)


@pytest.mark.parametrize("name", more_samplers.SCHEDULES)
def test_schedules_have_as_many_steps_as_asked(name):
    for steps in (1, 2, 3, 7, 10, 33, 50, 100, 333):
        levels = levels_of(SCHEDULES[name], steps)  # it checks the count, and that they fall
        assert LOW < levels[0] <= 14.615 and levels[-1] < 0.03
    with pytest.raises(ValueError, match="steps"):
        SCHEDULES[name](0)


def test_align_your_steps_has_the_papers_levels():
    text = "14.615 6.475 3.861 2.697 1.886 1.396 .963 .652 .399 .152 .029"
    levels = [float(word) for word in text.split()]
    assert SCHEDULES["align_your_steps"](10) == pytest.approx(levels, abs=5e-4)
    assert SCHEDULES["align_your_steps"](20)[::2] == pytest.approx(levels, abs=5e-4)


def test_trailing_is_diffusers_spacing():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for steps in (7, 10, 20, 30, 33):
        scheduler.set_timesteps(steps)
        sigmas = [minisd.schedule.t_to_sigma(t) for t in scheduler.timesteps.tolist()]
        assert SCHEDULES["trailing"](steps) == pytest.approx([*sigmas, 0.0])


def test_beta_quantiles_are_scipys():
    from scipy import stats

    shares = np.linspace(0, 1, 101)
    for alpha in (0.6, 1.0, 2.5):
        expected = stats.beta.ppf(shares, alpha, alpha)
        assert beta_quantiles(shares, alpha) == pytest.approx(expected, abs=1e-12)


def test_discarding_the_next_to_last_level():
    assert SCHEDULES["karras_discard"](10) == [*karras(11)[:10], 0.0]


# ---- guidance rules ------------------------------------------------------------------------------


def predictions(sigma: float, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x, and the exact eps for two kinds of Gaussian data: means 0 and 0.8, stds 1 and 0.5."""
    x = torch.cat([latent(sigma), 2 * latent(sigma).flip(-1)])[:batch]
    return x, Mixture(((1.0, 0.0, 1.0),))(x, sigma), Mixture(((1.0, 0.8, 0.5),))(x, sigma)


@pytest.mark.parametrize("name", GUIDANCE_RULES)
@pytest.mark.parametrize("sigma", [LOW, 1.0, HIGH])
def test_rules_without_guidance_and_without_a_difference(name, sigma):
    """Scale 1 is eps_cond. If both texts predict the same, every rule answers that."""
    x, eps_uncond, eps_cond = predictions(sigma)
    rule = GUIDANCE_RULES[name](1.0)
    assert (rule(eps_uncond, eps_cond, x, sigma) - eps_cond).abs().max() < 1e-12 / sigma
    rule = GUIDANCE_RULES[name](7.5)
    assert (rule(eps_cond, eps_cond, x, sigma) - eps_cond).abs().max() < 1e-12 / sigma


@pytest.mark.parametrize("name", GUIDANCE_RULES)
def test_rules_treat_each_picture_of_a_batch_by_itself(name):
    x, eps_uncond, eps_cond = predictions(2.0, batch=2)
    rule = GUIDANCE_RULES[name](7.5)
    batch = rule(eps_uncond, eps_cond, x, 2.0)
    for i in range(2):
        alone = rule(eps_uncond[i : i + 1], eps_cond[i : i + 1], x[i : i + 1], 2.0)
        assert (batch[i : i + 1] - alone).abs().max() < 1e-12


def test_plain_and_interval():
    x, eps_uncond, eps_cond = predictions(2.0)
    guided = eps_uncond + 3 * (eps_cond - eps_uncond)
    assert torch.equal(plain(3)(eps_uncond, eps_cond, x, 2.0), guided)
    assert torch.equal(interval(3)(eps_uncond, eps_cond, x, 2.0), guided)
    for sigma in (0.28, 5.43):
        assert torch.equal(interval(3)(eps_uncond, eps_cond, x, sigma), eps_cond)


def test_rescale_is_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    x, eps_uncond, eps_cond = predictions(2.0, batch=2)
    guided = eps_uncond + 7.5 * (eps_cond - eps_uncond)
    for phi in (0.0, 0.7, 1.0):
        expected = rescale_noise_cfg(guided, eps_cond, phi)
        eps = rescale(7.5, phi)(eps_uncond, eps_cond, x, 2.0)
        assert (eps - expected).abs().max() < 1e-12
    assert eps.std((1, 2, 3)) == pytest.approx(eps_cond.std((1, 2, 3)))  # phi 1


def test_dynamic_thresholding_is_imagens():
    """With the limit 1: diffusers' _threshold_sample, without its own upper limit."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(dynamic_thresholding_ratio=0.9, sample_max_value=1e9)
    x, eps_uncond, eps_cond = predictions(2.0, batch=2)
    guided = eps_uncond + 7.5 * (eps_cond - eps_uncond)
    expected = scheduler._threshold_sample(x - 2.0 * guided)
    eps = dynamic_thresholding(7.5, 0.9, limit=1.0)(eps_uncond, eps_cond, x, 2.0)
    assert (x - 2.0 * eps - expected).abs().max() < 1e-12


def test_dynamic_thresholding_keeps_the_reach_of_the_prompts_own_prediction():
    x, eps_uncond, eps_cond = predictions(2.0)
    x0 = x - 2.0 * dynamic_thresholding(15.0)(eps_uncond, eps_cond, x, 2.0)
    reach = torch.quantile((x - 2.0 * eps_cond).abs().flatten(), 0.995)
    plain_x0 = x - 2.0 * plain(15.0)(eps_uncond, eps_cond, x, 2.0)
    assert plain_x0.abs().max() > 2 * reach
    assert x0.abs().max().item() == pytest.approx(reach.item())


def test_apg_on_two_normals():
    """What it adds to D_cond is orthogonal to it, and the rest of plain guidance."""
    x, eps_uncond, eps_cond = predictions(2.0)
    x0_cond = (x - 2.0 * eps_cond).flatten()
    x0_plain = (x - 2.0 * plain(7.5)(eps_uncond, eps_cond, x, 2.0)).flatten()
    x0 = (x - 2.0 * apg(7.5)(eps_uncond, eps_cond, x, 2.0)).flatten()
    assert abs((x0 - x0_cond) @ x0_cond) < 1e-9
    left_out = x0_plain - x0
    assert (left_out - (left_out @ x0_cond) / (x0_cond @ x0_cond) * x0_cond).abs().max() < 1e-9
    assert rms(left_out) > 0.1
    x0 = (x - 2.0 * apg(7.5, eta=1.0)(eps_uncond, eps_cond, x, 2.0)).flatten()
    assert (x0 - x0_plain).abs().max() < 1e-12
    x0 = (x - 2.0 * apg(7.5, eta=1.0, limit=1.5)(eps_uncond, eps_cond, x, 2.0)).flatten()
    assert (x0 - x0_cond).norm().item() == pytest.approx(6.5 * 1.5)


def test_cfg_zero_star_on_two_normals():
    """The scaled eps_uncond is nearer to eps_cond than any other multiple of it."""
    x, eps_uncond, eps_cond = predictions(2.0)
    nearest = cfg_zero_star(0.0)(eps_uncond, eps_cond, x, 2.0)
    share = (nearest / eps_uncond).mean().item()
    assert (nearest - share * eps_uncond).abs().max() < 1e-12
    distances = [rms(share * (1 + d) * eps_uncond - eps_cond) for d in (-0.01, 0.0, 0.01)]
    assert distances[1] == min(distances)
    eps = cfg_zero_star(7.5)(eps_uncond, eps_cond, x, 2.0)
    assert (eps - (nearest + 7.5 * (eps_cond - nearest))).abs().max() < 1e-12


def test_rules_by_name(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "def half(eps_uncond, eps_cond, x, sigma):\n    return (eps_uncond + eps_cond) / 2"
    )
    x, eps_uncond, eps_cond = predictions(2.0)
    half = guidance_rule(f"{path}:half", 7.5)
    assert torch.equal(half(eps_uncond, eps_cond, x, 2.0), (eps_uncond + eps_cond) / 2)
    named = guidance_rule("cfg_zero_star", 3.0)(eps_uncond, eps_cond, x, 2.0)
    assert torch.equal(named, cfg_zero_star(3.0)(eps_uncond, eps_cond, x, 2.0))
    with pytest.raises(
        ValueError, match="there is no guidance rule named 'agp'; choose from plain"
    ):
        guidance_rule("agp", 7.5)


def test_a_rule_draws_a_picture(tiny):
    x0 = torch.zeros(1, 4, 8, 8)
    settings = {"steps": 3, "seed": 1, "strength": 1.0}
    pictures = [
        minisd.img2img(tiny, "fire", x0, guidance=guidance, **settings).latent
        for guidance in (7.5, plain(7.5), rescale(7.5))
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_rules_on_the_command_line(tmp_path, capsys, tiny_path):
    """The rule is in the picture's recipe, which draws the same picture again."""
    words = ["-s", "2", "-S", "1", "-C", "5", "-W", "64", "-H", "64", "--model", str(tiny_path)]
    for rule, folder in (("apg", "a"), ("plain", "b"), (None, "c")):
        switch = ["--guidance-rule", rule] if rule else []
        assert main(["txt2img", "fire", *words, *switch, "-o", str(tmp_path / folder)]) == 0
    pixels = {}
    for folder in "abc":
        (path,) = (tmp_path / folder).glob("*.png")
        pixels[folder] = Image.open(path).tobytes()
    assert pixels["b"] == pixels["c"] != pixels["a"]
    (path,) = (tmp_path / "a").glob("*.png")
    recipe = minisd.read_recipe(path)
    assert (recipe.guidance_rule, recipe.guidance) == ("apg", 5.0)
    assert "--guidance-rule apg" in recipe.command()
    assert recipe.draw(minisd.load(tiny_path)).image.tobytes() == pixels["a"]
    assert main(["txt2img", "fire", *words, "--guidance-rule", "agp"]) == 2
    assert "there is no guidance rule named 'agp'; choose from plain" in capsys.readouterr().err


def test_a_picture_names_no_rule_to_run():
    from minisd.recipes.metadata import usable

    kept, notes = usable({"prompt": "x", "guidance_rule": "mine.py:rule"})
    assert "guidance_rule" not in kept and "mine.py:rule, which is not run" in notes[0]
    kept, notes = usable({"prompt": "x", "guidance_rule": "secret"})
    assert "guidance_rule" not in kept and "the guidance rule secret is not here" in notes[0]


# ---- Brownian paths ------------------------------------------------------------------------------


def test_parts_of_a_path_add_up():
    """W(a) - W(c) = (W(a) - W(b)) + (W(b) - W(c)), and each part has its length as variance."""
    path, x = BrownianPath(5), torch.zeros(1, 4, 32, 32)
    for a, b, c in ((14.0, 3.0, 0.5), (2.0, 1.9, 1.5), (0.05, 0.04, LOW)):
        full = path(x, a, c) * (a - c) ** 0.5
        parts = path(x, a, b) * (a - b) ** 0.5 + path(x, b, c) * (b - c) ** 0.5
        assert (full - parts).abs().max() < 1e-5
        assert rms(path(x, a, c)) == pytest.approx(1.0, abs=0.05)
    correlation = (path(x, 14.0, 3.0) * path(x, 3.0, 0.5)).mean().item()
    assert abs(correlation) < 0.05


def test_a_path_is_a_function_of_its_seed():
    x = torch.zeros(2, 4, 4, 4)
    both = BrownianPath([5, 6])(x, 2.0, 1.0)
    assert torch.equal(both[:1], BrownianPath(5)(x[:1], 2.0, 1.0))
    assert torch.equal(both[1:], BrownianPath(6)(x[:1], 2.0, 1.0))
    assert not torch.equal(both[0], both[1])


def test_a_path_refuses_what_it_does_not_span():
    path = BrownianPath(5)
    for levels in ((20.0, 1.0), (1.0, 0.001), (1.0, 2.0), (0.0, 0.0)):
        with pytest.raises(ValueError, match="spans"):
            path(torch.zeros(1, 4, 4, 4), *levels)
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        path(torch.zeros(2, 4, 4, 4), 2.0, 1.0)
    with pytest.raises(ValueError, match="generator"):
        on_brownian_path(k_euler)


PATH_SAMPLERS = ["k_euler_a", "k_dpmpp_2_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "er_sde"]


def distances(name: str) -> list[float]:
    """Between the results of 20 and 40, 40 and 80, 80 and 160 steps, on one path."""
    sampler = on_brownian_path(SAMPLERS[name])
    results = [
        final(sampler, latent(HIGH, size=32), karras(steps), generator=rng(3))
        for steps in (20, 40, 80, 160)
    ]
    return [rms(a - b) for a, b in zip(results, results[1:])]


@pytest.mark.slow
@pytest.mark.parametrize("name", PATH_SAMPLERS)
def test_more_steps_settle_on_a_path(name):
    gaps = distances(name)
    assert gaps[0] > 1.2 * gaps[1] and gaps[1] > 1.2 * gaps[2]


def test_more_steps_do_not_settle_with_new_draws():
    sampler = SAMPLERS["dpmpp_2m_sde"]
    results = [
        final(sampler, latent(HIGH, size=32), karras(steps), generator=rng(3))
        for steps in (20, 40, 80)
    ]
    gaps = [rms(a - b) for a, b in zip(results, results[1:])]
    assert min(gaps) > 5 * distances("dpmpp_2m_sde")[2]


def test_pictures_on_a_path(tiny):
    """img2img gives the path the seeds of its pictures: a batch is the same as each alone."""
    sampler = on_brownian_path(SAMPLERS["dpmpp_2m_sde"])
    x0 = torch.zeros(1, 4, 8, 8)
    settings = {"steps": 4, "sampler": sampler, "schedule": "karras"}
    batch = minisd.img2img(tiny, "fire", x0, seed=[5, 6], **settings).latent
    alone = minisd.img2img(tiny, "fire", x0, seed=6, **settings).latent
    assert (batch[1:] - alone).abs().max() < 1e-4
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        list(sampler(MIXTURE, latent(2.0), [2.0, 1.0]))


# ---- the tables ----------------------------------------------------------------------------------


def test_every_sampler_has_facts():
    assert list(more_samplers.SAMPLERS) == list(more_samplers.FACTS)
    assert set(SAMPLERS) == set(FACTS)


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_draws_in_img2img(name):
    """An exact network that knows only the picture 0: strength 0.5 must give it back."""
    point = Mixture(((1.0, 0.0, 0.0),))
    x0 = torch.zeros(1, 4, 8, 8)
    result = minisd.img2img(
        as_sd(point), "", x0, sampler=name, steps=6, strength=0.5, seed=1, guidance=1.0
    )
    assert result.latent.abs().max() < 1e-5


def test_one_text_stands_for_two():
    predict_eps = OneText(MIXTURE)
    x = latent(2.0)
    eps_uncond, eps_cond = predict_eps.both(x, 2.0)
    assert torch.equal(predict_eps.guide(eps_uncond, eps_cond, x, 2.0), predict_eps(x, 2.0))
