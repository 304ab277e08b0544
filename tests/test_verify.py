"""`minisd verify` and the record in a picture: each cause is named when only that is changed."""

import io
import json
import struct
import zlib
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import minisd
from minisd.cli.main import main
from minisd.exact_mode import exact
from minisd.files import png_bytes
from minisd.proof import verdict as module
from minisd.proof.pytest_plugin import Pins, draw_exactly, trace_of
from minisd.proof.record import (
    ENTRIES,
    IMAGE_CHUNK,
    KEY,
    MAX_TEXT,
    as_png,
    enclosures,
    environment,
    picture_hash,
    read_enclosures,
    read_record,
    record_of,
)
from minisd.proof.verdict import changes, distance, verify
from minisd.recipes import Recipe, prepare
from minisd.recipes.metadata import Model, read_chunks, texts

from .exact_pins import picture
from .small_model import small_model

MODEL = Model("small", "ab" * 32, "float32", "0.1.0")


@pytest.fixture(scope="module")
def small():
    return small_model()


@pytest.fixture(scope="module")
def sketch(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("init") / "sketch.png"
    picture(16, 16).save(path)
    return path


def write(
    path: Path, sd, recipe: Recipe, image=None, mask=None, change=None, enclose=False
) -> Path:
    """A picture as the command line writes it. `change` edits its chunks, pixels and record."""
    with exact():
        job = prepare(recipe, sd, image, mask)
        drawn = job.draw().image
        record = record_of(job, job.recipe, MODEL, drawn)
    chunks = texts(job.recipe, drawn.size, MODEL)
    if change is not None:
        drawn = change(chunks, record, drawn) or drawn
    enclosed = enclosures(recipe) if enclose else {}
    path.write_bytes(png_bytes(drawn, chunks | {KEY: json.dumps(record)}, chunks=enclosed))
    return path


SETTINGS = {"prompt": "fire", "steps": 4, "seed": 4, "guidance": 2.0, "strength": 0.6}


# ---- the record ----------------------------------------------------------------------------------


def test_the_record_names_what_drew_the_picture(tmp_path, small, sketch):
    path = write(tmp_path / "a.png", small, Recipe(**SETTINGS, image=sketch))
    record = read_record(read_chunks(path))
    assert record["checkpoint"] == MODEL.sha256 and record["minisd"] and record["torch"]
    assert (record["device"], record["dtype"], record["exact"]) == ("cpu", "float32", True)
    assert record["threads"] == torch.get_num_threads()
    assert record["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert record["pixels"] == picture_hash(Image.open(path))
    assert record["init_image"] == picture_hash(Image.open(sketch))
    assert record["line"] == read_chunks(path)["Dream"]
    assert record.keys() <= ENTRIES.keys()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1"])
def test_self_contained_pictures_keep_the_init_image_without_loss(tmp_path, mode):
    init = picture(20, 12, alpha=mode == "RGBA").convert(mode)
    init.save(tmp_path / "init.png")
    mask = Image.new("1", (20, 12))
    mask.putpixel((3, 4), 1)
    mask.save(tmp_path / "mask.png")
    recipe = Recipe("fire", image=tmp_path / "init.png", mask=tmp_path / "mask.png")
    data = png_bytes(Image.new("RGB", (4, 4)), {}, chunks=enclosures(recipe))
    (tmp_path / "out.png").write_bytes(data)
    image, stored_mask = read_enclosures(tmp_path / "out.png")
    assert np.array_equal(np.asarray(image), np.asarray(minisd.images.open_image(init)))
    assert stored_mask.mode == "1" and np.array_equal(np.asarray(stored_mask), np.asarray(mask))


# ---- the three answers ---------------------------------------------------------------------------


def test_identical(tmp_path, small, sketch):
    path = write(tmp_path / "a.png", small, Recipe(**SETTINGS, image=sketch))
    verdict = verify(path, small, MODEL, sketch)
    assert verdict.line() == "identical (exact mode, float32 on cpu)" and verdict.status == 0


def test_within_rounding(tmp_path, small, sketch):
    def change(chunks, record, drawn):
        values = np.asarray(drawn).copy()
        values[0, :4, 0] ^= 1
        del record["pixels"]
        record["exact"] = False
        return Image.fromarray(values)

    path = write(tmp_path / "a.png", small, Recipe(**SETTINGS, image=sketch), change=change)
    with exact():
        verdict = verify(path, small, MODEL, sketch)
    assert verdict.word == "within rounding" and verdict.status == 1
    assert "4 of 768 values differ, by 1 at most" in verdict.line()
    assert "exact mode: now on, and it was off" in verdict.line()


def test_a_self_contained_picture_needs_no_file(tmp_path, small, sketch):
    path = write(tmp_path / "a.png", small, Recipe(**SETTINGS, image=sketch), enclose=True)
    assert verify(path, small, MODEL).status == 0
    bare = write(tmp_path / "b.png", small, Recipe(**SETTINGS, image=sketch))
    with pytest.raises(ValueError, match=r"was drawn on another picture .*sketch.png.*-I"):
        verify(bare, small, MODEL)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", minisd.SAMPLERS)
def test_all_samplers_are_identical_in_exact_mode(tmp_path, small, sketch, sampler):
    settings = SETTINGS | {"sampler": sampler, "steps": 3, "strength": 1.0}
    path = write(tmp_path / "a.png", small, Recipe(**settings, image=sketch))
    assert verify(path, small, MODEL, sketch).word == "identical"


def test_inpainting_and_text_to_image(tmp_path, small):
    picture(16, 16, alpha=True).save(tmp_path / "hole.png")
    recipe = Recipe(**SETTINGS, image=tmp_path / "hole.png")
    path = write(tmp_path / "a.png", small, recipe, enclose=True)
    assert verify(path, small).word == "identical"
    path = write(tmp_path / "b.png", small, Recipe("fire", steps=1, seed=1))
    assert verify(path, small).word == "identical"


# ---- twelve causes -------------------------------------------------------------------------------


def recorded(**entries):
    """The record says this, and the pixels are another picture's: the run of that other cause."""

    def change(chunks, record, drawn):
        record.update(entries)
        values = 255 - np.asarray(drawn)
        record["pixels"] = picture_hash(Image.fromarray(values))
        return Image.fromarray(values)

    return change


def other_sampler(chunks, record, drawn):
    chunks["Dream"] = chunks["Dream"].replace("-A k_lms", "-A k_euler_a")
    assert "k_euler_a" in chunks["Dream"]


def painted_over(chunks, record, drawn):
    values = np.asarray(drawn).copy()
    values[4:8] = 255
    return Image.fromarray(values)


CAUSES = {
    "checkpoint": (recorded(checkpoint="cd" * 32), "another checkpoint: its SHA-256 is abab"),
    "autoencoder": (recorded(autoencoder="ef" * 32), "another autoencoder: its SHA-256"),
    "averages": (recorded(ema=True), "training averages: now False, and it was True"),
    "prediction": (recorded(prediction="v"), "another prediction: now eps, and it was v"),
    "minisd": (recorded(minisd="0.0.1"), "another version of minisd: 0.1.0, and it was 0.0.1"),
    "dtype": (recorded(dtype="bfloat16", exact=False), "another dtype: float32, and it was bfl"),
    "device": (recorded(device="cuda", exact=False), "another device: cpu, and it was cuda"),
    "torch": (recorded(torch="1.0", exact=False), "another version of torch: 2"),
    "processor": (recorded(instructions="NEON", exact=False), "other instructions of the"),
    "exact mode": (recorded(exact=False), "exact mode: now on, and it was off"),
    "sampler": (other_sampler, "the sampler was k_lms, and now is k_euler_a"),
    "painted over": (painted_over, "the picture itself was changed after it was drawn"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_is_named(tmp_path, small, sketch, name):
    change, words = CAUSES[name]
    path = write(tmp_path / "a.png", small, Recipe(**SETTINGS, image=sketch), change=change)
    with exact() if name == "exact mode" else torch.inference_mode():
        verdict = verify(path, small, MODEL, sketch)
    assert verdict.word == "different" and verdict.status == 3
    assert verdict.causes[0].removeprefix("its settings were changed: ").startswith(words[:40])
    assert words in verdict.line() and "\n" not in verdict.line()
    if name not in ("device", "torch", "processor", "dtype", "exact mode"):
        assert len(verdict.causes) == 1, verdict.causes


def test_another_init_image_is_named(tmp_path, small, sketch):
    path = write(tmp_path / "a.png", small, Recipe(**SETTINGS, image=sketch))
    verdict = verify(path, small, MODEL, Image.new("RGB", (16, 16), "red"))
    assert verdict.causes == (
        "another init image: its pixels differ from those that were drawn on",
    )


def test_another_mask_is_named(tmp_path, small, sketch):
    masks = []
    for side in (8, 4):
        mask = Image.new("L", (16, 16), 255)
        mask.paste(0, (0, 0, side, side))
        mask.save(tmp_path / f"{side}.png")
        masks.append(tmp_path / f"{side}.png")
    path = write(tmp_path / "a.png", small, Recipe(**SETTINGS, image=sketch, mask=masks[0]))
    assert verify(path, small, MODEL, sketch, masks[0]).word == "identical"
    assert verify(path, small, MODEL, sketch, masks[1]).causes == ("another mask",)


def test_search_finds_the_sampler(tmp_path, small, sketch, monkeypatch):
    def change(chunks, record, drawn):
        other_sampler(chunks, record, drawn)
        record["line"] = chunks["Dream"]

    monkeypatch.setattr(module, "SAMPLERS", {"k_heun": 0, "k_lms": 0})
    monkeypatch.setattr(module, "SCHEDULES", {})
    settings = SETTINGS | {"steps": 4}
    path = write(tmp_path / "a.png", small, Recipe(**settings, image=sketch), change=change)
    verdict = verify(path, small, MODEL, sketch, search=True)
    assert "with the sampler k_lms it is the same" in verdict.line()


def test_pictures_of_older_versions_have_no_record(tmp_path, small):
    path = write(tmp_path / "a.png", small, Recipe("fire", steps=1, seed=1))
    image = Image.open(path).convert("RGB")
    chunks = {k: v for k, v in read_chunks(path).items() if k != KEY}
    path.write_bytes(png_bytes(image, chunks))
    assert verify(path, small, MODEL).word in ("identical", "within rounding")
    path.write_bytes(png_bytes(Image.eval(image, lambda v: 255 - v), chunks))
    assert "it has no record of the files" in verify(path, small, MODEL).line()


def test_harmless_changes_are_no_causes_in_exact_mode():
    then = environment(torch.device("cpu"), "float32") | {"exact": True, "torch": "2.10"}
    now = then | {"torch": "2.13", "threads": 7, "device": "cuda", "instructions": ""}
    assert changes(then, now) == []
    assert len(changes(then | {"exact": False}, now | {"exact": False})) == 4


# ---- hostile pictures ----------------------------------------------------------------------------


def with_text(path: Path, **chunks: str) -> Path:
    path.write_bytes(png_bytes(Image.new("RGB", (16, 16)), chunks))
    return path


DREAM = '"fire" -s 1 -S 1 -A k_lms'
RECORDS = {
    "not JSON": "{",
    "a list": "[]",
    "deep": "[" * 20_000,
    "huge": '{"line": "' + "a" * MAX_TEXT + '"}',
    "a number": "1" * 5000,
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_hostile_record_is_refused_in_one_line(tmp_path, small, name):
    path = with_text(tmp_path / "a.png", Dream=DREAM, **{KEY: RECORDS[name]})
    with pytest.raises(ValueError, match="its record") as caught:
        verify(path, small)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_entries_of_another_type_are_left_out():
    stored = {"threads": "4", "exact": 1, "torch": ["2"], "device": "cpu" * 500, "other": 1}
    record = read_record({KEY: json.dumps(stored)})
    assert record.keys() == {"device"} and len(record["device"]) == 200


@pytest.mark.parametrize("threads", [-1, 0, 10**9])
def test_the_number_of_threads_is_limited(tmp_path, small, threads):
    before = torch.get_num_threads()
    record = json.dumps({"threads": threads})
    verify(with_text(tmp_path / "a.png", Dream=DREAM, **{KEY: record}), small)
    assert torch.get_num_threads() == before


def test_no_file_is_opened_that_the_user_did_not_name(tmp_path, small, monkeypatch):
    secret = tmp_path / "secret.png"
    picture(16, 16).save(secret)
    pictures = [
        with_text(tmp_path / "a.png", Dream=f"{DREAM} -I {secret}"),
        with_text(tmp_path / "b.png", Dream=f"{DREAM} -I {secret} -M {secret}"),
        with_text(tmp_path / "c.png", Dream=f"{DREAM} -I ../{tmp_path.name}/secret.png"),
    ]
    opened = []
    monkeypatch.setattr(
        "builtins.open", lambda path, *args, _open=open, **kw: opened.append(str(path)) or _open(
            path, *args, **kw)
    )  # fmt: skip
    before = sorted(tmp_path.iterdir())
    for path in pictures:
        with pytest.raises(ValueError, match="name that with -I"):
            verify(path, small)
    assert sorted(tmp_path.iterdir()) == before
    assert not any("secret" in name for name in opened)


def test_a_picture_that_names_code_runs_none(tmp_path, small):
    path = with_text(tmp_path / "a.png", Dream=f"{DREAM} -A evil.py:run --schedule evil.py:run")
    (tmp_path / "evil.py").write_text("raise SystemExit")
    assert verify(path, small).word == "different"


def test_a_bomb_inside_a_picture_is_refused(tmp_path, small):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(
            ">I", zlib.crc32(name + data))  # fmt: skip

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
    for content in (bomb, b"not a picture", b"", as_png(Image.new("RGB", (8, 8)))[:-30]):
        info = {IMAGE_CHUNK: content}
        data = png_bytes(Image.new("RGB", (16, 16)), {"Dream": f"{DREAM} -I x.png"}, chunks=info)
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(ValueError, match=r"the picture inside .* cannot be read") as caught:
            verify(tmp_path / "a.png", small)
        assert "\n" not in str(caught.value)


def test_a_text_that_unpacks_to_gigabytes_is_refused(tmp_path, small, capsys):
    info = PngInfo()
    info.add_text("Dream", "a" * (2 << 20), zip=True)
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "PNG", pnginfo=info)
    (tmp_path / "a.png").write_bytes(data.getvalue())
    assert main(["verify", str(tmp_path / "a.png")]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 3


def test_a_text_that_asks_for_a_gigantic_picture_is_not_drawn(tmp_path, small):
    for words in ("-W 16384 -H 16384", f"-I {tmp_path}/x.png"):
        path = with_text(tmp_path / "a.png", Dream=f"{DREAM} {words} -s 10000")
        large = Image.new("L", (4096, 4096)) if "-I" in words else None
        assert "the sizes differ" in verify(path, small, image=large).line()


def test_distance():
    a, b = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), (0, 3, 0))
    assert distance(a, b) == (12, 4, 3)
    assert distance(a, Image.new("RGB", (2, 1))) == (0, 0, 255)


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    picture(64, 64).save(tmp_path / "init.png")
    words = ["fire", "-I", str(tmp_path / "init.png"), "-s", "1", "-f", "1", "-S", "3"]
    out = ["-o", str(tmp_path / "out")]
    assert main(["img2img", *words, *out, "--self-contained"]) == 0
    (path,) = (tmp_path / "out").glob("*.png")
    files = sorted(tmp_path.rglob("*"))
    (tmp_path / "init.png").rename(tmp_path / "moved.png")
    capsys.readouterr()
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: identical (float32 on cpu)\n"
    assert main(["verify", str(path), "-I", str(tmp_path / "moved.png")]) == 0
    (tmp_path / "moved.png").rename(tmp_path / "init.png")
    assert sorted(tmp_path.rglob("*")) == files
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "none.png"), str(tmp_path / "init.png")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


# ---- pins ----------------------------------------------------------------------------------------


class Request:
    def __init__(self, sd):
        self.sd = sd

    def getfixturevalue(self, name):
        return self.sd


def test_pins_of_pictures(tmp_path, small):
    pins, update = (Pins(tmp_path, flag, Request(small)) for flag in (False, True))
    recipe = Recipe("fire", steps=1, seed=3)
    with pytest.raises(pytest.fail.Exception, match="there is no pin"):
        pins.check("a.png", recipe)
    update.check("a.png", recipe)
    pins.check("a.png")
    pins.check("a.png", recipe)
    with pytest.raises(pytest.fail.Exception, match=r"a.png: \d+ of 768 values differ"):
        pins.check("a.png", Recipe("fire", steps=1, seed=4))
    drawn, _ = draw_exactly(recipe, small, None, None)
    shifted = Image.fromarray(np.asarray(drawn) ^ 1)
    pins.check("a.png", shifted, tolerance=1)
    with pytest.raises(pytest.fail.Exception, match="by 1 at most"):
        pins.check("a.png", shifted)
    update.check("a.png", shifted)
    pins.check("a.png", shifted)


def test_pins_of_traces(tmp_path, small):
    pins, update = (Pins(tmp_path, flag, Request(small)) for flag in (False, True))
    with exact():
        trace = trace_of(Recipe("fire", steps=2, seed=3), small)
    update.check("a.safetensors", trace)
    pins.check("a.safetensors")
    other = trace_of(Recipe("fire", steps=2, seed=4), small)
    with pytest.raises(pytest.fail.Exception, match=r"x is off by .* at step 1 of 2"):
        pins.check("a.safetensors", other, tolerance=1e-3)


def test_the_plugin_is_an_entry_point():
    names = {entry.value for entry in entry_points(group="pytest11")}
    if not any(entry.name == "minisd" for entry in entry_points(group="console_scripts")):
        pytest.skip("minisd is not installed")
    if "minisd.proof.pytest_plugin" not in names:
        pytest.skip("minisd was installed before it had the plugin")
