"""Writing files: whole or not at all, never over other files, and under the next free name."""

import errno
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

import minisd
from minisd import files
from minisd.cli import studio
from minisd.cli.commands import explore, lab
from minisd.cli.commands.sweep import SHEET
from minisd.cli.main import main
from minisd.files import sha256, writing
from minisd.images import open_image
from minisd.observe import Trace, load_trace, save_trace
from minisd.observe.trace_file import is_trace
from minisd.recipes.variations import seed_chain
from minisd.sweeps.driver import Order
from minisd.sweeps.folder import NOTES, Folder
from minisd.sweeps.model import Source
from minisd.sweeps.table import TABLE

ROOT = Path(__file__).parent.parent
LINK = os.link  # tests replace it
PIXELS = Image.new("RGB", (8, 8), "orange")
SHEET_BYTES = files.png_bytes(PIXELS, files.MARK)
PAGE = b'<!doctype html>\n<meta charset="utf-8">\n<meta name="generator" content="minisd">\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def no_links(*_: object) -> None:
    """os.link on FAT and many network shares."""
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.fixture(params=["links", "no links"])
def file_system(request, monkeypatch):
    """Both kinds of file systems: those with hard links, and those without."""
    if request.param == "no links":
        monkeypatch.setattr(writing.os, "link", no_links)


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---- whole files ---------------------------------------------------------------------------------


def test_a_file_is_written(folder, file_system):
    assert files.write_file(Path("a.txt"), b"new") == Path("a.txt")
    assert names_in(folder) == ["a.txt"] and Path("a.txt").read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(os.stat("a.txt").st_mode) == 0o666 & ~umask


def make_taken(kind: str) -> Path:
    """Something at the name taken.png that minisd did not make."""
    path = Path("taken.png")
    Path("other.png").write_bytes(SHEET_BYTES if kind == "link to a sheet" else b"mine")
    if kind == "text":
        path.write_text("mine")
    elif kind == "empty file":
        path.touch()
    elif kind == "picture":
        PIXELS.save(path)
    elif kind == "half a sheet":
        path.write_bytes(SHEET_BYTES[:30])
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "hard link":
        LINK("other.png", path)
    elif kind == "link to nothing":
        path.symlink_to("nowhere.png")
    else:
        path.symlink_to("other.png")
    return path


TAKEN = ["text", "empty file", "picture", "half a sheet", "folder", "pipe", "hard link"]
TAKEN += ["link", "link to nothing", "link to a sheet"]


def state_of(folder: Path) -> dict[str, object]:
    """All that is in the folder, with contents, times and places."""
    state: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(facts.st_mode) else None
        state[str(path)] = (facts.st_mode, facts.st_ino, facts.st_mtime_ns, data)
        if path.is_dir():
            state[str(path)] = facts.st_ino
    return state


@pytest.mark.parametrize("kind", TAKEN)
def test_a_taken_name_stays_as_it_is(folder, file_system, kind):
    path = make_taken(kind)
    before = state_of(folder)
    with pytest.raises(FileExistsError, match=r"could not write taken\.png: a file of that name"):
        files.write_file(path, b"new")
    with pytest.raises(FileExistsError):
        files.write_file(path, b"new", files.is_marked)
    assert state_of(folder) == before
    assert files.write_first(files.beside(path), b"new") == Path("taken-2.png")
    assert Path("taken-2.png").read_bytes() == b"new"


def test_the_mark_is_what_may_be_replaced(folder, file_system):
    path = Path("sheet.png")
    path.write_bytes(SHEET_BYTES)
    with pytest.raises(FileExistsError):
        files.write_file(path, b"new")
    assert path.read_bytes() == SHEET_BYTES
    assert files.write_file(path, b"new", files.is_marked) == path
    assert path.read_bytes() == b"new" and names_in(folder) == ["sheet.png"]


@pytest.mark.parametrize("call", ["open", "link", "replace", "fsync"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(folder, monkeypatch, file_system, call, failure):
    path = Path("a.png")

    def fail(*_: object, **__: object) -> None:
        raise failure

    if call == "open":
        monkeypatch.setattr(Path, "write_bytes", half_written(fail))
    elif call == "link":
        monkeypatch.setattr(writing.os, "link", fail)
        monkeypatch.setattr(writing.os, "replace", fail)
    else:
        monkeypatch.setattr(writing.os, call, fail)
    if call == "replace" and os.link is LINK:
        path.write_bytes(SHEET_BYTES)  # with hard links, only replacing needs a rename
    before = state_of(folder)
    with pytest.raises((OSError, KeyboardInterrupt)) as error:
        files.write_file(path, b"new", files.is_marked)
    assert state_of(folder) == before
    if isinstance(failure, OSError):
        assert str(error.value) == "could not write a.png: No space left"


def half_written(fail):
    """Path.write_bytes on a disk that becomes full."""

    def write(path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data[:1])
        fail()

    return write


def test_a_name_that_is_taken_after_the_check(folder, monkeypatch):
    """Without hard links, too, another program that is faster keeps its file."""

    def other_program_is_faster(_: Path, path: Path) -> None:
        Path(path).write_bytes(b"mine")
        no_links()

    monkeypatch.setattr(writing.os, "link", other_program_is_faster)
    with pytest.raises(FileExistsError):
        files.write_file(Path("a.png"), b"new")
    assert names_in(folder) == ["a.png"] and Path("a.png").read_bytes() == b"mine"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Unix")
@pytest.mark.parametrize("moment", ["fsync", "link"])
def test_a_killed_program_leaves_no_half_file(folder, moment):
    """It is killed when the data are written, before the file has its name."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from minisd.files import writing\n"
        f"writing.os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "writing.write_file(Path('a.png'), b'x' * 100_000)\n"
    )
    done = run_python(code, folder)
    assert done.returncode == -9
    left = names_in(folder)
    assert len(left) == 1 and left[0].startswith(".") and left[0].endswith(".part")
    assert files.write_file(Path("a.png"), b"new").read_bytes() == b"new"


def test_numbers_and_names_go_on(folder):
    assert files.next_number(folder) == 1
    for name in ("000001.7.png", "000012.3.strip.png", "x.png", "000099.txt"):
        Path(name).touch()
    assert files.next_number(folder) == 13
    names = [path.name for path in islice(files.numbered(folder, 13, "7.png"), 2)]
    assert names == ["000013.7.png", "000014.7.png"]
    names = [path.name for path in islice(files.beside(Path("a.b.html")), 3)]
    assert names == ["a.b.html", "a.b-2.html", "a.b-3.html"]
    with pytest.raises(FileExistsError):
        files.write_first([Path("x.png")] * 3, b"new")


def test_a_named_file_whose_name_was_taken_meanwhile(folder, monkeypatch):
    """It gets the next free name, and a file of minisd's own at that name is not replaced."""
    Path("sheet.png").write_text("mine")
    Path("sheet-2.png").write_bytes(SHEET_BYTES)
    with pytest.warns(UserWarning, match=r"made by another program: written to sheet-3\.png"):
        assert files.write_named(Path("sheet.png"), b"new") == Path("sheet-3.png")
    assert Path("sheet.png").read_text() == "mine"
    assert Path("sheet-2.png").read_bytes() == SHEET_BYTES


# ---- marks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "marked"),
    [
        (SHEET_BYTES, True),
        (PAGE, True),
        (b"", False),
        (b"text", False),
        (b"<!doctype html><title>page</title>", False),
        (b"<!doctype html>" + b" " * 1000 + PAGE, False),
        (SHEET_BYTES[:20], False),
        (files.png_bytes(PIXELS, {}), False),
        (files.png_bytes(PIXELS, {"Software": "GIMP"}), False),
        (files.png_bytes(PIXELS, {"Title": "minisd"}), False),
        (files.png_bytes(PIXELS, {"Dream": '"fire" -s 1', "Software": "minisd 2"}), False),
    ],
)
def test_marks(folder, data, marked):
    Path("a").write_bytes(data)
    assert files.is_marked(Path("a")) == marked


def test_a_mark_is_found_in_a_large_picture_and_no_bomb_goes_off(folder):
    info = PngInfo()
    info.add_text("Software", "x" * 5_000_000, zip=True)
    PIXELS.save("bomb.png", pnginfo=info)
    assert not files.is_marked(Path("bomb.png"))
    header = bytearray(SHEET_BYTES)
    header[16:24] = (1 << 20).to_bytes(4, "big") * 2  # width and height
    Path("huge.png").write_bytes(header)
    assert not files.is_marked(Path("huge.png"))


def test_texts_of_a_picture(folder):
    """What a file's name holds cannot stop a picture from being saved."""
    texts = {"Dream": '"火 fire"', "Title": "plain", "Comment": "-I caf\udce9.png"}
    Path("a.png").write_bytes(files.png_bytes(PIXELS, texts))
    with Image.open("a.png") as image:
        assert image.text["Dream"] == '"火 fire"' and image.text["Title"] == "plain"
        assert image.text["Comment"] == r"-I caf\udce9.png"
        assert image.tobytes() == PIXELS.tobytes()


def test_traces_and_weights(folder):
    """A trace replaces a trace, but neither weights nor another program's latents."""
    trace = Trace()
    save_trace(trace, "a.safetensors")
    assert is_trace(Path("a.safetensors"))
    trace.noised_sigma = 2.0
    save_trace(trace, "a.safetensors")
    assert load_trace("a.safetensors").noised_sigma == 2
    foreign = {"weights": {"minisd": "{}"}, "latents": None}
    for name, metadata in foreign.items():
        path = folder / f"{name}.safetensors"
        save_file({"x": torch.zeros(1), "sigma": torch.zeros(1)}, path, metadata)
        before = path.read_bytes()
        with pytest.raises(FileExistsError):
            save_trace(trace, path)
        assert path.read_bytes() == before
    Path("text.safetensors").write_text("mine")
    with pytest.raises(FileExistsError):
        save_trace(trace, "text.safetensors")
    assert not list(folder.glob(".*"))


# ---- checks before the work ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new", "new/newer/newest", ".", "a folder.png"])
def test_folders_that_can_be_used(folder, name):
    (folder / "a folder.png").mkdir()
    before = state_of(folder)
    assert files.check_folder(name) == Path(name)
    assert state_of(folder) == before  # the check creates nothing
    assert files.open_folder(name).is_dir() and files.open_folder(name).is_dir()


def read_only_folder() -> Path | None:
    """A folder in which not even the superuser can create files."""
    return next((path for path in (Path("/proc/self"), Path("/sys")) if path.is_dir()), None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "cannot write to file: it is a file, not a folder"),
        ("file/new/er", "cannot write to file/new/er: file is a file, not a folder"),
        ("link to nothing", "it is a file, not a folder"),
        ("out.png", "should be a folder"),
        ("x" * 300, "File name too long"),
        (read_only_folder(), "cannot write to"),
    ],
)
def test_folders_that_cannot_be_used(folder, name, message):
    if name is None:
        pytest.skip("no folder is read-only to all")
    Path("file").touch()
    Path("link to nothing").symlink_to("nowhere")
    before = state_of(folder)
    for function in (files.check_folder, files.open_folder):
        with pytest.raises((OSError, ValueError), match=message):
            function(name)
    assert state_of(folder) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind")
def test_a_folder_without_permission(folder):
    (folder / "locked").mkdir(mode=0o555)
    with pytest.raises(OSError, match="cannot write to locked: Permission denied"):
        files.check_folder("locked")


def test_home_folders(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert files.open_folder("~/pictures") == folder / "home/pictures"
    assert files.check_file("~/pictures/a.png", "sheet.png") == folder / "home/pictures/a.png"
    assert files.check_folder("~nobody-has-this-name") == Path("~nobody-has-this-name")


@pytest.mark.parametrize("kind", [kind for kind in TAKEN if kind != "folder"])
def test_named_files_that_are_taken(folder, kind):
    path = make_taken(kind)
    before = state_of(folder)
    with pytest.raises(FileExistsError, match=r"taken\.png (exists already|is a link)"):
        files.check_file(path, "sheet.png")
    assert state_of(folder) == before


def test_named_files(folder):
    Path("folder.png").mkdir()
    Path("file").touch()
    Path("sheet.png").write_bytes(SHEET_BYTES)
    assert files.check_file("sheet.PNG", "sheet.png") == Path("sheet.PNG")
    assert files.check_file("sheet.png", "sheet.png") == Path("sheet.png")
    assert files.check_file("new/sheet.png", "sheet.png") == Path("new/sheet.png")
    problems = {
        "folder.png": r"folder\.png is a folder: name a file, as in folder\.png/sheet\.png",
        "folder": "folder should end in .png, as in folder.png",
        "a.jpg": r"a\.jpg should end in \.png, as in a\.png",
        ".png": "should end in",
        "file/a.png": "cannot write to file: it is a file, not a folder",
        "x" * 300 + ".png": "File name too long",
    }
    for name, message in problems.items():
        with pytest.raises((OSError, ValueError), match=message):
            files.check_file(name, "sheet.png")
    assert names_in(folder) == ["file", "folder.png", "sheet.png"]


SPELLINGS = ["in.png", "./in.png", "sub/../in.png", "hard.png", "link.png"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_that_is_read_is_not_written(folder, spelling):
    """Not even a sheet of minisd's own, and under no other name."""
    Path("in.png").write_bytes(SHEET_BYTES)
    Path("sub").mkdir()
    os.link("in.png", "hard.png")
    Path("link.png").symlink_to("in.png")
    for path, file in ((spelling, "in.png"), ("in.png", spelling)):
        with pytest.raises(FileExistsError, match="is read by this command"):
            files.check_file(path, "sheet.png", [None, file])


# ---- the commands --------------------------------------------------------------------------------


@pytest.fixture
def drawing(folder, monkeypatch, emoji) -> Path:
    """A folder with a drawing and two traces, in which commands share one loaded model."""
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    image = open_image(ROOT / "docs/pictures/fire-sketch.png").resize((64, 64))
    image.save("in.png")
    Image.new("L", (64, 64)).save("mask.png")
    trace = Trace()
    with trace:
        minisd.txt2img(emoji, "fire", steps=2, seed=1, guidance=1, observe=trace)
    save_trace(trace, "t1.safetensors")
    save_trace(trace, "t2.safetensors")
    return folder


def run(line: str, status: int = 0) -> None:
    assert main(shlex.split(line)) == status


def pictures(folder: str = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).glob("*.png"))


@pytest.fixture
def no_work(monkeypatch):
    """Commands fail if they load a model, compare traces or test a sampler."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("minisd.cli.studio.load", fail)
    monkeypatch.setattr("minisd.cli.commands.diff.compare", fail)
    monkeypatch.setattr(lab, "certify", fail)
    monkeypatch.setattr(explore, "make_page", fail)


# With the name of the file at the end. All but the first read in.png.
NAMED_FILES = [
    "diff t1.safetensors t2.safetensors --to",
    "strip fire -I in.png -M mask.png -s 2 -S 1 --to",
    "explore fire -I in.png -s 1 -f 0 -o",
    "lab k_euler --html",
]


@pytest.mark.parametrize("line", NAMED_FILES, ids=lambda line: line.split()[0])
@pytest.mark.parametrize("kind", TAKEN)
def test_files_of_others_are_refused_before_the_work(drawing, no_work, capsys, line, kind):
    path = make_taken(kind)
    if line.split()[-1] != "--to":
        path = path.rename("taken.html")
    before = state_of(drawing)
    run(f"{line} {path}", status=2)
    out, err = capsys.readouterr()
    assert err.startswith(f"minisd: {path} ") and err.count("\n") == 1 and not out
    assert state_of(drawing) == before


@pytest.mark.parametrize("line", NAMED_FILES, ids=lambda line: line.split()[0])
@pytest.mark.parametrize("name", ["in.png/a", "a.txt", "a", "x" * 300])
def test_wrong_names_are_refused_before_the_work(drawing, no_work, capsys, line, name):
    ending = ".png" if line.endswith("--to") else ".html"
    if name[-3:] not in ("txt", "a") or "/" in name:
        name += ending
    before = state_of(drawing)
    run(f"{line} {name}", status=2)
    assert capsys.readouterr().err.count("\n") == 1
    assert state_of(drawing) == before


@pytest.mark.parametrize("name", ["in.png", "mask.png", "./in.png", "link.png", "hard.png"])
def test_the_init_image_and_the_mask_are_not_overwritten(drawing, no_work, capsys, name):
    """Not even if they are sheets of minisd."""
    for file in ("in.png", "mask.png"):
        image = Image.open(file).convert("L" if file == "mask.png" else "RGB")
        Path(file).write_bytes(files.png_bytes(image, files.MARK))
    Path("link.png").symlink_to("mask.png")
    os.link("in.png", "hard.png")
    before = state_of(drawing)
    run(f"strip fire -I in.png -M mask.png -s 2 -S 1 --to {name}", status=2)
    assert "is read by this command" in capsys.readouterr().err
    assert state_of(drawing) == before


@pytest.mark.parametrize(
    "line",
    [
        "txt2img fire -s 1 -o",
        "img2img fire -I in.png -s 2 -o",
        "strip fire -s 2 -o",
        "strip fire -s 2 --to a.png --traces",
        "diff t1.safetensors t2.safetensors -o",
        "sweep fire -s 2 --to",
        "attention fire -I in.png -s 2 -o",
    ],
)
@pytest.mark.parametrize("name", ["file", "file/new", "x" * 300, read_only_folder()])
def test_wrong_folders_are_refused_before_the_work(drawing, no_work, capsys, line, name):
    if name is None:
        pytest.skip("no folder is read-only to all")
    Path("file").write_text("mine")
    before = state_of(drawing)
    run(f"{line} {name}", status=2)
    assert capsys.readouterr().err.count("\n") == 1
    assert state_of(drawing) == before


def test_mistakes_leave_no_folder(drawing):
    """A folder is created only when the picture is about to be drawn."""
    for line in ("txt2img fire -A nosuch", "img2img fire -I none.png", "strip fire -A nosuch"):
        run(f"{line} -o new/folder", status=2)
    run("strip fire -I none.png --to new/sheet.png --traces new/traces", status=2)
    run("sweep fire -I none.png --to new", status=2)
    assert not Path("new").exists()


@pytest.mark.slow
def test_named_files_of_minisd_are_replaced(drawing):
    """A command with --to can be repeated; its folder is created."""
    for strength in (0.5, 1):
        run(f"strip fire -I in.png -s 2 -f {strength} -S 1 -C 1 --to new/sheet.png --traces new")
        assert f"-f {float(strength)}" in Image.open("new/sheet.png").text["Description"]
        run("diff t1.safetensors t2.safetensors --to new/diff.png")
        run(f"explore fire -I in.png -s 2 -f 0,{strength} -S 1 -o new/page.html")
        assert Path("new/page.html").read_text().count('"strength":') == 2
    assert names_in(Path("new")) == [
        *("diff.png", "page.html"),
        *(f"s2-f{f}-k_lms-S1.safetensors" for f in (0.5, 1)),
        "sheet.png",
    ]
    assert files.is_marked(Path("new/diff.png")) and files.is_marked(Path("new/page.html"))


def test_documented_sheets_can_be_drawn_again():
    """The commands in docs/ write over the pictures that are there."""
    text = (ROOT / "docs/see-every-step.md").read_text(encoding="utf-8")
    names = re.findall(r"--to (docs/pictures/[\w.-]+)", text)
    assert len(names) == 5
    for name in names:
        assert files.check_file(ROOT / name, "sheet.png") == ROOT / name


def test_drawn_pictures_are_not_sheets(drawing, no_work, monkeypatch, emoji):
    """--to replaces no picture that was drawn: it may be the only one."""
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    run("txt2img fire -s 1 -S 1 -o out")
    data = Path("out/000001.1.png").read_bytes()
    run("strip fire -s 1 -S 1 --to out/000001.1.png", status=2)
    assert Path("out/000001.1.png").read_bytes() == data


def test_traces_of_others_are_not_replaced(drawing, no_work, capsys):
    Path("t").mkdir()
    save_file({"x": torch.zeros(1)}, "t/s2-f0.7-k_lms-S1.safetensors")
    before = state_of(drawing)
    run("strip fire -I in.png -s 2 -f 0.4,0.7 -S 1 --to a.png --traces t", status=2)
    assert "t/s2-f0.7-k_lms-S1.safetensors exists already" in capsys.readouterr().err
    assert state_of(drawing) == before


def test_two_traces_of_one_name_are_refused(drawing, no_work, capsys):
    """Two samplers in files can have one name as part of a file's name."""
    for name in ("a-b.py", "a b.py"):
        Path(name).write_text("from minisd.samplers import k_euler as f\n")
    run("strip fire -s 2 -S 1 -A 'a-b.py:f,a b.py:f' --to a.png --traces t", status=2)
    assert "the same file name" in capsys.readouterr().err and not Path("t").exists()


def test_the_default_page_gets_the_next_free_name(drawing, monkeypatch, capsys):
    """Another program makes explorer.html while the page is made."""

    def slowly(*args: object) -> str:
        Path("explorer.html").write_text("mine")
        return explore_page(*args)

    explore_page = explore.make_page
    monkeypatch.setattr(explore, "make_page", slowly)
    run("explore fire -I in.png -s 1 -f 0 -S 1")
    assert capsys.readouterr().out.splitlines()[-1].startswith("explorer-2.html: ")
    assert Path("explorer.html").read_text() == "mine"
    run("explore fire -I in.png -s 1 -f 0 -S 1 -o page.html")
    Path("page.html").unlink()
    Path("explorer.html").rename("page.html")


# ---- pictures: the next free number --------------------------------------------------------------


def faster(names: Iterator[str]):
    """os.link, where another process takes each of these names first."""

    def take(temporary: Path, path: Path) -> None:
        name = next(names, None)
        if name is not None:
            path.with_name(name).write_text("theirs")
        LINK(temporary, path)

    return take


@pytest.mark.parametrize("count", [1, 3])
def test_a_drawn_picture_gets_the_next_free_number(drawing, monkeypatch, count):
    theirs = [f"{n:06}.7.png" for n in range(1, count + 1)]
    monkeypatch.setattr(writing.os, "link", faster(iter(theirs)))
    run("txt2img fire -s 1 -S 7 -n 3 -g -o out")
    second, third = seed_chain(7, 3)[1:]
    ours = [f"{count + 1:06}.7.png", f"000001.{second}.png", f"000001.{third}.png"]
    assert pictures() == sorted([*theirs, *ours, "000001.7.grid.png"])
    assert all(Path("out", name).read_text() == "theirs" for name in theirs)
    assert minisd.read_recipe(Path("out", ours[0])).seed == 7
    log = Path("out/minisd_log.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in log[:3]] == [f"out/{name}" for name in ours]


def test_without_hard_links_too(drawing, monkeypatch):
    def other_process_is_faster(_: Path, path: Path) -> None:
        if path.name.startswith("000001"):
            path.write_text("theirs")
        no_links()

    monkeypatch.setattr(writing.os, "link", other_process_is_faster)
    run("txt2img fire -s 1 -S 7 -o out")
    assert pictures() == ["000001.7.png", "000002.7.png"]
    assert minisd.read_recipe("out/000002.7.png").seed == 7


def test_variants_that_have_the_seeds_of_the_series(drawing):
    """The variants' seeds follow from the picture's seed, as those of -n do."""
    run("img2img fire -I in.png -s 2 -f 0.5 -C 1 -S 7 -n 2 --variants 1 -o out")
    second, third = seed_chain(7, 3)[1:]
    assert pictures() == sorted(
        ["000001.7.png", f"000001.{second}.png", f"000002.{second}.png", f"000001.{third}.png"]
    )
    first = minisd.read_recipe(f"out/000001.{second}.png")  # the variant of the first picture
    assert first.image == "out/000001.7.png"
    assert init_hash(f"out/000001.{second}.png") == sha256("out/000001.7.png")
    assert init_hash(f"out/000001.{third}.png") == sha256(f"out/000002.{second}.png")
    assert init_hash(f"out/000002.{second}.png") == sha256("in.png")


def test_sheets_get_the_next_free_number(drawing, monkeypatch):
    for line, ending in (
        ("strip fire -s 2 -S 1 -C 1 -o out", "1.strip.png"),
        ("diff t1.safetensors t2.safetensors -o out", "diff.png"),
        ("attention fire -I in.png -s 2 -f 1 -S 1 -o out", "1.attention.png"),
    ):
        number = len(pictures()) + 1
        theirs, ours = (f"{n:06}.{ending}" for n in (number, number + 1))
        with monkeypatch.context() as patch:
            patch.setattr(writing.os, "link", faster(iter([theirs])))
            run(line)
        assert Path("out", theirs).read_text() == "theirs"
        assert files.is_marked(Path("out", ours))


# ---- the log -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "pipe", "full disk", "link to nothing", "read-only"])
def test_a_log_that_cannot_be_written_costs_a_note(drawing, monkeypatch, capsys, kind):
    log = Path("out") / studio.LOG
    log.parent.mkdir()
    if kind == "folder":
        log.mkdir()
    elif kind == "pipe":
        os.mkfifo(log)
    elif kind == "full disk":
        monkeypatch.setattr(studio, "append_line", full_disk)
    elif kind == "link to nothing":
        log.symlink_to("/nowhere/log")
    elif os.geteuid() == 0:
        log.symlink_to("/proc/version")
    else:
        log.touch(0o444)
    run("txt2img fire -s 1 -S 1 -n 3 -o out")
    out, err = capsys.readouterr()
    assert len(pictures()) == 3 and out.count("[1/3]") == out.count("[3/3]") == 1
    notes = err.splitlines()
    assert len(notes) == 3 and all("note: the log has no line" in note for note in notes)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_log_has_one_line_for_each_picture(drawing):
    """Control characters are escaped, and so are bytes that are not text."""
    run("txt2img fire -s 1 -S 1 -o out")
    Path("caf\udce9.png").write_bytes(Path("in.png").read_bytes())
    words = ["img2img", "fire\n\x07", "-I", "caf\udce9.png", "-s2", "-S1", "-o", "out"]
    assert main(words) == 0
    log = (Path("out") / studio.LOG).read_text(encoding="utf-8").split("\n")
    assert len(log) == 3 and log[2] == ""
    assert r'"fire\n\x07"' in log[1] and r"caf\udce9.png" in log[1]


# ---- what pictures say ---------------------------------------------------------------------------


def init_hash(path: str) -> str | None:
    with Image.open(path) as image:
        return json.loads(image.text["sd-metadata"])["image"]["orig_hash"]


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="Unix")
def test_a_pipe_has_no_hash(drawing, capsys):
    """It can be read only once."""
    os.mkfifo("pipe.png")
    code = "import shutil; shutil.copyfileobj(open('in.png', 'rb'), open('pipe.png', 'wb'))"
    with subprocess.Popen([sys.executable, "-c", code]):
        run("img2img fire -I pipe.png -s 2 -f 0.5 -S 1 -o out")
    read_end, write_end = os.pipe()
    os.write(write_end, Path("in.png").read_bytes())
    os.close(write_end)
    run(f"img2img fire -I /dev/fd/{read_end} -s 2 -f 0.5 -S 1 -o out")
    os.close(read_end)
    run("img2img fire -I in.png -s 2 -f 0.5 -S 1 -o out")
    hashes = [init_hash(f"out/{name}") for name in pictures()]
    assert hashes == [None, None, sha256("in.png")]
    data = {Image.open(f"out/{name}").tobytes() for name in pictures()}
    assert len(data) == 1
    run("recall out/000002.1.png")
    assert "e3b0c442" not in capsys.readouterr().err  # the hash of no bytes at all


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_an_init_image_that_changes_during_the_drawing(drawing, monkeypatch, change):
    """The hash is that of the bytes that were drawn on, and no picture is lost."""
    shutil.copy("in.png", "mine.png")
    original = sha256("mine.png")
    draw = studio.Studio.draw

    def draw_and_change(self, *args, **keywords):
        if change == "edited":
            PIXELS.save("mine.png")
        else:
            Path("mine.png").unlink(missing_ok=True)
        return draw(self, *args, **keywords)

    monkeypatch.setattr(studio.Studio, "draw", draw_and_change)
    run("img2img fire -I mine.png -s 2 -f 0.5 -S 1 -n 2 -o out")
    assert [init_hash(f"out/{name}") for name in pictures()] == [original, original]


def test_an_init_image_that_changes_between_two_lines(drawing):
    """In one session, each picture has the hash of its own init image."""
    Path("lines").write_text(
        "fire -I mine.png -s2 -f.5 -S1 -o out\nfire -I mine.png -s2 -f.5 -S2 -o out\n"
    )
    shutil.copy("in.png", "mine.png")
    draw = studio.Studio.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            studio.Studio,
            "draw",
            lambda self, *args, **keywords: (
                draw(self, *args, **keywords),
                Path("mine.png").write_bytes(files.png_bytes(Image.new("RGB", (64, 64)), {})),
            )[0],
        )
        run("--from_file lines")
    first, second = (init_hash(f"out/{name}") for name in pictures())
    assert first == sha256("in.png") and second == sha256("mine.png")


def test_a_checkpoint_that_is_removed_during_the_drawing(drawing, monkeypatch, emoji, capsys):
    sd = replace(emoji, path=Path("removed.safetensors"))
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: sd)
    run("txt2img fire -s 1 -S 1 -n 2 -o out")
    assert len(pictures()) == 2
    assert capsys.readouterr().err.count("will not name the checkpoint") == 1


@pytest.mark.slow
def test_a_sweep_s_pictures_hold_their_recipes(drawing, capsys):
    run("sweep 'fire, noto' -I in.png -f 0.5,1 -s 2,4 -S 1 -C 4 --to out")
    capsys.readouterr()
    assert len(pictures("out/pictures")) == 4
    for name in pictures("out/pictures"):
        recipe = minisd.read_recipe(Path("out/pictures", name))
        assert name.startswith(f"f{recipe.strength:g}-s{recipe.steps}-k_lms-S1-")
        assert (recipe.prompt, recipe.guidance, recipe.width) == ("fire, noto", 4, 64)
        assert init_hash(f"out/pictures/{name}") == sha256("in.png")
        run(f"img2img --from out/pictures/{name} -I in.png -o again")
        drawn = Image.open(f"again/{pictures('again')[-1]}")
        swept = Image.open(f"out/pictures/{name}")
        # In a batch sums are rounded differently: a level or two of 255.
        assert np.abs(np.asarray(drawn, int) - np.asarray(swept, int)).max() <= 2
    with Image.open(f"out/{SHEET}") as sheet:
        assert sheet.text["Title"] == '"fire, noto", k_lms, seed 1, guidance 4.0'
        lines = sheet.text["Description"].split("\n")
    assert len(lines) == 4 and lines[3] == (
        '"fire, noto" -s 4 -S 1 -W 64 -H 64 -C 4.0 -I in.png -A k_lms -f 1.0'
    )


@pytest.mark.slow
def test_sheets_hold_their_settings(drawing, emoji):
    run("strip 'fire [smoke]' -I in.png -f 0.5 -s 4 -S 3 -C 4 --to one.png")
    run("strip fire -I in.png -f 0.5,1 -s 4 -S 3 -C 4 --to two.png")
    run("diff t1.safetensors t2.safetensors --to diff.png")
    run("attention 'red fire' -I in.png -s 2 -f 1 -S 3 -o out")
    with Image.open("two.png") as sheet:
        assert sheet.text["Title"] == '"fire", 4 steps, k_lms, seed 3, guidance 4.0'
        first, second = sheet.text["Description"].split("\n")
        assert first.endswith("-f 0.5") and second.endswith("-f 1.0") and "Dream" not in sheet.text
        assert f"SHA-256 {sha256(emoji.path)}), float32, minisd" in sheet.text["Comment"]
    recipe = minisd.read_recipe("one.png")
    assert (recipe.full_prompt, recipe.strength, recipe.seed) == ("fire [smoke]", 0.5, 3)
    recipe = minisd.read_recipe("out/000001.3.attention.png")
    assert (recipe.prompt, recipe.strength, recipe.width) == ("red fire", 1, 64)
    with Image.open("diff.png") as sheet:
        assert sheet.text["Title"] == "A: A; B: B" and sheet.text["Description"] == "{}\n{}"
    for name in ("one.png", "two.png", "diff.png", "out/000001.3.attention.png"):
        assert files.is_marked(Path(name))


# ---- sweeps --------------------------------------------------------------------------------------

SWEEP = "sweep fire -s 2,3 -S 1 -C 1 --to out"


@pytest.mark.parametrize("name", [SHEET, TABLE, NOTES])
@pytest.mark.parametrize("kind", ["edited", "link"])
def test_a_sweep_s_file_that_someone_changed(drawing, no_work, monkeypatch, emoji, name, kind):
    """A sheet that was painted on, a table with a column more, links: they stay as they are."""
    with monkeypatch.context() as patch:
        patch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
        run(SWEEP)
    path = Path("out", name)
    if kind == "link":
        path.rename("elsewhere")
        path.symlink_to("../elsewhere")
    elif name == TABLE:
        path.write_text(path.read_text().replace("file,", "file,mine,", 1))
    elif name == SHEET:
        Image.open(path).convert("RGB").save(path)
    else:
        path.write_text("[]")
    before = state_of(drawing)
    run(SWEEP, status=2)
    assert state_of(drawing) == before


def test_a_sweep_does_not_draw_on_its_own_sheet(drawing, capsys):
    run(SWEEP)
    before = state_of(drawing)
    run(f"sweep fire -I out/{SHEET} -s 2 -S 1 -C 1 --to out", status=2)
    assert "is read by this command" in capsys.readouterr().err
    assert state_of(drawing) == before


def test_a_sweep_of_another_checkpoint(drawing, emoji, capsys):
    """Two checkpoints may have one name; their pictures are not mixed in one folder."""
    run(SWEEP)
    shutil.copy(emoji.path, "other.safetensors")
    with open("other.safetensors", "ab") as file:
        file.write(b"\0")
    for switches, words in (
        ("--model other.safetensors", "another checkpoint"),
        ("--vae other.safetensors", "another vae"),
        ("--ema", "another ema"),
        ("--dtype bfloat16", "another dtype"),
        ("--exact", "another exact"),
    ):
        run(f"{SWEEP} {switches}", status=2)
        assert f"holds a sweep with {words}: choose another folder" in capsys.readouterr().err


def test_two_processes_with_one_sweep(drawing, no_work, capsys):
    """The second one ends at once, with a line that says why."""
    with Folder(Path("out"), Order(Source(), Source().facts()).settings()):
        before = state_of(drawing)
        run(SWEEP, status=2)
        assert "another process is drawing into out: wait for it" in capsys.readouterr().err
        assert state_of(drawing) == before


# ---- in processes of their own -------------------------------------------------------------------


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-B", "-c", code]
    return subprocess.run(
        words, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


# No file may grow beyond `limit` bytes: the system refuses that as it refuses to write to a full
# disk. Each command has a folder of its own. Its status, its last error and its files are printed.
FULL_DISK = """
import contextlib, io, json, os, resource, shlex
import minisd
from minisd.cli import studio
from minisd.cli.main import main
from minisd.files import writing

def no_links(*_):
    raise PermissionError(1, "Operation not permitted")

sd = minisd.load()
studio.load = lambda *_, **__: sd
link = os.link
for i, (line, limit, links) in enumerate({runs!r}):
    os.mkdir(f"{{i}}")
    os.link = link if links else no_links
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        status = main(shlex.split(line.replace("OUT", f"{{i}}")))
    files = sorted(name for _, _, names in os.walk(f"{{i}}") for name in names)
    print(json.dumps([status, (errors.getvalue().splitlines() or [""])[-1], files]))
"""
WRITERS = [
    "txt2img fire -s 1 -S 1 -o OUT/new",
    "img2img fire -I in.png -s 2 -f 0.5 -S 1 -n 2 -g --variants 1 -o OUT",
    "strip fire -s 1 -S 1 -o OUT",
    "strip fire -s 1 -S 1 --to OUT/a.png",
    "strip fire -s 1 -S 1 --to OUT/a.png --traces OUT/t",
    "diff t1.safetensors t2.safetensors -o OUT",
    "diff t1.safetensors t2.safetensors --to OUT/a.png",
    "sweep fire -s 1 -S 1 --to OUT",
    "attention fire -I in.png -s 1 -f 1 -S 1 -o OUT",
    "explore fire -I in.png -s 1 -f 0 -o OUT/a.html",
    "lab k_euler --html OUT/a.html",
    f"convert {ROOT}/weights/emoji.safetensors OUT/a.safetensors",
]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux")
@pytest.mark.parametrize(
    "writers", [WRITERS[3:6], pytest.param(WRITERS, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_full_disk(drawing, writers):
    """It leaves no file, with hard links and without. A full log costs a note."""
    Path("log").mkdir()
    (Path("log") / studio.LOG).write_text("x" * 20_000)
    runs: list[tuple[str, int, bool]] = [
        ("txt2img fire -s 1 -S 1 -n 2 -o log", 19_000, True),
        ("sweep fire -s 1 -S 1 --to OUT", 1500, True),
        *((line, 20, True) for line in writers),
        *((line, 20, False) for line in writers),
    ]
    done = run_python(FULL_DISK.format(runs=runs), drawing)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    full_log, sweep, *results = (json.loads(line) for line in lines)
    assert full_log[0] == 0 and "note: the log has no line" in full_log[1]
    assert "File too large" in full_log[1] and len(pictures("log")) == 2
    assert sweep[0] == 2 and "could not write 1/pictures/s1-k_lms-S1-" in sweep[1]
    assert sweep[2] == [NOTES] and "checkpoint" in json.loads(Path("1", NOTES).read_text())
    assert len(results) == 2 * len(writers)
    for (line, *_), (status, error, left) in zip(runs[2:], results, strict=True):
        assert (status, left) == (2, []), line
        assert error.startswith("minisd: could not write ") and "File too large" in error, line


@pytest.mark.slow
def test_two_processes_with_one_seed(folder):
    lines = [f"txt2img fire -s 8 -S 7 -C {guidance} -n 2 -o out" for guidance in (3, 9)]
    code = "from minisd.cli.main import main; raise SystemExit(main({words!r}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-B", "-c", code.format(words=shlex.split(line))],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for line in lines
    ]
    assert [process.wait() for process in processes] == [0, 0]
    recipes = [minisd.read_recipe(Path("out", name)) for name in pictures()]
    assert sorted((recipe.guidance, recipe.seed) for recipe in recipes) == sorted(
        (guidance, seed) for guidance in (3, 9) for seed in seed_chain(7, 2)
    )
    assert len((Path("out") / studio.LOG).read_text().splitlines()) == 4
