"""Attention to words: the maps equal softmax written out, and recording does not change the run."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd.cli.main import main
from minisd.figures.attention import RAMP, attention_strip, heat, lit
from minisd.observe import AttentionMaps, together
from minisd.observe.attention_maps import attention_shares, words_of

PROMPT = "a red heart, 3d"
SETTINGS = {"strength": 0.5, "steps": 4, "seed": 5, "guidance": 4.0}


def drawing(size: int = 64) -> Image.Image:
    image = Image.radial_gradient("L").resize((size, size))
    return Image.merge("RGB", (image, image.rotate(90), image))


def n_hooks(unet: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


def test_shares_are_softmax_written_out():
    rng = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 6, 8, generator=rng), torch.randn(2, 5, 8, generator=rng)
    shares = attention_shares(q, k, heads=2)
    for b in range(2):
        for n in range(6):
            expected = [0.0] * 5
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                scores = [math.exp(float(q[b, n, part] @ k[b, m, part]) / 2) for m in range(5)]
                shares_of_head = [score / sum(scores) for score in scores]
                expected = [e + s / 2 for e, s in zip(expected, shares_of_head, strict=True)]
            # float32 softmax of numbers near 1: a few units of 6e-8
            assert shares[b, n].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_maps_are_the_shares_of_the_layers(tiny, guidance):
    """Computed again from each layer's own inputs, head by head."""
    inputs: dict[str, list[torch.Tensor]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, args, out, name=name: inputs.setdefault(name, []).append(args)
        )
        for name, layer in tiny.unet.named_modules()
        if name.endswith("attn2")
    ]
    # 128 x 64 pixels: the latent is 16 x 8, no layer may confuse its sides
    wide = drawing(128).resize((128, 64))
    with AttentionMaps(tiny, PROMPT) as maps:
        settings = SETTINGS | {"guidance": guidance}
        minisd.img2img(tiny, PROMPT, wide, **settings, observe=maps)
    for hook in hooks:
        hook.remove()
    h, w = maps.shape[2:]
    assert (h, w) == (8, 16)
    assert maps.n_tokens == 6 and len(maps.steps) == 2
    for step, shares in enumerate(maps.steps):
        total = torch.zeros(77, h, w)
        for name, calls in inputs.items():
            layer = tiny.unet.get_submodule(name)
            x, context = (y[-1] for y in calls[step])  # the half with the prompt
            q, k = x @ layer.to_q.weight.T, context @ layer.to_k.weight.T
            d = q.shape[1] // layer.heads
            average = torch.zeros(len(q), 77)
            for head in range(layer.heads):
                part = slice(head * d, (head + 1) * d)
                average += torch.softmax(q[:, part] @ k[:, part].T / d**0.5, dim=1) / layer.heads
            scale = int((h * w / len(q)) ** 0.5)
            small = average.T.reshape(1, 77, h // scale, w // scale)
            total += torch.nn.functional.interpolate(small, (h, w), mode="bilinear")[0]
        total /= len(inputs)
        # the same float32 sums in another order; shares are at most 1
        assert torch.allclose(shares[0, :7], total[:7], atol=2e-6)
        assert torch.allclose(shares[0, 7], total[7:].sum(dim=0), atol=2e-6)
        assert torch.allclose(shares.sum(dim=1), torch.ones(1, h, w), atol=1e-5)


@pytest.mark.parametrize("sampler", ["k_lms", "k_heun", "k_euler_a"])
def test_recording_does_not_change_the_run(emoji, sampler):
    settings = SETTINGS | {"sampler": sampler}
    plain = minisd.img2img(emoji, PROMPT, drawing(), **settings)
    with AttentionMaps(emoji, PROMPT) as maps:
        observed = minisd.img2img(emoji, PROMPT, drawing(), **settings, observe=maps)
    assert torch.equal(plain.latent, observed.latent)
    assert plain.image.tobytes() == observed.image.tobytes()
    assert len(maps.steps) == len(maps.sigmas) == 2  # k_heun calls twice a step


def test_maps_are_of_the_prompt_not_of_the_negative_prompt(emoji):
    """In the first step x is the same with and without guidance, and so are the prompt's maps."""
    first = []
    for guidance, negative in ((1.0, ""), (6.0, ""), (6.0, "blue")):
        with AttentionMaps(emoji, PROMPT) as maps:
            settings = SETTINGS | {"guidance": guidance, "negative_prompt": negative}
            minisd.img2img(emoji, PROMPT, drawing(), **settings, observe=maps)
        first.append(maps.steps[0])
    # a batch of two is summed in another order than a batch of one
    assert torch.allclose(first[0], first[1], atol=1e-5)
    assert torch.equal(first[1], first[2])


def test_words(emoji):
    def texts(*pieces: str) -> list[tuple[str, list[int]]]:
        return [tuple(word) for word in words_of(emoji.tokenizer, list(pieces))[0]]

    assert texts("fire, 3d") == [("fire", [1]), ("3d", [3, 4])]
    assert texts("Don't   STOP 🔥!") == [("Don't", [1, 2]), ("STOP", [3]), ("🔥", [4])]
    assert texts("a red ", "heart") == [("a", [1]), ("red", [2]), ("heart", [3])]
    assert texts("supercalifragilistic x")[0][1] == [1, 2, 3, 4, 5]
    assert texts("...") == texts("") == []
    words, n = words_of(emoji.tokenizer, ["word " * 90])
    assert n == 75 and len(words) == 75 and words[-1].places == [75]


def test_word_maps(emoji):
    with AttentionMaps(emoji, "red heart red") as maps:
        minisd.img2img(emoji, "red heart red", drawing(), **SETTINGS, observe=maps)
    both = maps.word(0, 1) + maps.word(2, 1)
    assert torch.equal(maps.word("RED", 1), both)
    mean = (maps.word("heart", 0) + maps.word("heart", 1)) / 2
    assert torch.allclose(maps.word("heart"), mean, atol=1e-7)
    with pytest.raises(ValueError, match="no word 'blue'; its words are red, heart, red"):
        maps.word("blue")
    with pytest.raises(ValueError, match="no step was observed"):
        AttentionMaps(emoji, "red").word("red")


def test_the_hooks_are_removed(emoji):
    before = n_hooks(emoji.unet)
    with pytest.raises(RuntimeError), AttentionMaps(emoji, "x"):
        assert n_hooks(emoji.unet) > before
        raise RuntimeError
    assert n_hooks(emoji.unet) == before
    with AttentionMaps(emoji, PROMPT) as maps:  # not passed as observer: it stores nothing
        minisd.img2img(emoji, PROMPT, drawing(), **SETTINGS)
        assert maps.calls == [] and maps.steps == []


def test_two_runs_in_one_block(emoji):
    steps = []
    with AttentionMaps(emoji, PROMPT) as maps:
        for strength in (1.0, 0.5):
            settings = SETTINGS | {"strength": strength}
            minisd.img2img(emoji, PROMPT, drawing(), **settings, observe=together(maps))
            steps.append(maps.steps)
    assert [len(maps) for maps in steps] == [4, 2]


def test_heat_is_brightest_where_the_share_is_highest():
    shares = torch.tensor([[0.05, 0.10], [0.10, 0.15]])
    image = heat(shares)
    levels = [sum(image.getpixel(place)) for place in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert levels[0] < levels[1] == levels[2] < levels[3]
    assert image.getpixel((1, 1)) == (255, 248, 226) and image.getpixel((0, 0)) == (40, 30, 92)
    assert heat(torch.zeros(2, 2)).size == (2, 2)


def test_light_darkens_only_where_attention_is_low():
    grey = drawing().convert("L").point(lambda value: 64 + value * 191 // 255).convert("RGB")
    shares = torch.full((8, 8), 0.04)
    shares[4:] = 0.16  # 0.4 and 1.6 times the average
    image = np.asarray(lit(drawing(), shares), int)
    brightest = np.asarray(grey, int) * np.array(RAMP[-1][1]) // 255
    assert np.abs(image[48:] - brightest[48:]).max() <= 1
    darkest = np.asarray(grey, int) * np.array(RAMP[0][1]) // 255
    assert np.abs(image[:16] - darkest[:16]).max() <= 1


def test_strip(emoji):
    """A row for each word and one for the pictures; a column for each step and the average."""
    with AttentionMaps(emoji, PROMPT) as maps:
        minisd.img2img(emoji, PROMPT, drawing(), **SETTINGS, observe=maps)
    size = 40
    pictures = [drawing(), drawing().rotate(90)]
    tiles = [picture.resize((size, size), Image.Resampling.NEAREST) for picture in pictures]
    sheet = np.asarray(attention_strip(maps, pictures, "title", size=size), int)

    def places(part: Image.Image) -> list[tuple[int, int]]:
        windows = np.lib.stride_tricks.sliding_window_view(sheet, (size, size, 3))[:, :, 0]
        corner = np.argwhere(
            (sheet[: windows.shape[0], : windows.shape[1]] == part.getpixel((0, 0))).all(-1)
        )
        return [(y, x) for y, x in corner if (windows[y, x] == np.asarray(part, int)).all()]

    (first,), (second, average) = places(tiles[0]), places(tiles[1])
    assert first[0] == second[0] == average[0] and first[1] < second[1] < average[1]
    assert len(maps.words) == 4
    row = first[0]
    for i in range(4):
        lights = [lit(tiles[0], maps.word(i, 0)), lit(tiles[1], maps.word(i, 1))]
        lights.append(lit(tiles[1], maps.word(i)))
        spots = [spot for light in lights for spot in places(light)]
        assert [x for _, x in spots] == [first[1], second[1], average[1]]
        assert spots[0][0] == spots[1][0] == spots[2][0] > row
        row = spots[0][0]


def test_the_command(tmp_path, capsys, monkeypatch, emoji):
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    drawing(200).save(tmp_path / "drawing.png")
    line = ["attention", PROMPT, "-I", str(tmp_path / "drawing.png"), "--fit", "-s4", "-S5", "-C4"]
    assert main([*line, "-f", "0.5", "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    shares = re.findall(r"(\w+) (\d+\.\d)%", out.partition("of all attention: ")[2])
    assert [word for word, _ in shares] == ["a", "red", "heart", "3d"]
    assert 0 < sum(float(share) for _, share in shares) < 100
    with Image.open(tmp_path / "out" / "000001.5.attention.png") as strip:
        assert strip.text["Title"].startswith(PROMPT)
        assert strip.width > 3 * 96 and strip.height > 5 * 96


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-I", "drawing.png", "-f", "0"], "runs no step"),
        (["-I", "drawing.png", "-n3"], "-n"),
        ([], "-I FILE"),
    ],
)
def test_mistakes(tmp_path, capsys, monkeypatch, emoji, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    drawing(64).save("drawing.png")
    assert status_of(["attention", PROMPT, "-s4", *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.png")] == ["drawing.png"]


def test_a_blend_has_no_words(tmp_path, capsys, monkeypatch, emoji):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    drawing(64).save("drawing.png")
    assert status_of(["attention", "fire:1 tree:2", "-I", "drawing.png"]) == 2
    assert "blend" in capsys.readouterr().err


def status_of(words: list[str]) -> int:
    """The exit status, also where argparse ends the program."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code)
