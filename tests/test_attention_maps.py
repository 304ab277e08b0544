"""Attention to words: the maps against softmax written out, and that looking changes nothing."""

import math

import pytest
import torch
from PIL import Image

import minisd
from minisd.__main__ import main
from minisd.attention_maps import AttentionMaps, attention_shares, words_of
from minisd.explorer.overlay import attention_strip, heat
from minisd.trace.watch import together

PROMPT = "a red heart, 3d"
SETTINGS = {"strength": 0.5, "steps": 4, "seed": 5, "guidance": 4.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawing(size: int = 64) -> Image.Image:
    image = Image.radial_gradient("L").resize((size, size))
    return Image.merge("RGB", (image, image.rotate(90), image))


def hooks_left(unet: torch.nn.Module) -> int:
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
                expected = [e + s / sum(scores) / 2 for e, s in zip(expected, scores)]
            # float32 softmax of numbers near 1: a few units of 6e-8
            assert shares[b, n].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_maps_are_those_of_the_layers(tiny, guidance):
    """From each layer's own inputs, as another hook sees them, head by head."""
    inputs: dict[str, list[torch.Tensor]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda m, given, out, name=name: inputs.setdefault(name, []).append(given)
        )
        for name, layer in tiny.unet.named_modules()
        if name.endswith("attn2")
    ]
    # 128 x 64 pixels: the latent is 16 x 8, no layer may mix up its sides
    wide = drawing(128).resize((128, 64))
    with AttentionMaps(tiny, PROMPT) as maps:
        settings = SETTINGS | {"guidance": guidance}
        minisd.img2img(tiny, PROMPT, wide, **settings, observe=maps)
    for hook in hooks:
        hook.remove()
    h, w = maps.shape[2:]
    assert (h, w) == (8, 16)
    assert maps.n_tokens == 6 and len(maps.steps) == 2
    for step, found in enumerate(maps.steps):
        total = torch.zeros(77, h, w)
        for name, calls in inputs.items():
            layer = tiny.unet.get_submodule(name)
            x, context = (given[-1] for given in calls[step])  # of the batch, the prompt's half
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
        assert torch.allclose(found[0, :7], total[:7], atol=2e-6)
        assert torch.allclose(found[0, 7], total[7:].sum(dim=0), atol=2e-6)
        assert torch.allclose(found.sum(dim=1), torch.ones(1, h, w), atol=1e-5)


@pytest.mark.parametrize("sampler", ["k_lms", "k_heun", "k_euler_a"])
def test_looking_changes_nothing(emoji, sampler):
    settings = SETTINGS | {"sampler": sampler}
    plain = minisd.img2img(emoji, PROMPT, drawing(), **settings)
    with AttentionMaps(emoji, PROMPT) as maps:
        seen = minisd.img2img(emoji, PROMPT, drawing(), **settings, observe=maps)
    assert torch.equal(plain.latent, seen.latent)
    assert plain.image.tobytes() == seen.image.tobytes()
    assert len(maps.steps) == len(maps.sigmas) == 2  # k_heun calls twice a step: the first counts


def test_the_prompt_is_looked_at_not_the_negative_prompt(emoji):
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
    with pytest.raises(ValueError, match="'blue' is no word of the prompt; there are red, heart"):
        maps.word("blue")
    with pytest.raises(ValueError, match="no step was observed"):
        AttentionMaps(emoji, "red").word("red")


def test_hooks_go_away(emoji):
    before = hooks_left(emoji.unet)
    with pytest.raises(RuntimeError), AttentionMaps(emoji, "x"):
        assert hooks_left(emoji.unet) > before
        raise RuntimeError
    assert hooks_left(emoji.unet) == before
    with AttentionMaps(emoji, PROMPT) as maps:  # in the block, but no observer: nothing piles up
        minisd.img2img(emoji, PROMPT, drawing(), **SETTINGS)
        assert maps.calls == [] and maps.steps == []


def test_two_runs_in_one_block(emoji):
    with AttentionMaps(emoji, PROMPT) as maps:
        for strength in (1.0, 0.5):
            settings = SETTINGS | {"strength": strength}
            minisd.img2img(emoji, PROMPT, drawing(), **settings, observe=together(maps))
    assert len(maps.steps) == 2  # the last run's


def test_heat_is_brightest_where_the_share_is_highest():
    shares = torch.tensor([[0.05, 0.10], [0.10, 0.15]])
    image = heat(shares)
    levels = [sum(image.getpixel(place)) for place in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert levels[0] < levels[1] == levels[2] < levels[3]
    assert image.getpixel((1, 1)) == (255, 248, 226) and image.getpixel((0, 0)) == (40, 30, 92)
    assert heat(torch.zeros(2, 2)).size == (2, 2)


def test_strip(emoji):
    with AttentionMaps(emoji, PROMPT) as maps:
        minisd.img2img(emoji, PROMPT, drawing(), **SETTINGS, observe=maps)
    strip = attention_strip(maps, [drawing()] * 2, "title", size=40)
    assert strip.width > 3 * 40 and strip.height > 5 * 40


def test_the_command(tmp_path, capsys):
    drawing(200).save(tmp_path / "drawing.png")
    line = ["attention", PROMPT, "-I", str(tmp_path / "drawing.png"), "--fit", "-s4", "-S5", "-C4"]
    assert main([*line, "-f", "0.5", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "of all attention: a " in said and "heart" in said
    with Image.open(tmp_path / "out" / "000001.5.attention.png") as strip:
        assert strip.text["Title"].startswith(PROMPT)
    assert main([*line, "-f", "0", "-o", str(tmp_path / "out")]) == 2
    assert "runs no step" in capsys.readouterr().err
    assert main([*line, "-n3"]) == 2
    assert "--iterations" in capsys.readouterr().err
    assert main(["attention", "fire:1 tree:2", *line[2:]]) == 2
    assert "blend" in capsys.readouterr().err
    assert main(["attention", "fire"]) == 2
    assert "-I FILE" in capsys.readouterr().err
