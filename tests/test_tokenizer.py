"""Prompts to ids, against the original's published ids and Hugging Face's implementation."""

import gzip
import json
import warnings
from pathlib import Path

import ftfy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minisd
from minisd.tokenizer import Tokenizer

VOCABULARY = Path(minisd.__file__).parent / "vocab" / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def ours():
    return Tokenizer()


@pytest.fixture(scope="module")
def hugging_face(ours, tmp_path_factory):
    """Hugging Face's CLIPTokenizer; its two files are written here from the same vocabulary."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    merges = gzip.decompress(VOCABULARY.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "vocab.json").write_text(json.dumps(ours.bpe.get_vocab()))
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def test_published_ids(ours):
    """The seed document's three prompts, by OpenAI's own tokenizer."""
    assert ours.ids("fire") == [1769]
    photograph = [8853, 539, 320, 2677, 525, 320, 2682, 593, 320, 2473]
    assert ours.ids("photograph of a tree on a hill with a river") == photograph
    tree = [2677, 525, 320, 2682, 593, 320, 2473, 267, 2625, 8853, 267, 1362, 22635]
    prompt = "tree on a hill with a river, nature photograph, national geographic"
    assert ours.ids(prompt) == tree


def test_frame(ours):
    tokens = ours(["fire", ""])
    assert tokens.dtype == torch.int64 and tokens.shape == (2, 77)
    assert tokens[0].tolist() == [49406, 1769] + [49407] * 75
    assert tokens[1].tolist() == [49406] + [49407] * 76


def test_too_long_prompts_are_cut_with_a_warning(ours):
    with pytest.warns(UserWarning, match="2 tokens too long; cut off: 'the end'"):
        tokens = ours(["fire " * 75 + "the end"])
    assert tokens[0, 75] == 1769 and tokens[0, 76] == 49407
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(["fire " * 75])  # it just fits


@pytest.mark.parametrize(
    "prompt",
    [
        *("It's 1984's best, don't you think?!?", "UPPER Case", "tab\tnew\nline   spaces"),
        *("naïve café über", "日本語のテキスト", "emoji 🔥🔥 fire", "a_b-c/d\\e", "100,000.5%"),
        *("ﬁre ﬂame", "<|endoftext|> inside", "I'll they're we've I'm he'd", "...!!!", "²³½ Ⅳ"),
    ],
)
def test_like_hugging_face(ours, hugging_face, prompt):
    expected = hugging_face(ftfy.fix_text(prompt), add_special_tokens=False)["input_ids"]
    assert ours.ids(prompt) == expected


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=60))
def test_like_hugging_face_on_any_text(ours, hugging_face, text):
    expected = hugging_face(ftfy.fix_text(text), add_special_tokens=False)["input_ids"]
    assert ours.ids(text) == expected


def test_cleaning_is_ftfy(ours):
    """What SD 1.x's own tokenizer repairs before it splits."""
    assert ours.ids("it’s “fine”") == ours.ids('it\'s "fine"')  # curly quotes  # noqa: RUF001
    assert ours.ids("ﬁre") == ours.ids("fire")  # a ligature
    assert ours.ids("ｆｉｒｅ") == ours.ids("fire")  # full-width letters  # noqa: RUF001
    assert ours.ids("schÃ¶n") == ours.ids("schön")  # read in the wrong encoding
    assert ours.ids("salt &amp; pepper") == ours.ids("salt & pepper")
