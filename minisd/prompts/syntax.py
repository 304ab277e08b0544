"""The prompt syntax of recipes and of the command line. `img2img` itself takes prompts literally.

    a fire [smoke, ash]         avoids the words in brackets: they become the negative prompt
    fire:2 tree:1               a blend: 2/3 of the text states of "fire", 1/3 of those of "tree"
    a big+ fire--               more of a word: weight 1.1 for each +; less of it: 0.9 for each -
    a (big fire)1.3             a weight for several words; groups may be nested
    \\( \\) \\+ \\- \\: \\[ \\] \\\\     the character itself

InvokeAI 2.0: ldm/invoke/conditioning.py; 2.1 and 2.2: ldm/invoke/prompt_parser.py.
"""

import re
from typing import NamedTuple

SPECIAL = r"()+-:[]\""
NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")
SIGNS = re.compile(r"(\++|-+)(?=[\s,.;!?)]|$)")
GROUP_WEIGHT = re.compile(rf"({SIGNS.pattern})|({NUMBER.pattern})(?=[\s,;!?)+(]|\.\s|\.?$)")


class PromptError(ValueError):
    """A prompt with a syntax error. The message says where it is."""

    def __init__(self, problem: str, prompt: str, place: int):
        around = prompt[max(0, place - 12) : place + 12]
        super().__init__(f"the prompt, at character {place + 1} (...{around}...): {problem}")


class Fragment(NamedTuple):
    text: str
    weight: float


class Part(NamedTuple):
    """One side of a blend."""

    fragments: list[Fragment]
    weight: float


class Prompt(NamedTuple):
    parts: list[Part]
    negative: str


def parse(prompt: str) -> Prompt:
    """The prompt's structure, without a model."""
    for call in re.finditer(r"\)\s*\.(blend|swap|and)\(", prompt):
        problem = f".{call[1]}() is not supported; write a blend as fire:2 tree:1"
        raise PromptError(problem, prompt, call.start())
    positive, negative = cut_negative(prompt)
    parts = [
        Part(fragments(prompt, text, start), w) for text, start, w in cut_blend(prompt, positive)
    ]
    return Prompt(parts, negative)


def cut_negative(prompt: str) -> tuple[str, str]:
    """The prompt with blanks in place of the bracketed words, and these words."""
    kept, words, start = list(prompt), [], None
    for i, char in unescaped(prompt):
        if char == "[":
            if start is not None:
                raise PromptError("'[' inside [ ]", prompt, i)
            start = i
        elif char == "]":
            if start is None:
                raise PromptError("']' without '['; write \\] for the character itself", prompt, i)
            words.append(prompt[start + 1 : i])
            kept[start : i + 1] = " " * (i + 1 - start)
            start = None
    if start is not None:
        raise PromptError("'[' without ']'; write \\[ for the character itself", prompt, start)
    negative = " ".join(plain(w).strip() for w in words)
    return "".join(kept), negative


def cut_blend(prompt: str, positive: str) -> list[tuple[str, int, float]]:
    """(text, start, weight) of each side of a blend; without a blend, one side of weight 1."""
    sides, start, depth = [], 0, 0
    for i, char in unescaped(positive):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char != ":" or i < start:
            continue
        number = re.compile(r"-?(\d+(\.\d*)?|\.\d+)(?=\s|$)").match(positive, i + 1)
        if depth > 0 and NUMBER.match(positive, i + 1):
            raise PromptError("a weight inside ( ); write (words)1.3", prompt, i)
        if number:
            weight = check_weight(float(number[0]), prompt, i)
            sides.append((positive[start:i], start, weight))
            start = number.end()
        elif re.match(r"[\w.+-]", positive[i + 1 : i + 2]):
            problem = "':' needs a number and a space after it; write \\: for the character itself"
            raise PromptError(problem, prompt, i)
    if positive[start:].strip() or not sides:
        sides.append((positive[start:], start, 1.0))
    return sides


def fragments(prompt: str, text: str, offset: int) -> list[Fragment]:
    """Pieces of text with one weight each, in order. Nested weights are multiplied."""
    stack: list[tuple[int, list[Fragment]]] = [(-1, [])]
    i, word_start = 0, 0
    while i < len(text):
        char, out = text[i], stack[-1][1]
        if char == "\\" and i + 1 < len(text) and text[i + 1] in SPECIAL:
            add(out, text[i + 1])
            i += 2
            continue
        if char == "(":
            stack.append((i, []))
        elif char == ")":
            written = GROUP_WEIGHT.match(text, i + 1)
            if len(stack) == 1 and written:
                raise PromptError("')' and a weight, but no '('", prompt, offset + i)
            if len(stack) > 1:
                _, inside = stack.pop()
                out = stack[-1][1]
                factor = weight_of(written[0], prompt, offset + i) if written else 1.0
                if not written:  # parentheses without a weight are ordinary text
                    inside = [Fragment("(", 1.0), *inside, Fragment(")", 1.0)]
                for fragment in inside:
                    weight = check_weight(fragment.weight * factor, prompt, offset + i)
                    add(out, fragment.text, weight)
                i = written.end() if written else i + 1
                word_start = i
                continue
            add(out, char)
        elif (
            char in "+-"
            and word_start < i
            and text[i - 1] not in "+-"
            and (signs := SIGNS.match(text, i))
        ):
            cut = i - word_start  # the word is at the end of the text read so far: take it back
            if out and out[-1].weight == 1 and len(out[-1].text) >= cut:
                before = out.pop().text
                add(out, before[: len(before) - cut])
                add(out, before[len(before) - cut :], weight_of(signs[0], prompt, offset + i))
                i = word_start = signs.end()
                continue
            add(out, char)
        else:
            add(out, char)
        i += 1
        if char.isspace() or char in "(),;":
            word_start = i
    while len(stack) > 1:  # a '(' that is never closed is ordinary text too
        _, inside = stack.pop()
        for fragment in [Fragment("(", 1.0), *inside]:
            add(stack[-1][1], fragment.text, fragment.weight)
    return stack[0][1] or [Fragment("", 1.0)]


def weight_of(written: str, prompt: str, place: int) -> float:
    if written[0] in "+-":
        return check_weight(1.1 ** written.count("+") * 0.9 ** written.count("-"), prompt, place)
    return check_weight(float(written), prompt, place)


def check_weight(weight: float, prompt: str, place: int) -> float:
    if abs(weight) > 100:
        raise PromptError("a weight above 100", prompt, place)
    return weight


def add(out: list[Fragment], text: str, weight: float = 1.0) -> None:
    """Append text. Fragments of equal weight are joined, so that CLIP sees them as one text."""
    if out and out[-1].weight == weight:
        out[-1] = Fragment(out[-1].text + text, weight)
    elif text:
        out.append(Fragment(text, weight))


def unescaped(text: str) -> list[tuple[int, str]]:
    """(place, character) of each character that no backslash precedes."""
    return [(m.start(), m[0]) for m in re.finditer(r"\\.|.", text, re.S) if len(m[0]) == 1]


def escaped(text: str) -> str:
    """The text with a backslash before each special character, so that it is read literally."""
    return re.sub(r"([()+\-:\[\]\\\"])", r"\\\1", text)


def plain(text: str) -> str:
    """The text without the backslashes of `escaped`."""
    return re.sub(r"\\([()+\-:\[\]\\\"])", r"\1", text)
