"""Other programs' dialects, against the runs of these programs (tests/golden/README.md).

Tolerances: every step within 5e-5 of the largest value. Float32 rounding alone makes 3e-7 to 9e-6,
because the originals compute attention in another order; a wrong rule makes 1e-3 and more.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

import minisd
from minisd.dialects import PROGRAMS, a1111_prompts, comfyui_prompts, from_settings, levels
from minisd.dialects.drawing import rounded_pictures
from minisd.dialects.noise import CARDS, Stream, cuda_normals, first_draw
from minisd.images import to_pils
from minisd.more_samplers.brownian import BrownianPath

from .conftest import GOLDEN

FILE = safe_open(GOLDEN / "dialects.safetensors", "pt")
SETTINGS, ALIASES = (json.loads(FILE.metadata()[key]) for key in ("settings", "aliases"))
NAMES = set(FILE.keys())
TABLES = ("parse_attention", "prompt_schedules_10_steps", "multicond", "token_weights")
CASES = [f"{p}.{case}" for p in SETTINGS for case in SETTINGS[p] if case not in TABLES]
STEP, TEXT = 5e-5, 2e-5


def tensor(name):
    """A tensor of the file; None if it has no such."""
    name = ALIASES.get(name, name)
    return FILE.get_tensor(name) if name in NAMES else None


def recipe_of(case):
    program, name = case.split(".", 1)
    recipe = from_settings(program, SETTINGS[program][name])
    if name == "ddim.cuda_seed42":  # its settings do not say so, but its name does
        recipe = replace(recipe, options={**recipe.options, "noise_source": "GPU"})
    return recipe


def course_of(case, recipe, mask=None):
    recipe = recipe if mask is None else replace(recipe, mask="mask")
    return PROGRAMS[recipe.dialect].course(recipe, recipe.image is not None)


def is_scaled(case, course):
    """Whether the program holds states of variance 1."""
    return course.scaled_back or (case.startswith("comfy") and "uni_pc" in case)


def init_latent(case, course, x):
    """The clean latent that the program encoded, scaled by 0.18215.

    diffusers' is not in the file: it follows from the first state and the noise; or, where the
    run starts from noise alone, from the kept part of the last state.
    """
    latent = tensor(f"{case}.init_latent")
    if latent is not None:
        return latent * (0.18215 if case.startswith("comfy") else 1)
    if course.image_gain == 0:
        return x[-1]
    scale = (1 + course.sigmas[0] ** 2) ** 0.5 if course.scaled_back else 1
    return (scale * x[0] - course.gain * tensor(f"{case}.draw2")) / course.image_gain


def worst(result, expected):
    """The largest difference, as a share of the largest value."""
    assert result.shape == expected.shape
    return ((result - expected).abs().max() / expected.abs().max()).item()


def test_there_are_73_cases_of_five_programs():
    assert len(CASES) == 73 and set(SETTINGS) == {"a1", "comfy", "diffusers", "compvis", "invokeai"}


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_the_original(case, tiny):
    recipe, mask = recipe_of(case), tensor(f"{case}.mask")
    course = course_of(case, recipe, mask)
    x = tensor(f"{case}.x")
    x = x[:, None] if x.ndim == 4 else x  # (steps + 1, B, 4, h, w)
    image = init_latent(case, course, x) if recipe.image else None
    events, timesteps = [], []
    hook = tiny.unet.register_forward_pre_hook(lambda _, args: timesteps.append(float(args[1][0])))
    result = recipe.draw(tiny, image, mask, observe=events.append)
    hook.remove()

    steps = [event for event in events if isinstance(event, minisd.Step)]
    states = [(step.x, step.sigma) for step in steps]
    states.append((steps[-1].x_next, steps[-1].sigma_next))
    scaled = is_scaled(case, course)
    states = [y / (1 + sigma**2) ** 0.5 if scaled else y for y, sigma in states]
    if case == "compvis.dpm_solver":  # the file has its first and last state only
        states = [states[0], states[-1]]
    if case.startswith("comfy") and "uni_pc" in case:
        # ComfyUI reports once after its last two steps; then the end, scaled back.
        states[-2] = states[-1]
    assert len(states) == len(x)
    for state, expected in zip(states, x, strict=True):
        assert worst(state, expected) < STEP

    (noised,) = [event for event in events if isinstance(event, minisd.Noised)]
    noise = tensor(f"{case}.noise")
    if noise is not None and course.draws.before == 0:
        assert worst(noised.noise, noise) <= (1e-6 if course.draws.source != "CPU" else 0)
    check_calls(case, timesteps, recipe, course)
    check_texts(case, recipe, tiny)
    check_picture(case, result, tiny)


def check_calls(case, timesteps, recipe, course):
    t_calls, calls = tensor(f"{case}.t_calls"), tensor(f"{case}.calls")
    if t_calls is not None:
        np.testing.assert_allclose(timesteps, t_calls, rtol=1e-6, atol=1e-3)
    if calls is not None:
        assert len(timesteps) == len(calls)
    sigmas = tensor(f"{case}.sigmas")
    if sigmas is not None:
        is_run = case.startswith("comfy") and "advanced" not in case
        listed = course.sigmas if is_run else course.levels
        if "uni_pc" in case:  # it goes down to 0.001 in place of 0
            listed = [*listed[:-1], 0.0]
        # In float32, as the programs compute them: to the last bit.
        assert listed == sigmas.tolist()


def check_texts(case, recipe, sd):
    texts = PROGRAMS[recipe.dialect].texts(recipe, sd)
    timelines = {"uncond": texts.uncond}
    if case.startswith("a1"):
        timelines |= {f"cond{j}.": part for j, (_, part) in enumerate(texts.parts)}
        assert torch.equal(torch.cat(texts.tokens).int(), tensor(f"{case}.tokens").int())
        schedules = [[weight, [end for end, _ in part]] for weight, part in texts.parts]
        assert schedules == SETTINGS["a1"][case[3:]]["schedules"]["cond"]
    else:
        assert len(texts.parts) == 1
        timelines["cond"] = texts.parts[0][1]
    for name, timeline in timelines.items():
        for i, (_, state) in enumerate(timeline):
            expected = tensor(f"{case}.{name}{i if case.startswith('a1') else ''}")
            if "pad" in case:  # the file has the states before padding
                expected = torch.cat([expected, state[:, expected.shape[1] :]], dim=1)
            assert worst(state, expected) < TEXT


def check_picture(case, result, sd):
    """The picture of the program's own latent has at most 10 values off by 1: those that lie on a
    border of rounding. The drawn latent's rounding moves a few dozen of 49,152 over such borders.
    """
    image = tensor(f"{case}.image").numpy().astype(int)
    image = image[None] if image.ndim == 3 else image
    latent = tensor(f"{case}.latent")
    drawn = np.stack([np.asarray(picture) for picture in result.images]).astype(int)
    assert abs(drawn - image).max() <= 1 and (drawn != image).sum() <= 40 * len(image)
    if latent is not None:
        scale = 0.18215 if case.startswith("comfy") else 1
        with torch.inference_mode():
            decoded = sd.vae.decode(scale * latent)
        pictures = rounded_pictures(decoded) if case.startswith("diff") else to_pils(decoded)
        values = np.stack([np.asarray(picture) for picture in pictures]).astype(int)
        assert abs(values - image).max() <= 1 and (values != image).sum() <= 10


# ---- levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dialect"), [("a1", "a1111"), ("comfy", "comfyui")])
def test_the_schedules_of_both_programs(name, dialect):
    """To the last bit, at 10 and 20 steps."""
    table = levels.table("float64" if name == "comfy" else "float32")
    module = {"a1": minisd.dialects.a1111, "comfy": minisd.dialects.comfyui}[name]
    expected = [key for key in NAMES if key.startswith(f"{name}.schedule.")]
    assert len(expected) == {"a1": 22, "comfy": 18}[name]
    for key in expected:
        _, _, schedule, n = key.split(".")
        assert module.SCHEDULES[schedule](table, int(n)) == tensor(key).tolist(), key


def test_the_tables_differ_in_their_last_digits():
    """The first level of each program's own table; minisd's is 0.0291671582 (float64)."""
    lows = {kind: levels.table(kind).low for kind in ("float32", "float64", "diffusers")}
    expected = {"float32": 0.0291675348, "float64": 0.0291671582, "diffusers": 0.0291675348}
    assert lows == pytest.approx(expected, rel=4e-8)  # a unit in the last place of float32
    assert levels.table("diffusers").high == pytest.approx(14.61464691, rel=1e-9)
    assert levels.table(downcast=True).low == pytest.approx(0.03125, rel=2e-3)


# ---- random numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 12345, 8589934597])
def test_the_emulation_of_cuda_draws_what_the_program_s_own_draws(seed):
    stream = Stream("NV", seed)
    for draw in range(3):
        expected = tensor(f"philox.seed{seed}.draw{draw}")
        assert torch.equal(stream.next(expected.shape), expected)


def test_draws_of_many_passes():
    tail = tensor("philox.seed42.n131072.threads43008.tail")
    draw = Stream("GPU", 42, "RTX 3060").next((131072,))
    assert torch.equal(draw[-len(tail) :], tail)
    draw = Stream("GPU", 43, "RTX A6000").next((49152,))
    assert torch.equal(draw[[0, 16384, 32768]], tensor("philox.seed43.n49152.at"))


# Printed by real GPUs, to four digits: pytorch's issues 79496, 97097, 158398.
PRINTS = [
    (10, (3,), 0, [-0.1029, 1.6810, -0.2708], "RTX 3090"),
    (42, (64, 2048), 2 * 2048, [1.1346, -0.6329, -0.9147], "RTX 3060"),
    (42, (64, 2048), 63 * 2048, [-1.2356, -0.4083, -0.4695], "RTX 3060"),
]


@pytest.mark.parametrize(("seed", "shape", "start", "values", "card"), PRINTS)
def test_numbers_that_gpus_printed(seed, shape, start, values, card):
    draw = Stream("GPU", seed, card).next(shape).flatten()
    np.testing.assert_allclose(draw[start : start + 3], values, atol=5.1e-5)


def test_draws_of_a_real_gpu():
    """An H100's torch.randn, two draws of each seed and shape, up to three passes. It computes in
    float32 with fast sines: 1e-5 at worst.
    """
    with safe_open(GOLDEN / "cuda_noise.safetensors", "pt") as file:
        threads = int(file.metadata()["threads_in_a_pass"])
        names, passes = set(file.keys()), set()
        assert threads == CARDS["H100 SXM"]
        for name in sorted(names):
            shape, _, rest = name.partition(".")
            if rest == "places" or not rest.replace(".", "").isdigit():
                continue
            seed, draw = map(int, rest.split("."))
            size = math.prod(map(int, shape.split("x")))
            values = file.get_tensor(name)
            places = torch.arange(size)
            if f"{shape}.places" in names:
                places = file.get_tensor(f"{shape}.places").long()
            used = min(-(-size // 256) * 256, threads)
            counted = -(-size // (4 * used))
            passes.add(counted)
            result = cuda_normals(seed, counted * (draw - 1), places.numpy(), used)
            assert abs(torch.from_numpy(result) - values.flatten()).max() < 1e-5, name
    assert passes == {1, 2, 3}


def test_the_noise_of_512x512_is_that_of_all_but_the_smallest_cards():
    shape = (1, 4, 64, 64)
    draws = {card: Stream("GPU", 7, card).next(shape) for card in CARDS}
    same = {card for card, draw in draws.items() if torch.equal(draw, draws["RTX 3090"])}
    assert set(CARDS) - same == {"GTX 1650"}
    larger = [Stream("GPU", 7, card).next((1, 4, 128, 128)) for card in ("T4", "RTX 3090")]
    assert not torch.equal(*larger)


BROWNIAN = [key[: -len(".brownian")] for key in sorted(NAMES) if key.endswith(".brownian")]


@pytest.mark.parametrize("case", BROWNIAN)
def test_the_brownian_tree(case):
    """torchsde's own, in float64 times; here to 1e-6."""
    recipe, spans = recipe_of(case), tensor(f"{case}.brownian_span")
    draws = course_of(case, recipe).draws
    source = draws.step_source or draws.source
    path = BrownianPath([recipe.seed], *draws.tree, first_draw(source))
    for (sigma, sigma_next), expected in zip(spans.tolist(), tensor(f"{case}.brownian")):
        noise = path(torch.zeros(1, *expected.shape), sigma, sigma_next)
        assert (noise[0] - expected).abs().max() < 1e-6


def test_an_unknown_card_is_named():
    with pytest.raises(ValueError, match="there is no card 'Voodoo 2'; choose from GTX 1650"):
        Stream("GPU", 1, "Voodoo 2")


# ---- prompts -------------------------------------------------------------------------------------


def test_a1111_s_attention():
    for text, pieces in SETTINGS["a1"]["parse_attention"].items():
        assert [list(piece) for piece in a1111_prompts.parse_attention(text)] == pieces, text


def test_a1111_s_editing():
    for text, entries in SETTINGS["a1"]["prompt_schedules_10_steps"].items():
        assert [list(entry) for entry in a1111_prompts.prompt_schedule(text, 10)] == entries, text


def test_a1111_s_and():
    for text, (((*parts,),), texts) in SETTINGS["a1"]["multicond"].items():
        cut = a1111_prompts.cut_and(text)
        assert [weight for _, weight in cut] == [weight for _, weight in parts], text
        # The program keeps a text once, where it occurs twice; blanks at the ends do not count.
        places = [place for place, _ in parts]
        assert [words.strip() for words, _ in cut] == [texts[i].strip() for i in places], text


def test_comfyui_s_weights():
    for text, pieces in SETTINGS["comfy"]["token_weights"].items():
        hidden = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
        assert [list(piece) for piece in comfyui_prompts.token_weights(hidden)] == pieces, text


def test_a_break_in_brackets_is_a_word_with_a_negative_weight(tiny):
    assert len(a1111_prompts.chunks_of(tiny, "a BREAK b")) == 2
    assert len(a1111_prompts.chunks_of(tiny, "(a BREAK b:1.2)")) == 1


def test_invokeai_s_two_syntaxes(tiny):
    """2.0 knows blends and brackets; 2.1 and later weights too, and .blend()."""
    old, new = "invokeai-2.0", "invokeai-2.2"

    def state(dialect, prompt):
        recipe = minisd.Recipe(prompt, dialect=dialect)
        return PROGRAMS[dialect].texts(recipe, tiny).parts[0][1][0][1]

    with torch.inference_mode():
        assert torch.equal(state(old, "a fire+"), tiny.text_states("a fire+"))
        assert not torch.equal(state(new, "a fire+"), tiny.text_states("a fire+"))
        blend = 2 / 3 * tiny.text_states("fire") + 1 / 3 * tiny.text_states("tree")
        for dialect, prompt in ((old, "fire:2 tree:1"), (new, '("fire", "tree").blend(2, 1)')):
            assert worst(state(dialect, prompt), blend) < 1e-6


# ---- the library itself --------------------------------------------------------------------------

# Combinations that the golden runs do not have: spacings, karras, other counts.
RUNS = [
    ("EulerDiscreteScheduler", "trailing", False, 7, None),
    ("EulerDiscreteScheduler", None, True, 10, 0.7),
    ("EulerAncestralDiscreteScheduler", "leading", False, 8, 0.55),
    ("LMSDiscreteScheduler", None, True, 10, 0.7),
    ("HeunDiscreteScheduler", "trailing", False, 7, None),
    ("DPMSolverMultistepScheduler", "leading", True, 25, 0.3),
    ("UniPCMultistepScheduler", "trailing", False, 8, 0.55),
    ("DDIMScheduler", "trailing", False, 10, 0.7),
    ("PNDMScheduler", None, False, 25, 0.3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "spacing", "karras", "steps", "strength"), RUNS)
def test_the_schedulers_of_diffusers(scheduler, spacing, karras, steps, strength):
    """Against the installed library, on a small network of one layer. Float32 makes 2e-6."""
    import diffusers

    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(3)) / 4

    def network(x, t):
        return 0.6 * torch.tanh(x.reshape(1, 16) @ mix).reshape(x.shape) + 0.1 * np.cos(t / 300) * x

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    config |= {"steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True}
    config = {**diffusers.PNDMScheduler(**config).config, "clip_sample": False}
    changes = {"timestep_spacing": spacing} if spacing else {}
    changes |= {"use_karras_sigmas": True} if karras else {}
    theirs = getattr(diffusers, scheduler).from_config(config, **changes)
    theirs.set_timesteps(steps)
    rng = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(1, 4, 2, 2, generator=rng) for _ in range(2))
    timesteps, x = theirs.timesteps, noise * theirs.init_noise_sigma
    if strength:
        skipped = (steps - int(steps * strength)) * theirs.order
        timesteps = timesteps[skipped:]
        if hasattr(theirs, "set_begin_index"):
            theirs.set_begin_index(skipped)
        x = theirs.add_noise(x0, noise, timesteps[:1])
    draws = {"generator": torch.Generator().manual_seed(5)} if "Ancestral" in scheduler else {}
    for t in timesteps:
        eps = network(theirs.scale_model_input(x, t), float(t))
        x = theirs.step(eps, t, x, **draws).prev_sample

    recipe = minisd.Recipe(
        "fire",
        image="x.png" if strength else None,
        strength=strength or 0.75,
        steps=steps,
        sampler=PROGRAMS["diffusers"].samplers[scheduler],
        schedule="karras" if karras else None,
        dialect="diffusers",
        options={"spacing": spacing} if spacing else {},
    )
    course = PROGRAMS["diffusers"].course(recipe, strength is not None)
    calls = []

    def predict_eps(y, sigma):
        calls.append(course.timestep(sigma))
        return network(y / (1 + sigma**2) ** 0.5, calls[-1])

    y = course.image_gain * (x0 if strength else 0) + course.gain * noise
    fresh = {"generator": torch.Generator().manual_seed(5)} if draws else {}
    for step in course.sampler(predict_eps, y, course.sigmas, **fresh):
        y = step.x_next
    y = y / (1 + course.sigmas[-1] ** 2) ** 0.5 if course.scaled_back else y
    assert worst(y, x) < 2e-5
    np.testing.assert_allclose(calls, timesteps, atol=2e-3)


def test_a_second_iteration_of_compvis_goes_on_with_the_random_numbers():
    """5 steps of DDIM take 6 draws, although eta is 0; PLMS takes 7."""
    recipe = minisd.Recipe("fire", steps=5, sampler="ddim", dialect="compvis")
    for sampler, draws in (("ddim", 6), ("plms", 7), ("k_dpmpp_2", 1)):
        second = replace(recipe, sampler=sampler, options={"iteration": 2})
        assert PROGRAMS["compvis"].course(second, False).draws.before == draws
