"""Settings in pictures: what other programs wrote is used or named, and minisd's own reads back."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import minisd
from minisd.cli.main import main
from minisd.recipes import a1111
from minisd.recipes.metadata import Model, nearest_sampler, texts

REPORTS = Path(__file__).parent / "data" / "reports"
MODEL = Model("a model, of 2022", "0" * 64, "float32", "0.1.0")
PLAIN = {"prompt": "a fire, noto", "steps": 12, "seed": 77, "width": 64, "height": 64}
PLAIN |= {"guidance": 6.5, "sampler": "k_euler_a"}


@pytest.fixture
def folder(tmp_path, monkeypatch, emoji):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    return tmp_path


def png(path, **chunks):
    info = PngInfo()
    for key, value in chunks.items():
        name = {"sd_metadata": "sd-metadata"}.get(key, key)
        info.add_text(name, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


# ---- pictures of other programs ------------------------------------------------------------------

# Each file, how its recipe differs from PLAIN, and words of its notes.
FILES = {
    "a1111_plain.png": ({"negative_prompt": "smoke, ash"}, []),
    "a1111_multiline.png": (
        {"prompt": "a fire,\nnoto,\n\nbright", "negative_prompt": "smoke,\nash"},
        [],
    ),
    "a1111_api_denoise_0.png": ({"negative_prompt": "smoke"}, []),
    "a1111_img2img_04.png": (
        {"image": "INIT_IMAGE", "strength": 0.4},
        ["does not name the init image: give it with -I", "exact_steps=False"],
    ),
    "a1111_unipc.png": ({"sampler": nearest_sampler("UniPC")[0]}, []),
    "a1111_exponential.png": ({"sampler": "k_dpmpp_2", "schedule": "exponential"}, []),
    "a1111_variation.png": (
        {"variations": ((99, 0.3),), "clip_skip": 2, "options": {"ensd": 31337}}, []
    ),
    "a1111_lora.png": ({}, ["<lora:flame_v1:0.8> was left out", "Lora hashes flame_v1"]),
    "a1111_seed_64bit.png": ({"seed": 12345678901234567 % 2**32}, ["12345678901234567"]),
    "a1111_template_lines.png": (
        {"negative_prompt": "smoke"},
        ["'Template: a {fire|water}, noto' was left out", "'Negative Template: smoke'"],
    ),
    "a1111.jpg": ({"negative_prompt": "smoke"}, ["Model some-model"]),
    "sdcpp_euler_a.png": (
        {"negative_prompt": "smoke", "options": {"noise_source": "NV", "eta": 0.0}},
        ["made by stable-diffusion.cpp", "Guidance 3.5"],
    ),
    "invoke2_perlin.png": ({}, ["no switch --perlin 0.15"]),
    "invoke2_postprocessed.png": ({}, ["no switch -G 0.8", "no switch -U 2.0 0.75"]),
    "comfyui.png": (
        {"negative_prompt": "smoke", "sampler": "k_euler", "dialect": "comfyui"},
        ["era=2025-12-26"],
    ),
    "big_text_ztxt.png": (
        {"negative_prompt": "smoke", "sampler": "k_euler", "dialect": "comfyui"},
        [],
    ),
    "invoke5.png": ({"negative_prompt": "smoke"}, ["made by InvokeAI 5.4.3", "model"]),
    "utf8_in_text.png": ({"prompt": "火 é fire"}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_picture_of_another_program(folder, capsys, name):
    """Its recipe and notes; and the command that recall prints draws a picture."""
    changes, words = FILES[name]
    recipe = minisd.read_recipe(REPORTS / name)
    for field, value in {**PLAIN, **changes}.items():
        assert getattr(recipe, field) == value, field
    notes = "; ".join(recipe.notes)
    for word in words:
        assert word in notes

    assert main(["recall", str(REPORTS / name)]) == 0
    printed = capsys.readouterr()
    assert "; ".join(re.findall(r": (.*)", printed.err)).count("left out") == notes.count(
        "left out"
    )
    command = shlex.split(printed.out)
    assert command[:2] == ["minisd", "img2img" if "image" in changes else "txt2img"]
    words = ["-I", str(REPORTS / "drawing.png")] if "image" in changes else []
    assert main([*command[1:], *words, "-s", "1", "-o", "out"]) == 0
    assert len(list((folder / "out").glob("*.png"))) == 1


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("a1111", "sdcpp"))])
def test_every_setting_is_used_or_named(name):
    path = REPORTS / name
    image = Image.open(path)
    text = image.info.get("parameters") or a1111_text(image)
    recipe = minisd.read_recipe(path)
    line = next(row for row in text.split("\n") if row.startswith("Steps: "))
    used = {"Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Denoising strength"}
    used |= {"Variation seed", "Variation seed strength", "Version", "Clip skip"}
    for key in {key for key, _ in a1111.PAIR.findall(line)} - used - set(a1111.KEYS):
        assert key in "; ".join(recipe.notes)


def a1111_text(image):
    return image.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("novelai.png", "as NovelAI writes it"),
        ("null_metadata.png", "sd-metadata is not a JSON object"),
        ("drawing.png", "there is no text named Dream, sd-metadata or parameters"),
    ],
)
def test_what_cannot_be_read_is_named(capsys, name, words):
    assert main(["recall", str(REPORTS / name)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert words in printed.err and "no settings that can be read" in printed.err


@pytest.mark.parametrize(
    "texts",
    [
        {"sd_metadata": "null"},
        {"sd_metadata": "3"},
        {"sd_metadata": "[]"},
        {"sd_metadata": '{"image": [1]}'},
        {"sd_metadata": '{"images": 1}'},
        {"sd_metadata": '{"image": {"prompt": "fire"}}'},
        {"Dream": "-s 10 -S 4"},
        {"parameters": '{"sui_image_params": {"prompt": "fire"}}'},
        {"parameters": ""},
    ],
)
def test_odd_metadata_gets_one_plain_line(folder, capsys, texts):
    assert main(["recall", str(png("odd.png", **texts))]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert not re.search("NoneType|object has no|indices|argument", printed.err)


def test_the_limit_for_texts_is_named(folder, capsys):
    info = PngInfo()
    info.add_text("parameters", "x" * 3_000_000, zip=True)
    Image.new("RGB", (8, 8)).save("long.png", pnginfo=info)
    assert main(["recall", "long.png"]) == 1
    limit = "parameters has 3,000,000 characters, and the limit is 1,048,576"
    assert limit in capsys.readouterr().err


def test_other_long_texts_are_ignored(folder):
    info = PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    info.add_text("Dream", '"fire" -s 7')
    Image.new("RGB", (8, 8)).save("long.png", pnginfo=info)
    assert minisd.read_recipe("long.png").steps == 7


# ---- samplers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "sampler"),
    [
        ("Euler a|euler_a|k_euler_a|k_euler_ancestral|euler_ancestral", "k_euler_a"),
        ("Euler|euler", "k_euler"),
        ("LMS|lms|k_lms", "k_lms"),
        ("Heun|heun|k_heun", "k_heun"),
        ("DPM2|dpm2|dpm_2|kdpm_2|k_dpm_2", "k_dpm_2"),
        ("DPM2 a|dpm_2_ancestral|kdpm_2_a|dpm2 a", "k_dpm_2_a"),
        ("DPM++ 2M|dpmpp_2m|dpm++2m|k_dpmpp_2m", "k_dpmpp_2"),
        ("DPM++ 2S a|dpmpp_2s_ancestral|dpm++2s_a|k_dpmpp_2s_ancestral", "k_dpmpp_2_a"),
        ("DDIM|ddim", "ddim"),
        ("PLMS|plms", "plms"),
    ],
)
def test_names_of_the_same_samplers(names, sampler):
    for name in names.split("|"):
        assert nearest_sampler(name) == (sampler, True), name


@pytest.mark.parametrize(
    ("names", "nearest"),
    [
        ("DPM fast|DPM adaptive|dpmpp_2|DPM++ 4M|dpmsolver|UniPC v2", "k_dpmpp_2"),
        ("DPM++ 4M SDE|dpmpp_2s|SA-SDE", "k_dpmpp_2_a"),
        ("ddim_inverse", "ddim"),
        ("pndm", "plms"),
        ("heunpp2", "k_heun"),
        ("dpm2 c", "k_dpm_2"),
        ("ddpm", "k_euler_a"),
        ("something||...", "k_euler"),
    ],
)
def test_nearest_samplers(names, nearest):
    for name in names.split("|"):
        sampler, same = nearest_sampler(name)
        assert sampler in minisd.SAMPLERS
        assert same or sampler == nearest, name


@pytest.mark.parametrize("name", ["UniPC", "DEIS", "DPM++ SDE", "LCM", "Restart", "Magic", "火"])
def test_any_sampler_s_name_is_used_or_named(name):
    recipe = minisd.read_recipe(A1111.format(name))
    sampler, same = nearest_sampler(name)
    assert recipe.sampler == sampler and same == (f"sampler {name}" not in "; ".join(recipe.notes))


A1111 = "fire\nSteps: 9, Sampler: {}, CFG scale: 7, Seed: 1, Size: 64x64"


@pytest.mark.parametrize(
    ("settings", "schedule", "note"),
    [
        ("DPM++ 2M Karras", "karras", ""),
        ("DPM++ 2M Exponential", "exponential", ""),
        ("Euler, Schedule type: Karras", "karras", ""),
        ("Euler, Schedule type: Automatic", None, ""),
        ("Euler, Schedule type: Turbo", None, "the schedule turbo is not here"),
    ],
)
def test_schedules_of_a1111(settings, schedule, note):
    recipe = minisd.read_recipe(A1111.format(settings))
    assert recipe.schedule == schedule and note in "; ".join(recipe.notes)


@pytest.mark.parametrize("name", ["SGM Uniform", "KL Optimal", "Align Your Steps", "Beta"])
def test_any_schedule_of_a1111_is_used_or_named(name):
    recipe = minisd.read_recipe(A1111.format(f"Euler, Schedule type: {name}"))
    plain = name.lower().replace(" ", "_")
    if recipe.schedule is None:
        assert f"the schedule {plain} is not here" in "; ".join(recipe.notes)
    else:
        assert recipe.schedule.startswith(plain) and recipe.schedule in minisd.SCHEDULES


# ---- pictures with and without an init image -----------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "command", "notes"),
    [
        ("Denoising strength: 0.75", "img2img", "give it with -I"),
        ("Denoising strength: 0", "txt2img", ""),
        ("Denoising strength: 0.0", "txt2img", ""),
        ("Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: Latent", "txt2img",
         "Denoising strength 0.7, Hires upscale 2, Hires upscaler Latent"),
        ("Denoising strength: 0.5, Mask blur: 4", "img2img", "Mask blur 4"),
    ],
)  # fmt: skip
def test_an_init_image_only_where_the_text_says_so(settings, command, notes):
    recipe = minisd.read_recipe(A1111.format("Euler, " + settings))
    assert shlex.split(recipe.command())[1] == command
    assert ("-f" in recipe.command()) == (command == "img2img")
    assert notes in "; ".join(recipe.notes)


def test_invokeai_s_json_alone_names_no_init_image(folder):
    image = {"prompt": [{"prompt": "fire", "weight": 1}], "seed": 3, "steps": 7, "width": 64}
    image |= {"type": "img2img", "strength_steps": 0.55, "orig_hash": "ab" * 32}
    recipe = minisd.read_recipe(png("m.png", sd_metadata=json.dumps({"image": image})))
    assert "img2img fire" in recipe.command() and "-f 0.55" in recipe.command()
    assert f"SHA-256 {'ab' * 32}: give it with -I" in "; ".join(recipe.notes)
    result = main(["img2img", "--from", "m.png", "-I", str(REPORTS / "drawing.png"), "-s1"])
    assert result == 0


def test_without_the_init_image_nothing_is_drawn(folder, capsys):
    assert main(["img2img", "--from", str(REPORTS / "a1111_img2img_04.png")]) == 2
    assert "there is no file INIT_IMAGE" in capsys.readouterr().err


# ---- what minisd would refuse --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dream", "notes"),
    [
        ('"fire" -S 1 -A dpm_fast', ["the sampler dpm_fast is not here"]),
        ('"fire" -S 1 -A dpm_fast --set eta=0.5', ["its options were left out"]),
        ('"fire" -S 1 -A k_lms --schedule omega', ["the schedule omega is not here"]),
        ('"fire" -S -3', ["the seed was -3"]),
        ('"fire" -S 99999999999', ["99999999999 is not between"]),
        ('"fire" -S 1 -M mask.png', ["the mask mask.png was left out"]),
        ('"(fire, ice).blend(1, 1)" -S 1', ["plain words", ".blend"]),
        ('"fire [" -S 1', ["plain words"]),
        ("fire -S 1 -ft gfpgan -f 0.5", ["no switch -ft gfpgan"]),
        ("fire -S 1 -embiggen 2 0.75 0.25 --hires_fix", ["-embiggen 2 0.75 0.25", "--hires_fix"]),
        ("fire -S 1 --threshold 2 --perlin 0", ["no switch --threshold 2"]),
        ("fire -S 1 --threshold 0 --perlin 0.0", []),
        ("fire -S 1 -U2 0.75 -save_orig", ["no switch -U 2 0.75", "no switch -save_orig"]),
    ],
)
def test_what_minisd_would_refuse_is_left_out_with_a_note(folder, capsys, dream, notes):
    recipe = minisd.read_recipe(png("x.png", Dream=dream))
    assert bool(recipe.notes) == bool(notes)
    for note in notes:
        assert note in "; ".join(recipe.notes)
    assert main([*shlex.split(recipe.command())[1:], "-s1"]) == 0
    assert recipe.strength == (0.5 if "-f 0.5" in dream else 0.75)


def test_a_value_out_of_range_does_not_hide_the_rest():
    text = A1111.format("Euler").replace("Steps: 9", "Steps: 90000")
    recipe = minisd.read_recipe(text.replace("7,", "70000,"))
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.guidance) == ("fire", 1, 50, 7.5)
    assert "Steps was left out" in "; ".join(recipe.notes)
    assert "CFG scale was left out" in "; ".join(recipe.notes)


# ---- encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["火 fire", "é", "naïve café", "plain", "Ärger über Öl"])
def test_utf_8_where_the_standard_demands_latin_1(folder, text):
    """Some programs write UTF-8 into tEXt; others write Latin-1, as the standard says."""
    dream = f'"{text}" -S 1'
    png("utf8.png", Dream=dream.encode().decode("latin-1"))
    assert minisd.read_recipe("utf8.png").prompt == text
    info = PngInfo()
    info.add_itxt("Dream", dream)
    Image.new("RGB", (8, 8)).save("itxt.png", pnginfo=info)
    assert minisd.read_recipe("itxt.png").prompt == text
    if text.isascii() or ord(max(text)) < 256:
        png("latin1.png", Dream=dream)
        assert minisd.read_recipe("latin1.png").prompt == text


@pytest.mark.parametrize("ending", ["jpg", "webp", "png"])
@pytest.mark.parametrize(
    ("code", "encoding"),
    [
        (b"UNICODE\0", "utf-16-be"),
        (b"UNICODE\0", "utf-16-le"),
        (b"ASCII\0\0\0", "utf-8"),
        (bytes(8), "utf-8"),
    ],
)
def test_the_user_comment_of_exif(folder, ending, code, encoding):
    text = A1111.format("Euler").replace("fire", "fire 火" if "16" in encoding else "fire")
    exif = Image.Exif()
    exif[0x8769] = {0x9286: code + text.encode(encoding)}
    Image.new("RGB", (8, 8)).save(f"x.{ending}", exif=exif)
    recipe = minisd.read_recipe(f"x.{ending}")
    assert (recipe.steps, recipe.sampler) == (9, "k_euler")
    assert recipe.prompt == ("fire 火" if "16" in encoding else "fire")


# ---- the text that minisd writes -----------------------------------------------------------------


def written(prompt, **settings):
    recipe = minisd.Recipe(prompt, seed=3, **settings)
    return texts(recipe, (64, 64), MODEL)["parameters"]


@pytest.mark.parametrize(
    ("prompt", "lines"),
    [
        ("a fire [smoke, ash]", ["a fire", "Negative prompt: smoke, ash"]),
        (r"a \[sign\] fire", [r"a \[sign\] fire"]),
        ("fire [smoke\nash]", ["fire", "Negative prompt: smoke", "ash"]),
        ("a (big fire)1.3 tree", ["a (big fire:1.3) tree"]),
        ("fire++ and sea-", ["(fire:1.21) and (sea:0.9)"]),
        ("fire:2 tree:1", ["fire tree"]),
        (r"\(a\) b", [r"\(a\) b"]),
        ("a\nfire", ["a", "fire"]),
        ("fire [a (b)]", ["fire", r"Negative prompt: a \(b\)"]),
    ],
)
def test_it_is_in_a1111_s_syntax(prompt, lines):
    text = written(prompt)
    assert text.split("\n")[: len(lines)] == lines
    assert len(text.split("\n")) == len(lines) + 1


@pytest.mark.parametrize("prompt", ["a fire [smoke, ash]", "a (big fire)1.3 tree", r"a \[sign\]"])
def test_minisd_s_syntax_is_added_only_where_it_is_needed(prompt):
    assert a1111.OWN_PROMPT not in written(prompt)
    assert a1111.OWN_PROMPT in written(f"{prompt} sea:2 sky:1")


@given(st.text("ab ()[]\\:+-.,123\n\"'é火|<>", max_size=25))
@example(r"a \[sign\] fire")
@example("fire [smoke\nash]")
@example("fire:2 tree:1")
@example(" lead ")
@example("")
@example("Negative prompt: x\nSteps: 5, Sampler: a, CFG scale: 3")
@example("fire\nNegative prompt: not one")
@example('"quoted", Seed: 5')
def test_the_text_alone_gives_the_same_prompt(prompt):
    try:
        text = written(prompt)
    except ValueError:  # a prompt with a syntax error is never drawn
        return
    recipe = minisd.read_recipe(text if "\n" in text else f"\n{text}")
    assert recipe.full_prompt == prompt
    assert (recipe.seed, recipe.steps, recipe.notes) == (3, 50, ())
    assert minisd.Recipe(prompt, seed=3).full_prompt == recipe.full_prompt


def test_the_text_alone_gives_the_same_settings():
    recipe = minisd.Recipe("fire", image="in.png", strength=0.0, steps=7, seed=9, guidance=3.3)
    other = {"schedule": "karras", "sampler": "k_dpmpp_2_a", "negative_prompt": "smoke (grey)"}
    recipe = replace(recipe, **other)
    text = texts(recipe, (64, 96), MODEL, "ab" * 32)["parameters"]
    repeated = minisd.read_recipe(text)
    assert repeated.full_prompt == recipe.full_prompt
    for field in ("strength", "steps", "seed", "schedule", "sampler", "guidance"):
        assert getattr(repeated, field) == getattr(recipe, field), field
    assert (repeated.width, repeated.height, repeated.image) == (64, 96, "INIT_IMAGE")
    assert repeated.notes == ("the text does not name the init image: give it with -I",)
