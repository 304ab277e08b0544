"""Odd text and odd terminals: what is read, what is shown, and what Ctrl-C and Tab do."""

import contextlib
import io
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import minisd
from minisd.cli import main as main_module
from minisd.cli.commands.prompt import checked, one_line, read_lines
from minisd.cli.completion import completions
from minisd.cli.main import main
from minisd.cli.messages import did_you_mean, in_words, visible
from minisd.cli.streams import Output
from minisd.recipes.dream import split_line

REPORTS = Path(__file__).parent / "data" / "reports"
COMMAND = [sys.executable, "-m", "minisd"]


@pytest.fixture(scope="module", autouse=True)
def one_model(emoji):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def pictures(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


def type_lines(monkeypatch, *lines):
    answers = iter([*lines, "q"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))


# ---- lists in many encodings ---------------------------------------------------------------------

LIST = "fire é -s1 -S1\n# 火\n火 water -s1 -S2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("standard_input", [False, True])
def test_lists_in_unicode_encodings(monkeypatch, tmp_path, encoding, line_end, standard_input):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    data = mark + LIST.replace("\n", line_end).encode(encoding)
    (tmp_path / "list.txt").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    lines = read_lines("-" if standard_input else str(tmp_path / "list.txt"))
    assert [line.decode() for line in lines] == LIST.splitlines()


def test_a_list_with_a_byte_order_mark_is_drawn_as_written(folder):
    """The mark is not part of the first prompt, and a comment behind it is a comment."""
    (folder / "list.txt").write_bytes("\ufeff# a comment\nfire é -s1 -S1\n".encode())
    assert main(["--from_file", "list.txt"]) == 0
    assert pictures(folder) == ["000001.1.png"]
    assert minisd.read_recipe(next(folder.rglob("*.png"))).prompt == "fire é"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("é fire -s1 -S1\nfire -s1 -S2\n".encode("latin-1"), "line 1: the line is not UTF-8"),
        ("fire é -s1\nfire -s1 -S2\n".encode("cp1252"), "line 1: the line is not UTF-8"),
        (
            b"fire \x1b[31m -s1\nfire -s1 -S2\n",
            r"line 1: the line has the control character '\x1b'",
        ),
        (b"f\0i\0r\0e\0\nfire -s1 -S2\n", r"line 1: the line has the control character '\x00'"),
        ("fire \x85 -s1\nfire -s1 -S2\n".encode(), r"line 1: the line has the control character"),
    ],
)
def test_lines_that_are_not_text_are_named(folder, capsys, data, says):
    """Each is reported and skipped; the next line is drawn."""
    (folder / "list.txt").write_bytes(data)
    assert main(["--from_file", "list.txt"]) == 1
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err and "\x1b" not in err
    assert pictures(folder) == ["000001.2.png"]


def test_damaged_utf_16_is_refused(folder, capsys):
    (folder / "list.txt").write_bytes("fire".encode("utf-16") + b"\0")
    assert main(["--from_file", "list.txt"]) == 2
    assert "list.txt is not valid UTF-16" in capsys.readouterr().err


def test_lines_typed_in_another_encoding(folder, monkeypatch, capsys):
    """Python has lone surrogates for such bytes. The session goes on."""
    type_lines(monkeypatch, "fire \udce9 -s1", "fire -s1 -S2")
    assert main([]) == 0
    assert "the line is not UTF-8" in capsys.readouterr().err
    assert pictures(folder) == ["000001.2.png"]


@pytest.mark.parametrize("line", ["火 é -o 'a b' # x", "a\tb", "👨‍👩‍👧 -s3", "שלום", ""])
def test_text_of_all_languages_is_text(line):
    assert checked(line) == line


# ---- words of a line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fire -o out/run#2 -s2", ["-o", "out/run#2", "-s2"]),
        ("fire -I a#b#.png", ["-I", "a#b#.png"]),
        ("fire -I 'x # y.png' -s2", ["-I", "x # y.png", "-s2"]),
        ('fire -I "x # y.png" -s2', ["-I", "x # y.png", "-s2"]),
        (r"fire -I x\ #y.png", ["-I", "x #y.png"]),
        (r"fire -I \#y.png", ["-I", "#y.png"]),
        ("fire -s2 # a remark -s3", ["-s2"]),
        ("fire -s2 #a remark -s3", ["-s2"]),
        ("fire -s2\t# it's a remark", ["-s2"]),
        ('"fire" # a remark', []),
        ('"a # b" -s2', ["-s2"]),
    ],
)
def test_comments_begin_at_the_start_of_a_word(line, words):
    assert split_line(line)[1] == words


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('"fire" said the cat', "'said' follows the closing quotation mark"),
        ("fire -I it's.png", "there is no closing quotation mark"),
        ("fire -I x\\", "nothing follows the last backslash"),
    ],
)
def test_quotation_marks(line, says):
    with pytest.raises(ValueError, match=says):
        split_line(line)


def test_a_tilde_is_the_home_folder(folder, monkeypatch, capsys):
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    Image.new("RGB", (64, 64), "red").save(home / "in.png")
    (home / "own.py").write_text("from minisd.samplers import k_euler as f\n")
    (folder / "list.txt").write_text("fire -s2 -S1 -I ~/in.png -f.5 -o ~/drawn -A ~/own.py:f\n")
    assert main(["--from_file", "list.txt"]) == 0
    assert pictures(home / "drawn") == ["000001.1.png"]
    assert main(["txt2img", "fire", "-s1", "-S2", "--outdir=~/drawn"]) == 0
    assert main(["txt2img", "--from=~/drawn/000001.1.png", "-S3", "--outdir=~/drawn"]) == 0
    assert main(["strip", "fire", "-s1", "-S1", "--to=~/s.png", "--traces=~/traces"]) == 0
    assert main(["recall", "~/drawn/000001.1.png"]) == 0
    assert f"-I {home}/in.png" in capsys.readouterr().out
    assert (home / "s.png").exists() and len(pictures(home / "drawn")) == 3
    assert not (folder / "~").exists()


def test_a_picture_of_a_stranger_does_not_learn_the_home_folder(folder, capsys):
    """Only what is typed is expanded."""
    info = PngInfo()
    info.add_text("Dream", '"fire" -s 1 -S 1 -I ~/in.png')
    Image.new("RGB", (8, 8)).save("x.png", pnginfo=info)
    main(["recall", "x.png"])
    out, err = capsys.readouterr()
    assert str(folder) not in out + err and "'~/in.png'" in out


# ---- what is shown -------------------------------------------------------------------------------

ESCAPES = "a \x1b[31mfire\x1b[0m \x1b]0;owned\x07 \x9b2J \u202eoto\u202c\r\nminisd: all is well"
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def test_visible():
    assert visible("火 é 👨‍👩‍👧\ta") == "火 é 👨‍👩‍👧\\ta"
    assert visible(ESCAPES).isprintable() and "\\x1b[31mfire" in visible(ESCAPES)
    assert visible("\udcff\u2028\n") == "\\udcff\\u2028\\n"
    assert in_words(OSError(28, "No space left on device")) == "No space left on device"


def png(path, **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    Image.new("RGB", (64, 64), "red").save(path, pnginfo=info)
    return str(path)


@pytest.mark.parametrize(
    "texts",
    [
        {"Dream": f'"{ESCAPES}" -s 1 -S 1 --\x1b[31m 3'},
        {"parameters": f"{ESCAPES}\nSteps: 1, Sampler: \x1b[31mEuler, CFG scale: 7, Seed: 1"},
        {"Dream": f"'{ESCAPES}"},
        {"sd-metadata": '{"image": {"prompt": [{"prompt": "\x1b[31m", "weight": "\x07"}]}}'},
    ],
)
def test_a_strangers_picture_does_not_steer_the_terminal(folder, capsys, monkeypatch, texts):
    file = png("x.png", **texts)
    main(["recall", file])
    main(["txt2img", "--from", file, "-s1"])
    main(["img2img", "-I", file, "-s1"])
    type_lines(monkeypatch, f"!fetch {file}", f"-I {file} -s1")
    main([])
    out, err = capsys.readouterr()
    assert not FORBIDDEN.search(out + err)
    assert "\nminisd: all is well" not in out.replace("recall", "") + err
    log = folder / "outputs/img-samples/minisd_log.txt"
    if log.exists():
        lines = log.read_text().splitlines()
        assert len(lines) == len(pictures(log.parent)) and not FORBIDDEN.search("".join(lines))


def test_recall_of_control_characters_is_for_a_shell(folder, capsys):
    """bash, zsh and others read $'\\x1b' as that character."""
    main(["recall", png("x.png", Dream='"it\'s \x1b\\\\n fire" -s 1 -S 1')])
    line = capsys.readouterr().out
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line.removeprefix('minisd txt2img')}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.splitlines()[0] == "it's \x1b\\n fire"


def test_fetched_lines_can_be_typed(folder, monkeypatch):
    prompt = "a fire\non a \x1bhill"
    assert one_line(prompt) == "a fire on a hill"
    assert checked(one_line(ESCAPES))
    emoji = minisd.load()
    assert emoji.tokenizer.ids(one_line("a fire\r\n  on it")) == emoji.tokenizer.ids("a fire on it")


def test_names_of_files_that_are_not_text(folder, capsys):
    """As on other systems' disks. The picture is drawn, and its text names the file in escapes."""
    name = os.fsdecode(b"dr\xffwing.png")
    Image.new("RGB", (64, 64), "red").save("in.png")
    os.rename("in.png", name)
    words = ["img2img", "fire", "-I", name, "-s2", "-S1", "-f.5", "-o", os.fsdecode(b"out\xff")]
    assert main(words) == 0
    assert pictures(folder) == ["000001.1.png", name]
    (drawn,) = [path for path in folder.rglob("*.png") if path.name == "000001.1.png"]
    assert "dr\\udcffwing.png" in Image.open(drawn).text["Dream"]
    assert "dr\\udcffwing.png" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["txt2img", "strip", "sweep", "explain"])
def test_a_prompt_that_is_not_text_is_refused_at_once(folder, capsys, monkeypatch, command):
    monkeypatch.setattr("minisd.cli.studio.load", None)  # the model is not loaded
    assert main([command, os.fsdecode(b"fire \xff"), "-s2"]) == 2
    (err,) = capsys.readouterr().err.splitlines()
    assert err == "minisd: the prompt is not text in UTF-8 at character 6, '\\udcff'"
    assert not (folder / "outputs").exists()


# ---- messages that say what to do ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("txt2img fire -S 5000000000", "5000000000 is not between -999 and 4294967295"),
        (f"txt2img fire -S {'9' * 5000}", "'9999999999999999999999999999999999999999...' is not"),
        ("txt2img fire -S -1", "earlier seed, but none was made yet (leave -S out for a new seed)"),
        ("img2img fire -I -1", "-I -1 means an earlier picture, but none was made yet"),
        ("txt2img a red fire -s 3", "'red fire' belongs to no switch: put a prompt or a file name"),
        ("txt2img fire --sede 3", "there is no switch --sede 3 (did you mean --seed?)"),
        ("txt2img fire --fit", "--fit is for a picture to draw on: use minisd img2img"),
        ("img2img fire --fitt", "there is no switch --fitt (did you mean --fit?)"),
        ("txt2img fire -A k_lsm", "FILE.py:FUNCTION (did you mean k_lms?)"),
        ("txt2img fire --schedule karas", "FILE.py:FUNCTION (did you mean karras?)"),
        ("explian -s 3", "(did you mean explain?)"),
        ("fire", 'To draw, type minisd txt2img "a prompt"'),
        ("--from_fil x", "there is no file"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(folder, capsys, words, says):
    if words.startswith("--from_fil"):
        says = "x: No such file"  # a switch may be shortened
    with contextlib.suppress(SystemExit):
        main(shlex.split(words))
    (err,) = capsys.readouterr().err.splitlines()
    assert says in err and len(err) < 900


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("!fetch", "!fetch needs a picture"),
        ("!fech x", "did you mean !fetch?"),
        ("!99999999999999999999", "there is no line 99999999999999999999 in the history"),
        ("!" + "9" * 5000, "there is no command"),
        ("!history 99999999999999999999", ""),
        ("!0", "there is no line 0"),
        ("fire -S -1", "leave -S out for a new seed"),
        ("fire -s 3 4", "'4' belongs to no switch"),
    ],
)
def test_mistakes_at_the_prompt_do_not_end_it(folder, monkeypatch, capsys, line, says):
    type_lines(monkeypatch, line, "fire -s1 -S5")
    assert main([]) == 0
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err
    assert pictures(folder) == ["000001.5.png"]


@pytest.mark.parametrize("word", ["q", "quit", "exit"])
def test_words_that_quit(folder, monkeypatch, word):
    type_lines(monkeypatch, word, "fire -s1")
    assert main([]) == 0 and pictures(folder) == []
    (folder / "list.txt").write_text(f"{word}\nfire -s1\n")
    assert main(["--from_file", "list.txt"]) == 0 and pictures(folder) == []


def test_what_is_cut_off_is_not_shown_whole(folder, capsys):
    """The negative prompt too is a text, and 100 kB of words are not printed."""
    assert main(["txt2img", "fire [" + "smoke " * 20_000 + "]", "-s1"]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "too long" in line]
    assert re.match(r"note: the text is 19925 tokens too long; cut off: 'smoke .* \.\.\.'$", note)
    assert len(note) < 300


def test_did_you_mean():
    names = ["--fit", "--seed", "-s", "!fetch"]
    assert did_you_mean("--seeed", names) == " (did you mean --seed?)"
    assert did_you_mean("fech", names) == " (did you mean !fetch?)"
    assert did_you_mean("--qqq", names) == ""


# ---- output that cannot be written ---------------------------------------------------------------


class Full(io.RawIOBase):
    """A stream whose disk is full, or whose reader is gone."""

    def __init__(self, number):
        self.number = number

    def writable(self):
        return True

    def write(self, data):
        if self.number == 0:
            return len(data)
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "fails"), [(28, True), (32, False), (9, False), (5, True)])
def test_output_never_raises(number, fails):
    disk = Full(number)
    output = Output(io.TextIOWrapper(io.BufferedWriter(disk, 8), line_buffering=True))
    for _ in range(3):
        print("text", file=output)
    output.flush()
    assert output.failure == (os.strerror(number) if fails else None)
    disk.number = 0  # the stream writes once more when it is closed


def test_output_to_a_closed_stream():
    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    print("text", file=Output(stream))
    print("text", file=Output(None))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16-le"])
def test_output_in_every_encoding(encoding):
    data = io.BytesIO()
    output = Output(io.TextIOWrapper(data, encoding=encoding))
    print("火 é \udcff \x1b[31m\tok\r", file=output, flush=True)
    text = data.getvalue().decode(encoding)
    fire, e = ("火" if "utf" in encoding else "\\u706b"), ("\\xe9" if encoding == "ascii" else "é")
    assert text == f"{fire} {e} \\udcff \\x1b[31m\tok\r\n"


# Each in a process of its own: how the shell redirects the streams, and the exit status.
STREAMS = {
    "closed output": (">&-", 0),
    "closed errors": ("2>&-", 0),
    "all closed": ("<&- >&- 2>&-", 0),
    "reader gone": ("| true", 0),
    "full disk": (">/dev/full", 1),
    "latin-1": (">/dev/null", 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMS)
def test_what_is_printed_does_not_decide_what_is_saved(folder, name):
    redirection, status = STREAMS[name]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    environment |= {"PYTHONIOENCODING": "latin-1"} if name == "latin-1" else {}
    line = f"set -o pipefail; {shlex.join(COMMAND)} txt2img '火 fire' -s1 -n2 -S1 {redirection}"
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, check=False)
    assert done.returncode == status and b"Traceback" not in done.stderr
    assert len(pictures(folder)) == 2
    assert all(Image.open(path).text["Dream"].startswith('"火') for path in folder.rglob("*.png"))


@pytest.mark.slow
def test_a_prompt_without_input(folder):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    for redirection in ("<&-", "</dev/null"):
        line = f"{shlex.join(COMMAND)} {redirection}"
        done = subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr


# ---- Tab -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fire -A k_he", ["k_heun "]),
        ("fire -s3 -m k_dpm_2", ["k_dpm_2 ", "k_dpm_2_a "]),
        ("fire --sampler=plm", ["plms "]),
        ("fire --schedule karra", ["karras ", "karras_discard "]),
        ("fire -A ~/ow", ["~/own.py:"]),
        ("fire --sche", ["--schedule "]),
        ("fire --no-f", ["--no-fit "]),
        ("fire -I dra", ["drawing.png "]),
        ("fire -I my", ["my\\ pictures/"]),
        ("fire -I my\\ pictures/a", ["my\\ pictures/a\\ \\#1.png "]),
        ("fire -M ~/dra", ["~/drawing.png "]),
        ("fire -o my", ["my\\ pictures/"]),
        ("!fetch dra", ["drawing.png "]),
        ("!fe", ["!fetch "]),
        ("fire dra", []),
        ("", []),
        ("fire ", []),
        ("火 -A k_he", ["k_heun "]),
    ],
)
def test_tab(folder, line, expected):
    (folder / "my pictures").mkdir()
    for name in ("drawing.png", "own.py", "my pictures/a #1.png"):
        (folder / name).touch()
    assert completions(line) == expected


def test_completed_names_are_read_as_files(folder):
    """What Tab writes is what the line's reader splits."""
    for name in ("a b.png", "it's.png", 'x"y.png', "a#b.png", "# c.png", "a\\b.png"):
        (folder / name).touch()
    for completion in completions("fire -I "):
        assert (folder / split_line(f"fire -I {completion}")[1][1]).exists()


# ---- a real terminal -----------------------------------------------------------------------------


class Terminal:
    """`minisd` at a pseudo-terminal."""

    def __init__(self, folder):
        self.text = b""
        self.process, self.end = pty.fork()
        if self.process == 0:
            # A shell that runs the tests in the background lets them ignore Ctrl-C.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(folder)
            environment = {"HOME": str(folder), "INPUTRC": "/dev/null", "TERM": "dumb"}
            environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
            os.execvpe(COMMAND[0], COMMAND, os.environ | environment)

    def wait_for(self, text, seconds=60):
        start, end = len(self.text), time.monotonic() + seconds
        while text not in self.text[start:]:
            assert time.monotonic() < end, self.text.decode(errors="replace")
            if select.select([self.end], [], [], 0.05)[0]:
                self.text += os.read(self.end, 65536)

    def type(self, keys):
        os.write(self.end, keys)

    def quit(self):
        self.type(b"q\n")
        with contextlib.suppress(OSError):  # the terminal is gone
            self.wait_for(b"never")
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.05, 0.15, 0.3, 0.5, 0.8])
def test_ctrl_c_while_the_model_is_loaded(folder, delay):
    """The next line draws. An import that Ctrl-C stops halfway would break all lines after it."""
    terminal = Terminal(folder)
    terminal.wait_for(b"minisd> ")
    terminal.type(b"fire -s 40 -S1\n")
    time.sleep(delay)
    terminal.type(b"\x03")
    terminal.wait_for(b"stopped")
    terminal.type(b"fire -s2 -S2\n")
    terminal.wait_for(b".2.png")
    assert terminal.quit() == 0
    assert b"Traceback" not in terminal.text and "000001.2.png" in pictures(folder)


@pytest.mark.slow
def test_little_is_imported_after_the_first_prompt(tmp_path):
    """What is imported later is what Ctrl-C could break. torch's compiler must not be: it takes a
    second, and cannot be imported again after an interruption."""
    code = (
        "import sys, minisd.cli.main\n"
        "before = set(sys.modules)\n"
        "minisd.cli.main.main(['txt2img', 'fire', '-s1', '-o', sys.argv[1]])\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    words = [sys.executable, "-c", code, str(tmp_path)]
    modules = subprocess.check_output(words, text=True, env=environment).splitlines()[-1].split()
    assert len(modules) < 20 and not any(name.startswith("sympy") for name in modules)


@pytest.mark.slow
def test_tab_at_a_terminal(folder):
    (folder / "my pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "my pictures" / "a b.png")
    terminal = Terminal(folder)
    terminal.wait_for(b"minisd> ")
    terminal.type(b"fire -I my\ta\t-A k_eule\t -s2 -S3 -f.5\n")
    terminal.wait_for(b".3.png")
    assert terminal.quit() == 0
    recipe = minisd.read_recipe(folder / "outputs/img-samples/000001.3.png")
    assert str(recipe.image) == "my pictures/a b.png"


@pytest.mark.parametrize("place", ["Parser", "did_you_mean", "visible", "print_warning", "version"])
def test_ctrl_c_at_any_moment_is_one_line(place, monkeypatch, capsys):
    """Also before a command runs: while its switches are made, and in an answer without one."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, place, interrupted)
    lines = {
        "Parser": ["explain"],
        "did_you_mean": ["imgimg"],
        "visible": ["imgimg"],
        "print_warning": ["explain", "--schedule", f"{__file__}:too_high"],
        "version": ["--version"],
    }
    assert main(lines[place]) == 130
    assert capsys.readouterr().err == "\nminisd: stopped\n"


def too_high(steps: int) -> list[float]:
    """A schedule with a level that the network was not trained on."""
    return [20.0 - 20 * i / steps for i in range(steps + 1)]
