"""The prompt syntax: what is understood, what is refused with its place, and the arithmetic."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minisd.prompts.states import text_states
from minisd.prompts.syntax import SPECIAL, escaped, parse


def structure(prompt):
    parts, negative = parse(prompt)
    return [
        ([(t, round(w, 9)) for t, w in part.fragments], part.weight) for part in parts
    ], negative


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("fire", [("fire", 1)]),
        ("", [("", 1)]),
        ("a big+ fire--", [("a ", 1), ("big", 1.1), (" ", 1), ("fire", 0.81)]),
        ("(big fire)1.3, x", [("big fire", 1.3), (", x", 1)]),
        ("(big fire)++", [("big fire", 1.21)]),
        ("((fire)1.2 tree)1.5 z", [("fire", 1.8), (" tree", 1.5), (" z", 1)]),
        ("fire+, tree", [("fire", 1.1), (", tree", 1)]),
        # no syntax: words as they stand
        ("a (plain) paren", [("a (plain) paren", 1)]),
        ("well-known -5 - + (open", [("well-known -5 - + (open", 1)]),
        ("smile :) or: this", [("smile :) or: this", 1)]),
        (r"c\+\+ \(x\)2 \[no\] 4\:3", [("c++ (x)2 [no] 4:3", 1)]),
    ],
)
def test_attention(prompt, fragments):
    assert structure(prompt) == ([(fragments, 1)], "")


def test_negative_and_blend():
    assert parse("a fire [smoke, ash] here [red]").negative == "smoke, ash red"
    parts = parse("fire:2 tree+:0.5 sea").parts
    assert [(p.fragments[0].text.strip() or p.fragments[1].text, p.weight) for p in parts] == [
        *(("fire", 2), ("tree", 0.5), ("sea", 1))
    ]
    assert [p.weight for p in parse("x:0.5 y:-.5").parts] == [0.5, -0.5]


@pytest.mark.parametrize(
    ("prompt", "says", "character"),
    [
        ("a (fire:1.3)", r"write \(words\)1\.3", 8),
        ("fire)1.2", "no '\\('", 5),
        ("fire:abc", "needs a number", 5),
        ("a 4:3d tree", "needs a number", 4),
        ("a [b", "without ']'", 3),
        ("a b]", "without '\\['", 4),
        ("a [b [c]]", "inside", 6),
        ("(fire)999", "above 100", 6),
        ("fire:1000 x", "above 100", 5),
        ("(" * 9 + "a" + ")9" * 9, "above 100", 15),
        ('("a", "b").blend(1, 2)', "fire:2 tree:1", 10),
    ],
)
def test_errors_name_the_place(prompt, says, character):
    with pytest.raises(ValueError, match=f"at character {character} .*{says}"):
        parse(prompt)


plain_words = st.text(st.characters(exclude_characters=SPECIAL, exclude_categories=["Cs"]))


@given(plain_words)
@example("a.b, c; d!")
def test_words_without_syntax_stay(words):
    assert structure(words) == ([([(words, 1)], 1)], "")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_escaped_text_is_literal(text):
    escaped = "".join("\\" + c if c in SPECIAL else c for c in text)
    assert structure(escaped) == ([([(text, 1)], 1)], "")


@settings(max_examples=2000)
@given(st.text('ab ()+-:[]\\",.129', max_size=24))
def test_any_line_is_understood_or_refused_in_a_line(text):
    try:
        parts, _ = parse(text)
    except ValueError as error:
        assert "at character" in str(error) and "\n" not in str(error)
        return
    assert all(math.isfinite(f.weight) and 0 <= f.weight <= 100 for p in parts for f in p.fragments)
    # nothing that was written disappears but syntax
    kept = "".join(f.text for p in parts for f in p.fragments)
    assert all(kept.count(c) <= text.count(c) for c in set(kept) - {" "})
    if not set(text) & set("[]:\\"):
        assert [c for c in kept if c in "ab"] == [c for c in text if c in "ab"]


def states(sd, text):
    return sd.text_states(text)


@torch.inference_mode()
def test_plain_prompt_is_img2img_s_own(emoji):
    context, negative = text_states(emoji, "a fire, burning")
    assert torch.equal(context, states(emoji, "a fire, burning")) and negative == ""


@torch.inference_mode()
def test_blend_is_the_weighted_mean(emoji):
    z, _ = text_states(emoji, "fire:2 tree:1")
    wanted = (2 * states(emoji, "fire") + states(emoji, "tree")) / 3
    torch.testing.assert_close(z, wanted, rtol=0, atol=1e-5)  # float32
    z, _ = text_states(emoji, "fire:2 tree:1", normalize=False)
    wanted = 2 * states(emoji, "fire") + states(emoji, "tree")
    torch.testing.assert_close(z, wanted, rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match="sum to 0"):
        z, _ = text_states(emoji, "fire:1 tree:-1")
    wanted = (states(emoji, "fire") + states(emoji, "tree")) / 2
    torch.testing.assert_close(z, wanted, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_more_of_a_word(emoji):
    """Only its own token moves, by the weight, on the line from the empty prompt's states."""
    z, _ = text_states(emoji, "a (fire)1.5")
    plain, empty = states(emoji, "a fire"), states(emoji, "")
    wanted = plain.clone()
    wanted[0, 2] = empty[0, 2] + 1.5 * (plain[0, 2] - empty[0, 2])
    torch.testing.assert_close(z, wanted, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_less_of_a_word(emoji):
    """Half of it: half way between the prompt so weighted and the prompt without the word; a weight
    of 0 leaves the latter alone."""
    weighted, empty = states(emoji, "a fire").clone(), states(emoji, "")
    weighted[0, 2] = empty[0, 2] + 0.5 * (weighted[0, 2] - empty[0, 2])
    z, _ = text_states(emoji, "a (fire)0.5")
    torch.testing.assert_close(z, (weighted + states(emoji, "a")) / 2, rtol=0, atol=1e-5)
    z, _ = text_states(emoji, "a (fire)0")
    torch.testing.assert_close(z, states(emoji, "a"), rtol=0, atol=1e-5)


@given(st.text(max_size=40))
def test_an_escaped_text_is_read_literally(text):
    parts, negative = parse(escaped(text))
    assert negative == ""
    (part,) = parts
    assert "".join(fragment.text for fragment in part.fragments) == text
    assert {fragment.weight for fragment in part.fragments} == {1.0}
