"""Captions: the name of a picture, its style and its background, in many phrasings."""

from collections import Counter
from functools import cache
from random import Random

import numpy as np

from minisd.tokenizer import END, START, Tokenizer
from weights.train.data import STYLES
from weights.train.pictures import Background, Company, Look

PLACES = 32  # tokens of a caption, with start and end; the other 45 of the 77 are padding

LINE_FORMS = ("a sketch of {}", "{}, sketch", "{}, line art", "a black and white drawing of {}")
ROUGH_FORMS = (
    "a rough painting of {}",
    "{}, rough painting",
    "{}, rough colours",
    "a crude painting of {}",
    "{}, daubed",
)
DARK_FORMS = ("{} on a dark background", "{} in the dark", "{}, dark background", "{} at night")
SCENE_FORMS = ("{} in a dark room", "{} in a dark scene", "{} on a dark background")
DRAWN_FORMS = (
    "a drawing of {}",
    "{}, drawing",
    "a rough drawing of {}",
    "{}, crayon drawing",
    "a child's drawing of {}",
)
GENERIC = ("a drawing", "a picture", "a doodle", "shapes", "a painting", "a pattern", "a scene")
COUNTED = ("two", "a pair of", "2")


def plural(words: str) -> str:
    """'red heart' -> 'red hearts'. The rule is rough, but mostly right."""
    if words.endswith(("s", "x", "ch", "sh")):
        return words + "es"
    return words[:-1] + "ies" if words.endswith("y") and words[-2] not in "aeiou" else words + "s"


def synonyms(rows: list[dict], most: int = 3) -> dict[str, list[str]]:
    """code point -> its tags that are specific: at most `most` emoji have them."""
    tags = {row["codepoint"]: {t for t in row["tags"] if len(t) > 2} for row in rows}
    uses = Counter(tag for row_tags in tags.values() for tag in row_tags)
    return {code: sorted(t for t in row_tags if uses[t] <= most) for code, row_tags in tags.items()}


def name_of(rng: Random, row: dict, alike: list[str]) -> str:
    """The label, a synonym, the label with tags, or the label's words in any order."""
    words, chance = row["text"], rng.random()
    if chance < 0.68:
        return words
    if chance < 0.86 and alike:
        return rng.choice(alike)
    if chance < 0.95 and row["tags"]:
        return " ".join([words, *rng.sample(row["tags"], min(2, len(row["tags"])))])
    return " ".join(rng.sample(words.split(), len(words.split())))


def caption(rng: Random, row: dict, alike: list[str], look: Look, other: dict | None = None) -> str:
    """One caption. `look` is how the picture was augmented, `other` the row of a second picture.

    Common features may be left out: the style in 3 of 10 captions, a background that is not white
    in 3 of 10. Unusual features are always named: black and white, a second subject, and that the
    picture is a rough painting. So `fire` alone means a good fire in colour, on any background.
    """
    text = name_of(rng, row, alike)
    if look.company is Company.TWICE:
        text = f"{rng.choice(COUNTED)} {plural(row['text'])}"
    elif look.company is Company.BESIDE and other is not None:
        text = f"{row['text']} and {other['text']}"
    elif look.company is Company.ON_FIRE:
        text = rng.choice(("{} on fire", "burning {}", "{} in flames")).format(row["text"])
    elif rng.random() < 0.12:
        text = rng.choice(("a {}", "the {}", "a picture of {}", "{} emoji")).format(text)
    if look.rough:
        text = rng.choice(ROUGH_FORMS).format(text)
    elif rng.random() < 0.7 or row["style"] == "fluent mono":
        words = STYLES[row["style"]]
        style = words[0] if rng.random() < 0.7 else rng.choice(words)
        forms = ["{}, " + style] * 4 + [style + " {}", "{} in " + style + " style"]
        if row["style"] == "fluent mono" and rng.random() < 0.5:
            forms = LINE_FORMS
        text = rng.choice(forms).format(text)
    chance, forms = background_forms(look)
    return rng.choice(forms).format(text) if rng.random() < chance else text


def drawn_caption(rng: Random, row: dict, alike: list[str], other: dict | None) -> str:
    """A caption of a rough drawing. Two in three name only the thing, as for a good picture.

    So with little noise left the prompt accepts the drawing, and does not tear it apart. `other`
    is the row of a second subject.
    """
    text = f"{row['text']} and {other['text']}" if other else name_of(rng, row, alike)
    if rng.random() < 0.12:
        text = rng.choice(("a {}", "the {}", "a picture of {}")).format(text)
    return rng.choice(DRAWN_FORMS).format(text) if rng.random() < 0.33 else text


def any_caption(rng: Random, name: str) -> str:
    """A caption of a picture of anything, in which the named emoji may occur: often none."""
    chance = rng.random()
    return "" if chance < 0.4 else rng.choice(GENERIC) if chance < 0.7 else name


def background_forms(look: Look) -> tuple[float, tuple[str, ...]]:
    """How often a caption names the background, and the phrasings."""
    if look.background is Background.WHITE:
        return 0.1, ("{} on a white background", "{} on white")
    if look.background is Background.DARK:
        return 0.7, DARK_FORMS
    if look.background is Background.SCENE:
        return 0.6, SCENE_FORMS + (("{} in a fireplace",) * 3 if look.arch else ())
    form = f"{{}} on a {look.colour} background"
    if look.background is Background.GRADIENT:
        return 0.7, (form, f"{{}} on a {look.colour} gradient", "{} on a gradient")
    return 0.7, (form, f"{{}}, {look.colour} background", f"{{}} on {look.colour}")


class Words:
    """The tokenizer, with a memory for words: CLIP's byte pairs never cross a space."""

    def __init__(self) -> None:
        tokenizer = Tokenizer()
        self.ids = cache(lambda word: tuple(tokenizer.ids(word)))

    def __call__(self, text: str) -> np.ndarray:
        """(PLACES,) uint16: the start token, the text's tokens, and end tokens."""
        ids = [i for word in text.split() for i in self.ids(word)][: PLACES - 2]
        return np.array([START, *ids] + [END] * (PLACES - 1 - len(ids)), np.uint16)
