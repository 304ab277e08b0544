"""Settings of other programs: read from their texts, written for them, and back."""

import csv
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import save_file

import minisd
from minisd import Recipe
from minisd.cli.main import main
from minisd.dialects import PROGRAMS, from_settings
from minisd.dialects.translate import TARGETS, translate
from minisd.recipes import a1111, a1111_names, comfyui, prepare
from minisd.recipes.recipe import INIT_IMAGE

from .conftest import GOLDEN
from .test_dialects import SETTINGS

# Options that AUTOMATIC1111's program does not write into its text.
UNWRITTEN = {"exact_steps", "quantize"}


# ---- AUTOMATIC1111 -------------------------------------------------------------------------------


def test_its_texts_give_the_recipes_of_its_settings():
    """All real texts of the golden runs; but for the options that it does not write."""
    texts = {c: s for c, s in SETTINGS["a1"].items() if "infotext" in s}
    assert len(texts) == 21
    for case, values in texts.items():
        recipe = from_settings("a1", values)
        written = {k: v for k, v in recipe.options.items() if k not in UNWRITTEN}
        assert minisd.read_recipe(values["infotext"]) == replace(recipe, options=written), case


def test_a_text_is_written_as_the_program_writes_it():
    """Real output of AUTOMATIC1111's own code, key by key."""
    for case, values in SETTINGS["a1"].items():
        if "infotext" in values:
            recipe = from_settings("a1", values)
            more = {"Model hash": "0000000000", "Model": "tiny", "Version": "v1.10.1"}
            text = a1111.infotext(recipe, (values["width"], values["height"]), more)
            *prompts, line = text.split("\n")
            *prompts_expected, line_expected = values["infotext"].split("\n")
            assert prompts == prompts_expected, case
            pairs, expected = (dict(a1111.PAIR.findall(row)) for row in (line, line_expected))
            for key in set(pairs) | set(expected):
                assert float_or_text(pairs[key]) == float_or_text(expected[key]), (case, key)


def float_or_text(text):
    try:
        return float(text)
    except ValueError:
        return text


LINE = "fire\nSteps: 9, Sampler: {}, CFG scale: 7, Seed: 1, Size: 64x64, Version: {}"


@pytest.mark.parametrize(
    ("sampler", "version", "changes"),
    [
        ("DPM++ 2M Karras", "v1.6.0", {"schedule": "karras", "options": {"downcast": True}}),
        ("DPM++ 2M", "v1.8.0", {"schedule": "uniform", "options": {}}),
        ("DPM++ 2M, Schedule type: Automatic", "v1.10.1", {"schedule": "karras"}),
        ("DPM++ 2M SDE Heun Exponential", "v1.7.0", {"options": {"solver": "heun"}}),
        (
            "DDIM",
            "v1.5.2",
            {"options": {"era": "1.5", "pad_conds_v0": True, "downcast": True}},
        ),
        ("Euler a", "f2.0.1v1.10.1-previous-1", {"sampler": "k_euler_a", "options": {}}),
    ],
)
def test_what_versions_meant(sampler, version, changes):
    recipe = minisd.read_recipe(LINE.format(sampler, version))
    assert recipe.dialect == "a1111"
    for name, value in changes.items():
        assert getattr(recipe, name) == value


def test_what_is_not_spoken_is_named():
    text = LINE.format("Restart", "v1.10.1")
    notes = "; ".join(minisd.read_recipe(text).notes)
    assert minisd.read_recipe(text).dialect == "minisd" and "AUTOMATIC1111" in notes
    text = LINE.format("Euler", "v1.10.1, Hires upscale: 2, Refiner: xl, Sigma churn: 0.1")
    notes = "; ".join(minisd.read_recipe(text.replace("fire", "fire <lora:a:1>", 1)).notes)
    for word in ("Hires upscale 2", "Refiner xl", "Sigma churn 0.1", "<lora:a:1> was left out"):
        assert word in notes


# ---- ComfyUI -------------------------------------------------------------------------------------

PLAIN = Recipe(
    "a fire",
    negative_prompt="smoke",
    steps=12,
    seed=77,
    guidance=6.5,
    sampler="k_euler",
    schedule="karras",
    width=64,
    height=64,
    dialect="comfyui",
)


def test_a_graph_reads_back_with_a_layer_left_out_and_a_picture():
    recipe = replace(PLAIN, image="in.png", strength=0.6, clip_skip=2, width=None, height=None)
    graph = comfyui.graph_of(recipe, (64, 64))
    assert graph["11"]["class_type"] == "CLIPSetLastLayer"
    reread = minisd.read_recipe(json.dumps(graph))
    assert reread == recipe and "its init image in.png is not here" in "; ".join(reread.notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"4": {"class_type": "LoraLoader", "inputs": {}}}, "the node LoraLoader where Checkpoint"),
        ({"5": {"class_type": "LatentUpscale", "inputs": {}}}, "LatentUpscale where EmptyLatent"),
        ({"6": {"class_type": "ConditioningCombine", "inputs": {}}}, "ConditioningCombine"),
        ({"8": {"class_type": "VAEDecodeTiled", "inputs": {}}}, "VAEDecodeTiled where VAEDecode"),
        ({"6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["1", 0]}}}, "another node"),
        ({"3": {"class_type": "Fancy", "inputs": {}}}, "Fancy where KSampler"),
    ],
)
def test_other_nodes_are_named_and_refused(change, words):
    graph = comfyui.graph_of(PLAIN, (64, 64)) | change
    with pytest.raises(ValueError, match="has no settings that can be read") as error:
        minisd.read_recipe(json.dumps(graph))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("denoise", 0.5, "denoise 0.5 without a picture"),
        ("sampler_name", "lcm", "sampler 'lcm' is not spoken"),
        ("scheduler", "turbo", "scheduler 'turbo' is not spoken"),
        ("seed", ["12", 0], "the seed of its KSampler comes from another node"),
    ],
)
def test_values_that_cannot_be_drawn_are_refused(key, value, words):
    graph = comfyui.graph_of(PLAIN, (64, 64))
    graph["3"]["inputs"][key] = value
    with pytest.raises(ValueError, match=words):
        minisd.read_recipe(json.dumps(graph))


# ---- there and back ------------------------------------------------------------------------------

WORDS = st.text("abc XYZ,.:;'\"()[]|\\{}<>-+*#/ é火\n", max_size=40).map(str.strip)
SAFE = WORDS.filter(lambda text: not a1111.EXTRA_NETWORK.search(text))


def numbers(low, high):
    return st.floats(low, high).map(lambda x: round(x, 4))


@st.composite
def a1111_recipes(draw):
    sampler = draw(st.sampled_from(sorted(set(a1111_names.SAMPLERS.values()))))
    options = {}
    for key, values in {
        "noise_source": st.sampled_from(["CPU", "GPU", "NV"]),
        "ensd": st.integers(1, 40000),
        "eta": numbers(0, 1),
        "ngms": numbers(0, 4),
        "noise_multiplier": numbers(0, 2),
        "extra_noise": numbers(0, 1),
        "discard_next_to_last": st.booleans(),
        "sgm_noise": st.booleans(),
        "emphasis": st.sampled_from(["Original", "No norm", "Ignore", "None"]),
        "pad_conds": st.booleans(),
        "downcast": st.booleans(),
        "old_editing": st.booleans(),
    }.items():
        if draw(st.booleans()):
            options[key] = draw(values)
    if sampler == "dpmpp_2m_sde" and draw(st.booleans()):
        options["solver"] = "heun"
    own = a1111_names.automatic_schedule(sampler)
    schedules = [name.lower().replace(" ", "_") for name in a1111_names.SCHEDULES]
    schedule = draw(st.sampled_from([None if own == "uniform" else own, *schedules]))
    image = draw(st.booleans())
    return Recipe(
        draw(SAFE),
        negative_prompt=draw(SAFE),
        steps=draw(st.integers(1, 150)),
        sampler=sampler,
        schedule=None if sampler in a1111_names.VP or schedule == own == "uniform" else schedule,
        guidance=draw(numbers(0, 30)),
        seed=draw(st.integers(0, 2**32 - 1)),
        width=64 * draw(st.integers(1, 16)),
        height=64 * draw(st.integers(1, 16)),
        image=INIT_IMAGE if image else None,
        strength=draw(numbers(0.01, 1)) if image else 0.75,
        clip_skip=draw(st.integers(1, 12)),
        variations=draw(st.sampled_from([(), ((7, 0.25),)])),
        dialect="a1111",
        options=options,
    )


@st.composite
def comfyui_recipes(draw):
    image, options = draw(st.booleans()), {}
    sampler = draw(st.sampled_from(sorted(set(comfyui.NAMES.values()))))
    if sampler.endswith("sde") and draw(st.booleans()):
        options["gpu_tree"] = True
    if not image and draw(st.booleans()):
        options["batch"] = draw(st.integers(2, 8))
    return Recipe(
        draw(WORDS),
        negative_prompt=draw(WORDS),
        steps=draw(st.integers(1, 150)),
        sampler=sampler,
        schedule=draw(st.sampled_from(comfyui.SCHEDULERS)),
        guidance=draw(numbers(0, 30)),
        seed=draw(st.integers(0, 2**32 - 1)),
        width=None if image else 64 * draw(st.integers(1, 16)),
        height=None if image else 64 * draw(st.integers(1, 16)),
        image="in.png" if image else None,
        strength=draw(numbers(0.01, 1)) if image else 0.75,
        clip_skip=draw(st.integers(1, 12)),
        dialect="comfyui",
        options=options,
    )


def there_and_back(recipe):
    """The recipe after its program's own form, and the names of the fields that changed."""
    if recipe.dialect == "a1111":
        text = a1111.infotext(recipe, (recipe.width, recipe.height), {"Version": "v1.10.1"})
        values, _ = a1111.read(text)
    else:
        values, _ = comfyui.read(
            json.dumps(comfyui.graph_of(recipe, (recipe.width, recipe.height)))
        )
    reread = Recipe(**values)
    return reread, [
        f.name for f in fields(Recipe) if getattr(reread, f.name) != getattr(recipe, f.name)
    ]


@given(st.one_of(a1111_recipes(), comfyui_recipes()))
@settings(max_examples=100, deadline=None)
def test_a_recipe_survives_its_program_s_own_form(recipe):
    assert there_and_back(recipe)[1] == ["notes"] or there_and_back(recipe)[1] == []


# ---- translation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("image", [None, "in.png"])
def test_a_translation_has_the_same_levels(target, image):
    """In every program: 10 steps of Euler's method at strength 0.7, on uniform timesteps."""
    recipe = Recipe("a fire", image=image, strength=0.7, steps=10, sampler="k_euler", seed=1)
    result = translate(recipe, target, PROGRAMS, 64)
    expected = minisd.SCHEDULES["model"](10)[3 if image else 0 :]
    sigmas = PROGRAMS[result.recipe.dialect].course(result.recipe, bool(image)).sigmas
    # The programs' tables are in float32: 1.3e-5 at t = 0.
    np.testing.assert_allclose(sigmas, expected, rtol=2e-5)


def test_the_strengths_of_one_run():
    """The same 7 of 10 steps: one step fewer for AUTOMATIC1111's, and steps run for ComfyUI's."""
    recipe = Recipe("fire", image="in.png", strength=0.7, steps=10, sampler="k_euler", seed=1)
    a1, comfy = (translate(recipe, name, PROGRAMS).recipe for name in ("a1111", "comfyui"))
    assert (a1.steps, int(a1.strength * 10)) == (10, 6)
    assert (comfy.steps, int(7 / comfy.strength)) == (7, 10)
    assert a1.options["noise_source"] == "CPU"


def test_what_has_no_equivalent_is_said():
    recipe = Recipe("a [b:c:.5] AND d", image="in.png", sampler="k_euler_a", seed=1, steps=10)
    recipe = replace(recipe, dialect="a1111", options={"noise_source": "NV", "ngms": 2.0})
    notes = "; ".join(translate(recipe, "diffusers", PROGRAMS).notes)
    for words in ("draw 1 of NV here, draw 2 of", "fresh noise", "AND has no", "editing", "ngms"):
        assert words in notes
    with pytest.raises(ValueError, match="has no sampler like deis"):
        translate(Recipe("a", sampler="deis", seed=1), "comfyui", PROGRAMS)


def test_weights_in_the_syntax_of_the_other():
    recipe = Recipe(r"a (big fire)1.3, \(x\)", seed=1, sampler="k_euler", steps=5)
    prompts = {name: translate(recipe, name, PROGRAMS).recipe.prompt for name in TARGETS}
    assert prompts["a1111"] == prompts["comfyui"] == r"a (big fire:1.3), \(x\)"
    assert prompts["diffusers"] == "a big fire, (x)"
    assert prompts["invokeai"] == r"a (big fire)1.3, \(x\)"


def test_the_block_for_diffusers_is_python():
    recipe = Recipe('a "fire"', image="in.png", seed=1, sampler="plms", steps=10, clip_skip=2)
    text = translate(recipe, "diffusers", PROGRAMS).text
    compile(text, "block", "exec")
    for words in ("PNDMScheduler", "Img2ImgPipeline", "clip_skip=1", "manual_seed(1)"):
        assert words in text


# ---- commands ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, emoji):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    rows = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    Image.fromarray(rows).save("in.png")
    return tmp_path


@pytest.mark.parametrize("dialect", PROGRAMS)
def test_a_picture_tells_its_dialect(folder, dialect, capsys):
    words = ["img2img", "a fire", "-I", "in.png", "-s", "4", "-f", "0.6", "-S", "5", "-A", "ddim"]
    words += ["--dialect", dialect, "--set", "noise_source=CPU", "-o", "out"]
    assert main(words) == 0
    (path,) = (folder / "out").glob("*.png")
    recipe = minisd.read_recipe(path)
    assert recipe.dialect == dialect and recipe.options == {"noise_source": "CPU"}
    assert main(["recall", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"--dialect {dialect}" in printed and "noise_source=CPU" in printed
    assert "as the dialect has it" in printed or dialect in ("invokeai-2.2", "diffusers", "comfyui")


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["strip", "-f", "0.4,0.7", "-o", "out"], "out/000001.1.strip.png"),
        (["sweep", "-f", "0.4,0.7", "--to", "out", "-A", "euler"], "out/table.csv"),
        (["explore", "-f", "0,0.5,1"], "explorer.html"),
    ],
)
def test_every_command_that_draws_speaks_it(folder, capsys, words, file):
    command, *words = words
    line = ["a (big:1.2) fire", "-I", "in.png", "-s", "4", "-S", "1", "-A", "k_euler", *words]
    assert main([command, *line, "--dialect", "comfyui", "--negative", "smoke"]) == 0
    assert (folder / file).is_file()
    if command == "sweep":  # all four steps are run, whatever the strength
        with open(folder / file, newline="") as table:
            assert [row["steps_run"] for row in csv.DictReader(table)] == ["4", "4"]


@pytest.mark.parametrize(
    ("dialect", "sampler", "schedule", "own"),
    [
        ("a1111", "DPM++ 2M", "Karras", ("k_dpmpp_2", "karras")),
        ("a1111", "euler a", None, ("k_euler_a", None)),
        ("comfyui", "dpmpp_2s_ancestral", "sgm_uniform", ("k_dpmpp_2_a", "sgm_uniform")),
        ("diffusers", "PNDMScheduler", None, ("plms", None)),
        ("compvis", "dpm_solver", None, ("k_dpmpp_2", None)),
    ],
)
def test_the_program_s_own_names_are_taken(emoji, dialect, sampler, schedule, own):
    recipe = Recipe("fire", seed=1, steps=2, width=64, height=64, dialect=dialect)
    typed = replace(recipe, sampler=sampler, schedule=schedule)
    recipe = replace(recipe, sampler=own[0], schedule=own[1])
    assert torch.equal(typed.draw(emoji).latent, recipe.draw(emoji).latent)
    assert typed.functions()[0] is minisd.SAMPLERS[own[0]]


def test_explain_says_which_draw_goes_where(capsys):
    words = ["explain", "-s", "10", "-f", "0.7", "-I", "in.png", "-A", "k_euler_a"]
    assert main([*words, "--dialect", "diffusers"]) == 0
    text = capsys.readouterr().out
    assert "draw 1       the encoder's noise" in text
    assert "draw 2       the noise that is added" in text
    assert main([*words, "--dialect", "a1111", "--set", "ensd=31337"]) == 0
    assert "the seed + 31337" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--dialect", "klingon"], "no dialect named 'klingon'; choose from minisd, a1111"),
        (["--dialect", "a1111", "--set", "eta=-1"], "eta must be a number from 0.0 to 100.0"),
        (["--dialect", "a1111", "--set", "rng=CPU"], "has no option 'rng'; it has noise_source"),
        (["--dialect", "a1111", "--set", "noise_source=TPU"], "one of 'CPU', 'GPU', 'NV'"),
        (["--dialect", "compvis", "-A", "k_euler"], "no sampler 'k_euler' of CompVis"),
        (["--dialect", "compvis", "-A", "plms"], "CompVis's img2img has no PLMS"),
        (["--dialect", "comfyui", "-A", "ddim", "-V", "3:0.5"], "leave -V out"),
        (["--dialect", "comfyui", "--schedule", "turbo"], "no schedule 'turbo' of ComfyUI"),
        (["--dialect", "invokeai-2.0", "-f", "1"], "strengths between 0 and 1"),
    ],
)
def test_mistakes_get_one_line(folder, capsys, words, problem):
    assert main(["img2img", "fire", "-I", "in.png", "-s", "4", "-S", "1", *words]) == 2
    assert problem in capsys.readouterr().err


def test_translate_prints_what_recall_reads(folder, capsys):
    assert main(["txt2img", "a fire", "-s", "2", "-S", "5", "-A", "k_euler", "-o", "out"]) == 0
    (path,) = (folder / "out").glob("*.png")
    capsys.readouterr()
    assert main(["translate", str(path), "--to", "a1111"]) == 0
    recipe = minisd.read_recipe(capsys.readouterr().out.strip())
    assert (recipe.dialect, recipe.steps, recipe.seed) == ("a1111", 2, 5)


# ---- InvokeAI ------------------------------------------------------------------------------------


def invokeai_2(program, version, **image):
    image = {"prompt": [{"prompt": "fire", "weight": 1}], "type": "img2img", **image}
    return json.dumps({"app_id": program, "app_version": version, "image": image})


@pytest.mark.parametrize(
    ("program", "version", "dialect", "era"),
    [
        ("invoke-ai/InvokeAI", "v2.0.0", "invokeai-2.0", "2.0.0"),
        ("invoke-ai/InvokeAI", "2.0.2", "invokeai-2.0", "2.0.2"),
        ("invoke-ai/InvokeAI", "2.2.4", "invokeai-2.2", "2.1"),
        ("invoke-ai/InvokeAI", "2.2.5-rc9", "invokeai-2.2", "2.2.5"),
        ("invoke-ai/InvokeAI", "2.3.5", "minisd", None),
        ("lstein/stable-diffusion", "v1.15", "invokeai-2.0", "dev"),
        ("lstein/stable-diffusion", "v1.14.1", "minisd", None),
    ],
)
def test_versions_of_invokeai(program, version, dialect, era):
    text = invokeai_2(program, version, sampler="ddim" if era == "dev" else "k_lms")
    if era == "dev":  # the line has the sampler that was used
        recipe = Recipe("fire", dialect="invokeai-2.0", image=INIT_IMAGE, options={"era": "dev"})
        assert PROGRAMS["invokeai-2.0"].course(replace(recipe, sampler="k_lms"), True)
        return
    recipe = minisd.read_recipe(text)
    assert (recipe.dialect, recipe.options.get("era")) == (dialect, era)


@pytest.mark.parametrize(("steps", "run"), [(30, 20), (29, 19)])
def test_the_seed_document_s_builds_run_a_step_fewer(steps, run):
    """IMG2IMG.md's figures: 30 steps at strength 0.7 ran 20, and 29 ran 19."""
    recipe = Recipe("fire", image="x", steps=steps, strength=0.7, dialect="invokeai-2.0")
    course = PROGRAMS["invokeai-2.0"].course(replace(recipe, options={"era": "dev"}), True)
    assert len(course.sigmas) - 1 == run and "scaled" in course.notes[-1]


def test_invokeai_3_is_read():
    metadata = {"positive_prompt": "fire", "seed": 3, "scheduler": "euler_k", "steps": 9}
    metadata |= {"strength": 0.6, "generation_mode": "img2img", "rand_device": "cuda"}
    recipe = minisd.read_recipe(json.dumps(metadata | {"cfg_rescale_multiplier": 0.7}))
    assert (recipe.sampler, recipe.schedule, recipe.strength) == ("k_euler", "karras", 0.6)
    notes = "; ".join(recipe.notes)
    for words in ("no dialect speaks it", "drawn on cuda", "cfg_rescale_multiplier 0.7"):
        assert words in notes


def test_easy_diffusion_is_named(tmp_path):
    info = PngInfo()
    for key, text in {"prompt": "fire", "use_stable_diffusion_model": "sd-v1-4"}.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(tmp_path / "e.png", pnginfo=info)
    with pytest.raises(ValueError, match="it is a picture of Easy Diffusion"):
        minisd.read_recipe(tmp_path / "e.png")


# ---- the conformance kit -------------------------------------------------------------------------


def dump(folder, **changes):
    """A folder as another implementation would write it: some golden tensors, some changed."""
    golden = safe_open(GOLDEN / "tiny.safetensors", "pt")
    names = ["clip.tokens", "clip.context", "unet.eps", "vae.moments"]
    names += ["img2img.k_lms.karras.0.7.x", "img2img.k_lms.karras.0.7.sigmas"]
    tensors = {name: golden.get_tensor(name).clone() for name in names}
    for name, change in changes.items():
        change(tensors[name.replace("_DOT_", ".")])
    save_file(tensors, folder / "tiny.safetensors")


CONFORM = ["conform", ".", "--golden", str(GOLDEN)]


def test_the_golden_values_conform(folder, capsys):
    dump(folder)
    assert main(CONFORM) == 0
    text = capsys.readouterr().out
    assert "everything that is there agrees" in text and "golden tensors are not there" in text


def test_it_says_where_they_part(folder, capsys):
    changes = {
        "img2img_DOT_k_lms_DOT_karras_DOT_0_DOT_7_DOT_x": lambda x: x[3:].add_(0.01),
        "clip_DOT_tokens": lambda x: x[1, 3].fill_(5),
        "unet_DOT_eps": lambda x: x.mul_(1 + 1e-4),
    }
    dump(folder, **changes)
    assert main(CONFORM) == 1
    text = capsys.readouterr().out
    assert "look at the tokens first: clip.tokens" in text
    assert "row 1, place 3: 5, not 49407; 1 differ" in text
    assert "parts after step 3" in text and "DIFFERS  unet.eps: 1.0e-04 of 2e-05" in text
    assert "text states          1 of 1 agree" in text


def test_conform_needs_files(folder, capsys):
    assert main(CONFORM) == 2
    assert "has none of the files tiny.safetensors" in capsys.readouterr().err
    Path("tiny.safetensors").write_text("nothing")
    assert main(CONFORM) == 2
    assert "is not a safetensors file" in capsys.readouterr().err


def test_what_depends_on_the_card_is_said(emoji):
    recipe = Recipe("fire", width=512, height=512, steps=1, seed=1, dialect="compvis")
    recipe = replace(recipe, sampler="ddim", options={"card": "T4", "batch": 3})
    with pytest.warns(UserWarning, match="depends on the card: that of T4 is drawn"):
        prepare(recipe, emoji)
