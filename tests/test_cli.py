"""The command line as a person uses it: in this process, on the bundled weights."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import minisd
from minisd.cli import studio
from minisd.cli.main import COMMANDS, main
from minisd.cli.switches import TAKE_BACK, Request, read_line
from minisd.files import sha256, write_file
from minisd.recipes.dream import BY_FIELD, FLAGS, dream_line, read_dream
from minisd.recipes.variations import noise_of, seed_chain, slerp, varied_noise

FAST = ["-s2", "-C4", "-f.5"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (64, 64), "orange").save("in.png")
    (tmp_path / "minisd_file").touch()
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def one_model(emoji):
    """All commands of this file share one loaded model; loading has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
        yield


def made(folder):
    return sorted(p.name for p in (folder / "outputs/img-samples").glob("*.png"))


def run(*words, status=0):
    assert main(list(words)) == status


def test_img2img(folder, capsys):
    run("img2img", "fire", "-I", "in.png", "-s10", "-f.75", "-C4", "-S42")
    assert made(folder) == ["000001.42.png"]
    out = capsys.readouterr().out
    assert "10 steps asked, 7 run, 3 skipped; k_lms on the model schedule" in out
    assert "the noise added has sigma 2.9183" in out
    assert '"fire" -s 10 -S 42 -W 64 -H 64 -C 4.0 -I in.png -A k_lms -f 0.75' in out
    assert "000001.42.png" in (folder / "outputs/img-samples/minisd_log.txt").read_text()


def test_nothing_is_overwritten(folder):
    for _ in range(2):
        run("txt2img", "fire", "-s1", "-S42")
    assert made(folder) == ["000001.42.png", "000002.42.png"]
    samples = folder / "outputs/img-samples"
    with pytest.raises(FileExistsError, match="000001"):
        write_file(samples / "000001.42.png", b"new")
    assert not list(samples.glob(".*"))


@pytest.mark.slow
def test_full_disk_leaves_nothing(folder):
    """In a process of its own, where no file may grow beyond 1000 bytes: the system refuses that as
    it refuses to write to a full disk."""
    code = (
        "import resource; from minisd.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "raise SystemExit(main(['txt2img', 'fire', '-s1']))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    words = [sys.executable, "-B", "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "could not write outputs/img-samples/000001." in done.stderr.split("\n")[-2]
    assert not list((folder / "outputs/img-samples").iterdir())


@pytest.mark.parametrize(
    "published",
    [
        # InvokeAI's VARIATIONS.md: a batch of six, and two of six variations each
        [1579445059, 1880768722, 332057179, 2224800325, 465250761, 3357757885],
        [784039624, 3647897225, 917731034, 4116285959, 1614299449, 1335553075],
        [3279757577, 2853129515, 3747154981, 2664260391, 1642517170, 2183375608],
        # those that follow the document's own
        [1592514025, 1270187604, 3805924686, 141845748, 3150601133],
    ],
)
def test_seed_chain_published(published):
    assert seed_chain(published[0], len(published)) == published


def test_iterations_follow_the_chain(folder):
    run("txt2img", "fire", "-s1", "-n3", "-S1592514025")
    assert made(folder) == [f"000001.{s}.png" for s in sorted(seed_chain(1592514025, 3), key=str)]
    run("txt2img", "fire", "-s1", "-S1270187604")
    second = Image.open(f"outputs/img-samples/{made(folder)[-1]}")
    in_batch = Image.open("outputs/img-samples/000001.1270187604.png")
    assert second.tobytes() == in_batch.tobytes()


def test_variations_work_with_k_lms_img2img(folder):
    """In the original they did not: the k samplers drew their own noise."""
    run("img2img", "fire", "-I", "in.png", "-s4", "-C4", "-S1", "-n2", "-v.1")
    run("img2img", "fire", "-I", "in.png", "-s4", "-C4", "-S1")
    names = made(folder)
    images = [np.asarray(Image.open(f"outputs/img-samples/{n}"), float) for n in names]
    sub = seed_chain(1, 3)[1:]
    assert sorted(names[:2]) == sorted(f"000001.{s}.png" for s in sub)
    other = np.asarray(Image.open(make_other(folder)), float)
    distances = [np.abs(image - images[2]).mean() for image in images[:2]]
    assert all(0 < distance < np.abs(other - images[2]).mean() for distance in distances)


def make_other(folder):
    run("img2img", "fire", "-I", "in.png", "-s4", "-C4", "-S2")
    return folder / "outputs/img-samples" / made(folder)[-1]


def test_slerp():
    shape = (1, 4, 32, 32)
    a, b = noise_of(1, shape), noise_of(2, shape)
    assert slerp(0.0, a, b).equal(a) and slerp(1.0, a, b).sub(b).abs().max() < 1e-6
    half = slerp(0.5, a, b)
    assert abs(half.std().item() - 1) < 0.05  # 4096 values; a straight line would give 0.71
    assert varied_noise(1, [(2, 1.0)], shape).sub(b).abs().max() < 1e-6
    assert slerp(0.3, a, a).sub(a).abs().max() < 1e-6


def test_variants_feed_each_result_back(folder):
    run("img2img", "fire", "-I", "in.png", *FAST, "-S1", "--variants", "2")
    names = made(folder)
    assert len(names) == 3
    first = "outputs/img-samples/000001.1.png"
    for name in names:
        if name != "000001.1.png":
            recipe = minisd.read_recipe(folder / "outputs/img-samples" / name)
            assert (recipe.image, recipe.strength) == (first, 0.5)


def test_grid(folder):
    run("txt2img", "fire", "-s1", "-n4", "-S1", "-g")
    assert Image.open("outputs/img-samples/000001.1.grid.png").size == (128, 128)


@pytest.mark.parametrize(
    ("size", "switches", "wanted", "says"),
    [
        ((64, 64), [], (64, 64), ""),
        ((100, 70), [], (96, 64), "multiples of 16"),
        ((100, 70), ["-W64", "-H64"], (96, 64), "only with --fit"),
        ((200, 100), ["--fit"], (64, 32), "scaled to 64x32, to fit into 64x64"),
        ((30, 20), ["-fit", "-W96", "-H96"], (96, 64), "scaled to 96x64, to fit into 96x96"),
        ((32, 32), [], (32, 32), "smaller than the 64 pixels"),
        ((1, 1), [], (16, 16), "smaller than"),
    ],
)
def test_sizes(folder, capsys, size, switches, wanted, says):
    Image.new("RGB", size, "orange").save("other.png")
    run("img2img", "fire", "-I", "other.png", *FAST, "-S1", *switches)
    assert Image.open("outputs/img-samples/000001.1.png").size == wanted
    captured = capsys.readouterr()
    assert says in captured.out + captured.err


def test_inpainting_by_transparency_and_mask(folder, capsys):
    image = Image.new("RGBA", (64, 64), "orange")
    image.paste((0, 0, 0, 0), (16, 16, 48, 48))
    image.save("holes.png")
    run("img2img", "fire", "-I", "holes.png", *FAST, "-S1")
    assert "no colours under its transparency" in capsys.readouterr().err
    image.getchannel("A").save("mask.png")
    run("img2img", "fire", "-I", "in.png", "-M", "mask.png", *FAST, "-S1")
    for name in made(folder):
        result = Image.open(f"outputs/img-samples/{name}")
        assert result.getpixel((2, 2)) == (255, 165, 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["img2img", "fire"], "needs a picture"),
        (["img2img", "fire", "-I", "none.png"], "none.png"),
        (["img2img", "fire", "-I", "."], r"\."),
        (["img2img", "fire", "-I", "in.png", "-M", "none.png"], "none.png"),
        (["img2img", "-I", "in.png"], "say what to draw"),
        (["txt2img"], "say what to draw"),
        (["txt2img", "fire", "-A", "k_foo"], "no sampler named 'k_foo'; choose from k_lms"),
        (["txt2img", "fire", "--schedule", "x"], "no schedule named 'x'; choose from model"),
        (["txt2img", "fire", "-S", "-1"], "none was made yet"),
        (["txt2img", "fire", "-V", "1:0.5"], "with -S"),
        (["txt2img", "fire", "-A", "ddim", "-s", "1000"], "1 to 999 steps"),
        (["txt2img", "(fire:2)"], "write (words)1.3"),
        (["txt2img", "fire", "--model", "sd-v9"], "no checkpoint named sd-v9"),
        (["txt2img", "fire", "-o", "out.png"], "out.png should be a folder"),
        (["txt2img", "fire", "-o", "minisd_file"], "it is a file"),
        (["txt2img", "fire", "--from", "in.png"], "no settings that can be read"),
        (["recall", "none.png"], "none.png"),
        (["paint"], "no command paint"),
    ],
)
def test_mistakes_get_one_line(folder, capsys, words, says):
    assert main(words) in (1, 2)
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1 and re.search(says if "\\" in says else re.escape(says), lines[0])


def test_shell_switch_errors(folder, capsys):
    for words in (["-f", "1.5"], ["-s", "0"], ["-S", "x"], ["-C", "-1"]):
        with pytest.raises(SystemExit) as end:
            main(["img2img", "fire", "-I", "in.png", *words])
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.startswith(f"minisd img2img: {words[0]}/--")
        assert err.count("\n") == 1


def test_long_prompt_says_what_was_cut(folder, capsys):
    run("txt2img", "fire " * 75 + "the end", "-s1", "-S1")
    assert "2 tokens too long; cut off: 'the end'" in capsys.readouterr().err


# ---- the prompt --------------------------------------------------------------------------------


def type_lines(monkeypatch, *lines):
    todo = iter(lines)

    def answer(_):
        try:
            line = next(todo)
        except StopIteration:
            raise EOFError from None
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", answer)


def test_prompt(folder, monkeypatch, capsys):
    type_lines(
        monkeypatch,
        "",
        "# a comment",
        "fire -s2 -S7 -I in.png -C4",
        "fire -f",
        KeyboardInterrupt,
        "tree -I -1 -S -1 -s2 -C4",
        "-I -1 -s2 -C4 -S9",
        'invoke> "heart" -s1 -S1',
        "!fetch outputs/img-samples/000001.7.png",
        "!nothing",
        "!history",
        "-h",
        "q",
        "never reached",
    )
    run()
    out, err = capsys.readouterr()
    assert made(folder) == ["000001.7.png", "000002.7.png", "000003.9.png", "000004.1.png"]
    assert '"tree" -s 2 -S 7 -W 64 -H 64 -C 4.0 -I outputs/img-samples/000001.7.png' in out
    assert '"tree" -s 2 -S 9' in out  # the prompt of the picture, where none was typed
    assert "-f/--strength: expected one argument" in err and "there is no command !nothing" in err


def test_ctrl_c_stops_a_picture_not_the_program(folder, monkeypatch, capsys):
    real = studio.Studio.draw
    calls = []

    def draw(self, *args, **keywords):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(self, *args, **keywords)

    monkeypatch.setattr(studio.Studio, "draw", draw)
    type_lines(monkeypatch, "fire -s1 -S1", "fire -s1 -S2")
    run()
    assert "stopped" in capsys.readouterr().out and made(folder) == ["000001.2.png"]


def test_from_file(folder, capsys):
    (folder / "lines.txt").write_text(
        "# two\nfire -s1 -S1\nfire -f\nfire -s1 -S2\nq\nfire -s1 -S3\n"
    )
    run("--from_file", "lines.txt", status=1)
    assert made(folder) == ["000001.1.png", "000002.2.png"]
    assert "line 3: -f/--strength" in capsys.readouterr().err


def test_shell_switches_are_defaults_at_the_prompt(folder, monkeypatch, capsys):
    type_lines(monkeypatch, "fire -S1", "fire -S1 -s3")
    run("-s1", "-C4", "-o", "elsewhere")
    out = capsys.readouterr().out
    assert '"fire" -s 1 -S 1 -W 64 -H 64 -C 4.0' in out and '"fire" -s 3 -S 1' in out
    assert len(list((folder / "elsewhere").glob("*.png"))) == 2


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=30)


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words,
    st.fixed_dictionaries(
        {},
        optional={
            "-s": st.integers(1, 10_000),
            "-S": st.integers(0, 2**32 - 1),
            "-n": st.integers(1, 99),
            "-C": st.floats(0, 1000),
            "-f": st.floats(0, 1),
            "-v": st.floats(0, 1),
            "-W": st.integers(1, 9999),
            "-A": st.sampled_from(["k_lms", "ddim"]),
            "-I": words.filter(lambda w: w and not w.startswith(("-", "=", "~"))),
        },
    ),
    st.booleans(),
)
def test_any_line_is_read_as_written(prompt, switches, glued):
    quoted = '"' + prompt.replace("\\", "\\\\").replace('"', '\\"') + '"'
    rest = []
    for switch, value in switches.items():
        text = shlex.quote(repr(value) if isinstance(value, float) else str(value))
        rest.append(f"{switch}{text}" if glued and not text.startswith("-") else f"{switch} {text}")
    request = read_line(" ".join([quoted, *rest]))
    names = {"-s": "steps", "-S": "seed", "-n": "iterations", "-C": "guidance", "-f": "strength"}
    names |= {"-v": "variation_amount", "-W": "width", "-A": "sampler", "-I": "image"}
    assert request.recipe.prompt == prompt
    for switch, value in switches.items():
        owner = request if switch in ("-n", "-v") else request.recipe
        assert getattr(owner, names[switch]) == value
    line = dream_line(request.recipe)
    redrawn = read_line(line).recipe
    wanted = request.recipe
    if wanted.image is None:  # the line of a picture without an init image has no strength
        wanted = replace(wanted, strength=0.75)
    assert redrawn == wanted
    fields, notes = read_dream(line)
    assert minisd.Recipe(**fields) == wanted and notes == []


@pytest.mark.slow
@settings(max_examples=3000)
@given(st.text("fire-sSIfvAn 10.:\",#'\\!=_", max_size=40))
def test_any_line_is_understood_or_refused(line):
    try:
        request = read_line(line)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    # Everything before the first switch is the prompt, word by word.
    if not line.strip().startswith(('"', "-")):
        assert line.strip().startswith(request.recipe.prompt)


# ---- metadata ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_round_trip(folder, capsys):
    """minisd -> PNG -> recall -> minisd gives the same bytes."""
    Image.new("RGB", (70, 50), "orange").save("with space's.png")
    lines = [
        ["img2img", 'a "big" fire, it\'s [smoke] \\(x\\)', "-I", "with space's.png", "--fit"],
        ["img2img", "fire", "-I", "in.png", "-A", "ddim", "-f", "0.37", "-n2"],
        ["txt2img", "fire:2 tree+:1", "-x", "--schedule", "karras", "-n2", "-v.2", "-S3"],
        ["txt2img", "日本 fire", "-W96", "-H64", "-C", "3.3"],
    ]
    for line in lines:
        run(*line, "-s3")
    for path in sorted((folder / "outputs/img-samples").glob("*.png")):
        capsys.readouterr()
        run("recall", str(path))
        command = shlex.split(capsys.readouterr().out)
        assert command[0] == "minisd"
        run(*command[1:], "-o", "again")
        redrawn = max((folder / "again").glob("*.png"), key=lambda p: p.stat().st_mtime_ns)
        assert redrawn.read_bytes() == path.read_bytes(), command
        kind = "img2img" if "-I" in command else "txt2img"
        run(kind, "--from", str(path), "-o", "from")
        redrawn = max((folder / "from").glob("*.png"), key=lambda p: p.stat().st_mtime_ns)
        assert redrawn.read_bytes() == path.read_bytes()


def test_from_with_switches_beside_it(folder):
    run("txt2img", "fire", "-s3", "-S5", "-C4")
    run("txt2img", "--from", "outputs/img-samples/000001.5.png", "-S6")
    recipe = minisd.read_recipe("outputs/img-samples/000002.6.png")
    assert (recipe.prompt, recipe.steps, recipe.guidance, recipe.seed) == ("fire", 3, 4.0, 6)


def test_from_yields_to_a_typed_default(folder):
    """A typed switch counts even if its value is the default."""
    run("img2img", "fire", "-I", "in.png", "-s3", "-S5", "-C4", "-f.5")
    run("img2img", "--from", "outputs/img-samples/000001.5.png", "-C7.5", "-f.75")
    recipe = minisd.read_recipe("outputs/img-samples/000002.5.png")
    assert (recipe.guidance, recipe.strength, recipe.steps) == (7.5, 0.75, 3)


# A value of each field that is not its default, and the default as it is typed.
OTHER_VALUES = {
    "steps": (12, "50"),
    "seed": (7, None),
    "width": (96, None),
    "height": (96, None),
    "guidance": (6.5, "7.5"),
    "guidance_rule": ("rescale", None),
    "sampler": ("k_euler_a", "k_lms"),
    "schedule": ("karras", None),
    "image": ("x.png", None),
    "strength": (0.4, "0.75"),
    "mask": ("m.png", None),
    "variations": (((1, 0.5),), None),
    "clip_skip": (2, "1"),
    "dialect": ("diffusers", "minisd"),
    "negative_prompt": ("smoke", None),
    "options": ({"eta": 0.5}, None),
}
OTHER_REQUESTS = {
    ("-n", "--iterations"): ("iterations", 3, "1"),
    ("-v", "--variation_amount"): ("variation_amount", 0.2, "0"),
    ("--variants",): ("variants", 2, "0"),
    ("-o", "--outdir"): ("outdir", "elsewhere", "outputs/img-samples"),
    ("--steps-after",): ("steps_after", 5, None),
}


def spellings():
    """(switch and value, field, default) for each way to type a default or to take a value back."""
    for field, (_, typed) in OTHER_VALUES.items():
        for name in BY_FIELD[field].names:
            for value in filter(None, (typed, "default")):
                yield f"{name} {value}", field
                if name.startswith("--"):
                    yield f"{name}={value}", field
    for names, (field, _, typed) in OTHER_REQUESTS.items():
        for name in names:
            for value in filter(None, (typed, "default")):
                yield f"{name} {value}", field
    for field, name in TAKE_BACK.items():
        yield name, field


@pytest.mark.parametrize(("words", "field"), list(spellings()))
def test_every_typed_default_counts(words, field):
    """Over a picture's recipe, and over the defaults that were typed at the shell."""
    plain = Request()
    values = {name: value for name, (value, _) in OTHER_VALUES.items()}
    values |= {name: FLAGS[name] for name in FLAGS}
    base = replace(plain, recipe=minisd.Recipe("fire", **values), grid=True, wrong_anyway=True)
    base = replace(base, **{name: value for name, value, _ in OTHER_REQUESTS.values()})
    request = read_line(f"x {words}", base)
    owner, default = (
        (request, plain) if hasattr(plain, field) else (request.recipe, minisd.Recipe(""))
    )
    assert getattr(owner, field) == getattr(default, field)
    # Nothing else has changed.
    restored = replace(base.recipe, prompt="x")
    if hasattr(plain, field):
        assert replace(request, **{field: getattr(base, field)}).recipe == restored
    else:
        changed = {field: getattr(base.recipe, field)}
        assert replace(request.recipe, **changed) == restored


def test_every_switch_can_be_taken_back():
    assert OTHER_VALUES.keys() | FLAGS.keys() == BY_FIELD.keys()
    flags = {name for name in FLAGS} | {"grid", "wrong_anyway", "self_contained"}
    assert flags == TAKE_BACK.keys()


def test_options_are_added_and_taken_back():
    base = Request(minisd.Recipe("fire", options={"eta": 0.5}))
    assert read_line("x --set s_noise=1.0", base).recipe.options == {"eta": 0.5, "s_noise": 1.0}
    line = "x --set default --set order=2"
    assert read_line(line, base).recipe.options == {"order": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("txt2img --from a1111_plain.png -s 50 -C 7.5 -A k_lms", (50, 7.5, "k_lms", 0.75)),
        ("img2img --from a1111_img2img_04.png -I in.png -f 0.75 -s 4", (4, 6.5, "k_euler_a", 0.75)),
        ("txt2img --from a1111_plain.png -s 3", (3, 6.5, "k_euler_a", 0.75)),
    ],
)
def test_typed_defaults_beside_a_picture_are_written(folder, line, expected):
    words = shlex.split(line)
    words[2] = str(Path(__file__).parent / "data" / "reports" / words[2])
    run(*words, "-o", "out")
    (path,) = (folder / "out").glob("*.png")
    recipe = minisd.read_recipe(path)
    assert (recipe.steps, recipe.guidance, recipe.sampler, recipe.strength) == expected


def test_formats(folder):
    """InvokeAI's two chunks and AUTOMATIC1111's, as their own readers parse them."""
    run("img2img", "a fire [smoke, ash]", "-I", "in.png", "-s4", "-f.5", "-S5")
    text = Image.open("outputs/img-samples/000001.5.png").text
    stored = json.loads(text["sd-metadata"])
    assert stored["image"]["orig_hash"] == sha256("in.png")
    assert stored["image"] | {"orig_hash": None} == {
        **{"prompt": [{"prompt": "a fire [smoke, ash]", "weight": 1.0}], "steps": 4},
        **{"cfg_scale": 7.5, "threshold": 0, "perlin": 0, "width": 64, "height": 64, "seed": 5},
        **{"sampler": "k_lms", "variations": [], "type": "img2img", "postprocessing": None},
        **{"strength_steps": 0.5, "orig_hash": None},
    }
    first, second, last = text["parameters"].split("\n")
    assert (first, second) == ("a fire", "Negative prompt: smoke, ash")
    assert last.startswith("Steps: 4, Sampler: LMS, CFG scale: 7.5, Seed: 5, Size: 64x64, Model h")


A1111 = """a (cat:1.3), on a [mat]
Negative prompt: dog, bad
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 12, Size: 512x768, Model: "v1-5, pruned"
"""


def png(path, **texts):
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key.replace("_", "-") if key == "sd_metadata" else key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_recall_a1111(folder, capsys):
    run("recall", str(png("a.png", parameters=A1111)))
    out, err = capsys.readouterr()
    recipe = read_line(" ".join(shlex.quote(w) for w in shlex.split(out)[3:])).recipe
    assert shlex.split(out)[:3] == ["minisd", "txt2img", "a (cat:1.3), on a [mat]"]
    assert (recipe.dialect, recipe.negative_prompt) == ("a1111", "dog, bad")
    assert (recipe.steps, recipe.guidance, recipe.seed) == (20, 7, 12)
    assert (recipe.width, recipe.height) == (512, 768)
    assert (recipe.sampler, recipe.schedule) == ("k_dpmpp_2", "karras")
    assert "AUTOMATIC1111" in err and "its dialect a1111 is spoken" in err


def test_recall_metadata_alone(folder, capsys):
    image = {"prompt": [{"prompt": "fire", "weight": 2}, {"prompt": "sea", "weight": 1}]}
    image |= {"seed": 3, "steps": 7, "sampler": "ddim", "type": "img2img", "strength_steps": 0.5}
    stored = json.dumps({"app_id": "lstein/stable-diffusion", "image": image})
    run("recall", str(png("m.png", sd_metadata=stored)))
    out, err = capsys.readouterr()
    assert "'fire:2 sea:1' -s 7 -S 3" in out and "may not be ddim" in err


@pytest.mark.parametrize(
    "texts",
    [
        {"Dream": '"fire'},
        {"Dream": '"fire" -s many'},
        {"sd_metadata": "{"},
        {"sd_metadata": "[" * 100_000},
        {"sd_metadata": '{"image": 3}'},
        {"sd_metadata": '{"image": {"prompt": [{"prompt": "x", "weight": "y"}]}}'},
        {"parameters": "fire"},
        {"parameters": "fire\nSteps: 5, Seed: x, Sampler: LMS"},
        {"parameters": 'fire\nSteps: "\\u12", Seed: 1, Sampler: LMS'},
        {"other": "x"},
    ],
)
def test_broken_metadata_gets_one_line(folder, capsys, texts):
    run("recall", str(png("b.png", **texts)), status=1)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no settings that can be read" in err


def test_huge_text_is_refused(folder, capsys):
    info = PngInfo()
    info.add_text("Dream", "x" * 5_000_000, zip=True)  # 5 kB in the file
    Image.new("RGB", (8, 8)).save("bomb.png", pnginfo=info)
    run("recall", "bomb.png", status=1)
    assert "can't be read" in capsys.readouterr().err


def test_recalled_text_does_not_choose_the_folder_or_the_number(folder):
    png("x.png", Dream='"fire" -s 1 -S 1 -n 999 -g -o /somewhere --variants 99')
    run("txt2img", "--from", "x.png")
    assert made(folder) == ["000001.1.png"]


def test_recalled_text_does_not_choose_a_file_to_run(folder, capsys):
    (folder / "evil.py").write_text("raise SystemExit('run')\ndef f(): pass\n")
    png("x.png", Dream='"fire" -s 1 -S 1 -A evil.py:f --schedule evil.py:f -C evil.py:f')
    run("txt2img", "--from", "x.png")
    err = capsys.readouterr().err
    for name in ("sampler", "schedule", "guidance"):
        assert f"the {name} was evil.py:f, which is not run" in err


def test_switches_that_minisd_does_not_have_are_noted(folder, capsys):
    run("recall", str(png("x.png", Dream='"fire" -s 3 -S 1 --hires_fix -G 0.8 -C 4')))
    out, err = capsys.readouterr()
    assert shlex.split(out)[1:] == shlex.split("txt2img fire -s 3 -S 1 -C 4.0 -A k_lms")
    assert "no switch --hires_fix" in err and "no switch -G" in err


# ---- own functions, options of samplers, being wrong on purpose ----------------------------------

OWN = """
from minisd.samplers import Step

def jump(predict_eps, x, sigmas, factor=1.0):
    for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:])):
        eps = predict_eps(x, factor * sigma)
        x_next = x + (sigma_next - sigma) * eps
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next

def three(steps):
    return [14.0, 3.0, 1.0, 0.0]

def plain(eps_uncond, eps_cond, x, sigma):
    return eps_uncond + 4.0 * (eps_cond - eps_uncond)
"""


def test_functions_in_files(folder):
    (folder / "own.py").write_text(OWN)
    run("txt2img", "fire", "-s4", "-S1", "-C4", "-A", "k_euler")
    run("txt2img", "fire", "-s4", "-S1", "-C", "own.py:plain", "-A", "own.py:jump")
    euler, own = (Image.open(f"outputs/img-samples/{name}") for name in made(folder))
    assert euler.tobytes() == own.tobytes()
    run("txt2img", "fire", "-s3", "-S1", "--schedule", "own.py:three")
    assert "own.py:three" in Image.open(f"outputs/img-samples/{made(folder)[-1]}").text["Dream"]


def test_options_of_a_sampler(folder, capsys):
    run("txt2img", "fire", "-s3", "-S1", "-A", "ddim", "--set", "eta=0.5")
    recipe = minisd.read_recipe("outputs/img-samples/000001.1.png")
    assert recipe.options == {"eta": 0.5}
    run("txt2img", "fire", "-s3", "-S1", "-A", "ddim", "--set", "order=2", status=2)
    assert "ddim has no option 'order'; it has eta" in capsys.readouterr().err


def test_wrong_anyway(folder, capsys):
    """The network is asked about a tenth less noise than there is."""
    (folder / "own.py").write_text(OWN)
    words = ["txt2img", "fire", "-s3", "-S1", "-A", "own.py:jump", "--set", "factor=0.9"]
    run(*words, status=2)
    assert "sigma" in capsys.readouterr().err and made(folder) == []
    run(*words, "--wrong-anyway")
    assert "WRONG" in capsys.readouterr().err and made(folder) == ["000001.1.png"]


def test_help_lists_every_command(capsys):
    run("--help")
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "-h"])
        assert COMMANDS[name].help in capsys.readouterr().out.replace("\n", " ")
