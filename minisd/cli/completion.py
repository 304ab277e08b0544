"""Tab at the prompt completes switches, files, and the names of samplers and schedules."""

import glob
import os
import re
from typing import Any

from minisd.cli.switches import line_parser
from minisd.more_samplers.guidance_rules import GUIDANCE_RULES
from minisd.recipes.dream import BY_NAME
from minisd.samplers import SAMPLERS
from minisd.schedule import SCHEDULES

# The end of a line: the switch or command before the last word, and that word. A backslash makes a
# space part of the word.
LAST_WORDS = re.compile(r"(?:^|(\S+)[\s=]+)((?:\\.|[^\s\\=])*)$")
NAMES = {"sampler": SAMPLERS, "schedule": SCHEDULES, "guidance_rule": GUIDANCE_RULES}
COMMANDS = ("!fetch ", "!help ", "!history ")


def complete(readline: Any) -> None:
    """Let the Tab key complete the word before the cursor. `readline` is Python's module."""

    def candidate(_: str, i: int) -> str | None:
        """The i-th completion, from the place on where readline begins to replace the line."""
        line, start = readline.get_line_buffer()[: readline.get_endidx()], readline.get_begidx()
        matches = completions(line)
        word_start = len(line) - len(last_words(line)[1])
        return matches[i][start - word_start :] if i < len(matches) else None

    readline.set_completer(candidate)
    readline.set_completer_delims(" \t\n=")
    is_libedit = "libedit" in (readline.__doc__ or "")  # macOS has this instead of GNU readline
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def last_words(line: str) -> tuple[str, str]:
    """The switch or command before the last word, if there is one; and the last word."""
    match = LAST_WORDS.search(line)
    return ("", "") if match is None else (match[1] or "", match[2])


def completions(line: str) -> list[str]:
    """What the last word of the line can become, in order. A prompt's words are not completed."""
    previous, word = last_words(line)
    field = BY_NAME[previous].field if previous in BY_NAME else None
    if field in NAMES:
        names = [f"{name} " for name in NAMES[field] if name.startswith(word)]
        return names + file_names(word, ".py")
    if field in ("image", "mask") or previous in ("-o", "--outdir", "!fetch"):
        return file_names(word)
    if word.startswith("-"):
        switches = [name for action in line_parser()._actions for name in action.option_strings]
        return [f"{name} " for name in sorted(switches) if name.startswith(word)]
    return [command for command in COMMANDS if word and line == word and command.startswith(word)]


def file_names(word: str, ending: str = "") -> list[str]:
    """The files and folders whose names begin with the word. Spaces in them get a backslash."""
    typed = re.sub(r"\\(.)", r"\1", word)
    typed_folder = typed[: typed.rfind("/") + 1]
    names = []
    for path in sorted(glob.glob(glob.escape(os.path.expanduser(typed)) + "*")):
        is_folder = os.path.isdir(path)
        if is_folder or path.endswith(ending):
            name = re.sub(r"([\s\\'\"#])", r"\\\1", typed_folder + os.path.basename(path))
            names.append(name + ("/" if is_folder else ":" if ending else " "))
    return names
