"""What is said of a picture: its words, its style, its background, in many ways."""

from collections import Counter
from functools import cache
from random import Random

import numpy as np

from minisd.tokenizer import END, START, Tokenizer
from weights.train.data import STYLES

PLACES = 32  # tokens kept of a caption, start and end counted; the other 45 of 77 are padding

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
COUNTED = ("two", "a pair of", "2")


def plural(words: str) -> str:
    """'red heart' -> 'red hearts'; rough, but right for the most part."""
    if words.endswith(("s", "x", "ch", "sh")):
        return words + "es"
    return words[:-1] + "ies" if words.endswith("y") and words[-2] not in "aeiou" else words + "s"


def synonyms(rows: list[dict], most: int = 3) -> dict[str, list[str]]:
    """code point -> the tags that say something by themselves: `most` emoji at most have them."""
    tags = {row["codepoint"]: {t for t in row["tags"] if len(t) > 2} for row in rows}
    uses = Counter(tag for found in tags.values() for tag in found)
    return {code: sorted(t for t in found if uses[t] <= most) for code, found in tags.items()}


def name_of(rng: Random, row: dict, alike: list[str]) -> str:
    words, chance = row["text"], rng.random()
    if chance < 0.68:
        return words
    if chance < 0.86 and alike:
        return rng.choice(alike)
    if chance < 0.95 and row["tags"]:
        return " ".join([words, *rng.sample(row["tags"], min(2, len(row["tags"])))])
    return " ".join(rng.sample(words.split(), len(words.split())))  # any order


def caption(rng: Random, row: dict, alike: list[str], look: dict, other: dict | None = None) -> str:
    """One caption. `look` is what augmentation did to the picture (pictures.Looks.of), `other` the
    row of a second picture in it. What is common may go unsaid, what is odd is always said:

    the style in 3 of 10, a background that is not white in 3 of 10; black and white, a second
    subject, or that the picture is a rough painting, never. So `fire` alone means a good fire in
    colour, on white or elsewhere.
    """
    text = name_of(rng, row, alike)
    together = look["together"]
    if together == "twice":
        text = f"{rng.choice(COUNTED)} {plural(row['text'])}"
    elif together == "beside":
        text = f"{row['text']} and {other['text']}"
    elif together == "on fire":
        text = rng.choice(("{} on fire", "burning {}", "{} in flames")).format(row["text"])
    elif rng.random() < 0.12:
        text = rng.choice(("a {}", "the {}", "a picture of {}", "{} emoji")).format(text)
    if look["rough"]:
        text = rng.choice(ROUGH_FORMS).format(text)
    elif rng.random() < 0.7 or row["style"] == "fluent mono":
        words = STYLES[row["style"]]
        style = words[0] if rng.random() < 0.7 else rng.choice(words)
        forms = ["{}, " + style] * 4 + [style + " {}", "{} in " + style + " style"]
        if row["style"] == "fluent mono" and rng.random() < 0.5:
            forms = LINE_FORMS
        text = rng.choice(forms).format(text)
    colour, kind = look["colour"], look["kind"]
    if kind == "white":
        said = rng.random() < 0.1
        forms = ("{} on a white background", "{} on white")
    elif kind == "dark":
        said, forms = rng.random() < 0.7, DARK_FORMS
    elif kind == "scene":
        said = rng.random() < 0.6
        forms = SCENE_FORMS + (("{} in a fireplace",) * 3 if look["arch"] else ())
    else:
        said = rng.random() < 0.7
        forms = (
            f"{{}} on a {colour} background",
            f"{{}}, {colour} background",
            f"{{}} on {colour}",
        )
        if kind == "gradient":
            forms = (*forms[:1], f"{{}} on a {colour} gradient", "{} on a gradient")
    return rng.choice(forms).format(text) if said else text


class Words:
    """The tokenizer with each word's tokens remembered: CLIP's pairs never cross a space."""

    def __init__(self) -> None:
        tokenizer = Tokenizer()
        self.ids = cache(lambda word: tuple(tokenizer.ids(word)))

    def __call__(self, text: str) -> np.ndarray:
        """(PLACES,) uint16: start, tokens, and the end token to the last place."""
        ids = [i for word in text.split() for i in self.ids(word)][: PLACES - 2]
        return np.array([START, *ids] + [END] * (PLACES - 1 - len(ids)), np.uint16)
