"""Prompt syntax, as the command line speaks it: words with weights. `img2img` takes prompts
literally.

    a fire [smoke, ash]         away from the words in brackets (they become the negative prompt)
    fire:2 tree:1               a blend: 2/3 of the text states of one, 1/3 of the other
    a big+ fire--               more of a word, 1.1 to the power of the signs; less of it, 0.9
    a (big fire)1.3             the same with a number, for several words; may be nested
    \\( \\) \\+ \\- \\: \\[ \\] \\\\     the sign itself

InvokeAI 2.0: ldm/invoke/conditioning.py; 2.1 and 2.2: ldm/invoke/prompt_parser.py.
"""

import re
from typing import NamedTuple

SPECIAL = r"()+-:[]\""
NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")
SIGNS = re.compile(r"(\++|-+)(?=[\s,.;!?)]|$)")
GROUP_WEIGHT = re.compile(rf"({SIGNS.pattern})|({NUMBER.pattern})(?=[\s,;!?)+(]|\.\s|\.?$)")


class PromptError(ValueError):
    """A prompt that can't be read; the message says where."""

    def __init__(self, what: str, prompt: str, place: int):
        around = prompt[max(0, place - 12) : place + 12]
        super().__init__(f"the prompt, at character {place + 1} (...{around}...): {what}")


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
        what = f".{call[1]}() is not known here; a blend is written fire:2 tree:1"
        raise PromptError(what, prompt, call.start())
    positive, negative = cut_negative(prompt)
    parts = [Part(fragments(prompt, text, at), w) for text, at, w in cut_blend(prompt, positive)]
    return Prompt(parts, negative)


def cut_negative(prompt: str) -> tuple[str, str]:
    """The prompt with the bracketed words blanked out, so that places stay, and those words."""
    kept, words, start = list(prompt), [], None
    for i, char in unescaped(prompt):
        if char == "[":
            if start is not None:
                raise PromptError("'[' inside of [ ]", prompt, i)
            start = i
        elif char == "]":
            if start is None:
                raise PromptError("']' without '['; write \\] for the sign itself", prompt, i)
            words.append(prompt[start + 1 : i])
            kept[start : i + 1] = " " * (i + 1 - start)
            start = None
    if start is not None:
        raise PromptError("'[' without ']'; write \\[ for the sign itself", prompt, start)
    negative = " ".join(plain(w).strip() for w in words)
    return "".join(kept), negative


def cut_blend(prompt: str, positive: str) -> list[tuple[str, int, float]]:
    """(text, where it starts, weight) of each side; one of weight 1 where nothing is blended."""
    sides, start, depth = [], 0, 0
    for i, char in unescaped(positive):
        depth += (char == "(") - (char == ")")
        if char != ":" or i < start:
            continue
        number = re.compile(r"-?(\d+(\.\d*)?|\.\d+)(?=\s|$)").match(positive, i + 1)
        if depth > 0 and NUMBER.match(positive, i + 1):
            raise PromptError("a weight inside of ( ); write (words)1.3", prompt, i)
        if number:
            weight = check_weight(float(number[0]), prompt, i)
            sides.append((positive[start:i], start, weight))
            start = number.end()
        elif re.match(r"[\w.+-]", positive[i + 1 : i + 2]):
            what = "':' needs a number after it, and then a space; write \\: for the sign itself"
            raise PromptError(what, prompt, i)
    if positive[start:].strip() or not sides:
        sides.append((positive[start:], start, 1.0))
    return sides


def fragments(prompt: str, text: str, offset: int) -> list[Fragment]:
    """Pieces of text of one weight each, in order; nested weights are multiplied."""
    stack: list[tuple[int, list[Fragment]]] = [(-1, [])]
    i, word = 0, 0  # word: where the current one began
    while i < len(text):
        char, out = text[i], stack[-1][1]
        if char == "\\" and i + 1 < len(text) and text[i + 1] in SPECIAL:
            add(out, text[i + 1])
            i += 2
            continue
        if char == "(":
            stack.append((i, []))
        elif char == ")":
            found = GROUP_WEIGHT.match(text, i + 1)
            if len(stack) == 1 and found:
                raise PromptError("')' and a weight, but no '('", prompt, offset + i)
            if len(stack) > 1:
                _, inside = stack.pop()
                out = stack[-1][1]
                factor = weight_of(found[0], prompt, offset + i) if found else 1.0
                if not found:  # parentheses without a weight are parentheses
                    inside = [Fragment("(", 1.0), *inside, Fragment(")", 1.0)]
                for fragment in inside:
                    weight = check_weight(fragment.weight * factor, prompt, offset + i)
                    add(out, fragment.text, weight)
                i = found.end() if found else i + 1
                word = i
                continue
            add(out, char)
        elif (
            char in "+-"
            and word < i
            and text[i - 1] not in "+-"
            and (signs := SIGNS.match(text, i))
        ):
            cut = i - word  # the word is at the end of what has been read; take it back
            if out and out[-1].weight == 1 and len(out[-1].text) >= cut:
                before = out.pop().text
                add(out, before[: len(before) - cut])
                add(out, before[len(before) - cut :], weight_of(signs[0], prompt, offset + i))
                i = word = signs.end()
                continue
            add(out, char)
        else:
            add(out, char)
        i += 1
        if char.isspace() or char in "(),;":
            word = i
    while len(stack) > 1:  # '(' that is never closed is a parenthesis too
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
    """Text joins the fragment before it where the weight is the same: both are one text to CLIP."""
    if out and out[-1].weight == weight:
        out[-1] = Fragment(out[-1].text + text, weight)
    elif text:
        out.append(Fragment(text, weight))


def unescaped(text: str) -> list[tuple[int, str]]:
    return [(m.start(), m[0]) for m in re.finditer(r"\\.|.", text, re.S) if len(m[0]) == 1]


def plain(text: str) -> str:
    return re.sub(r"\\([()+\-:\[\]\\\"])", r"\1", text)
