"""What a mask means: how it is read, resized and judged, from Python and on the command line."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd.cli.main import main
from minisd.images import open_image
from minisd.inpaint import colours_erased, doubt, keep_mask
from minisd.recipes import prepare
from tests.icc import grey_profile
from tests.stand_ins import StandIn

REPORTS = Path(__file__).parent / "data" / "reports"
DRAWING = open_image(REPORTS / "drawing.png")
HOLE = np.array(Image.open(REPORTS / "mask_hole.png"))  # 0 in 25.8 %, 255 elsewhere


def opaque_except(alpha, colour=(200, 100, 50)):
    """A picture of one colour with this alpha (H, W)."""
    image = Image.new("RGB", alpha.shape[::-1], colour)
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def one_pixel(alpha, others=255):
    values = np.full((64, 64), others, np.uint8)
    values[5, 9] = alpha
    return values


def rgba(grey, alpha):
    """A mask with brightness and alpha, each (H, W)."""
    return Image.fromarray(np.dstack([grey] * 3 + [alpha]).astype(np.uint8))


def kept(image, mask=None):
    """keep_mask's result (H, W), and its warnings as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keep = keep_mask(open_image(image), mask, open_image(image).size)
    return keep[0, 0].numpy(), "; ".join(str(warning.message) for warning in caught)


# ---- how a mask is read --------------------------------------------------------------------------

SIXTEEN = HOLE.astype(np.uint16) * 257
LABELS = Image.fromarray(np.where(HOLE > 0, 1, 0).astype(np.uint8))
LABELS.putpalette([90, 0, 0, 0, 200, 0])
JPEG = np.where(HOLE > 0, 252, 3).astype(np.uint8)
JPEG[::2] += 1


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (REPORTS / "mask_hole.png", ""),
        (REPORTS / "mask_hole_2x.png", ""),
        (REPORTS / "mask_hole_alpha_254.png", ""),
        (REPORTS / "mask_values_0_1.png", "two values, 0 and 1: they count as black .redr"),
        (HOLE, ""),
        (HOLE > 0, ""),
        (HOLE / 255, ""),
        (Image.fromarray(HOLE > 0), ""),
        (Image.fromarray(SIXTEEN), ""),
        (Image.fromarray((HOLE > 0).astype(np.uint16)), "two values, 0 and 1"),
        (Image.fromarray(SIXTEEN.astype(np.int32)), "two values, 0 and 65535"),
        (Image.fromarray((HOLE > 0).astype(np.int32) * 70), "two values, 0 and 70"),
        ((HOLE > 0).astype(np.int64), "two values, 0 and 1"),
        (Image.fromarray((HOLE / 255).astype(np.float32)), ""),
        (Image.fromarray(HOLE.astype(np.float32)), "two values, 0 and 255"),
        (np.where(HOLE > 0, 130, 120).astype(np.uint8), "two values, 120 and 130"),
        (LABELS, "two values, 27 and 117"),
        (JPEG, ""),
        (rgba(HOLE * 0, HOLE), ""),
        (rgba(HOLE, one_pixel(0)), "0.0244 % of the mask is transparent: its brightness is used"),
        (rgba(HOLE, one_pixel(254, others=250)), ""),
        (Image.merge("LA", [Image.fromarray(HOLE), Image.new("L", (64, 64), 255)]), ""),
    ],
)  # fmt: skip
def test_every_form_of_one_mask(mask, words):
    """All are the same hole, in other formats, and with what real programs leave in masks."""
    keep, notes = kept(DRAWING, mask)
    assert np.array_equal(keep, HOLE / 255)
    if words:
        with pytest.warns(UserWarning, match=words):
            keep_mask(DRAWING, mask, DRAWING.size)
    else:
        assert notes == ""


def test_masks_in_files(tmp_path):
    """EXIF's orientation turns a mask too, and a colour key makes it transparent."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    upper = np.full((64, 64), 255, np.uint8)
    upper[:20] = 0
    Image.fromarray(np.rot90(upper)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(kept(DRAWING, tmp_path / "turned.png")[0], upper / 255)
    Image.fromarray(np.where(upper > 0, 200, 77).astype(np.uint8)).save(
        tmp_path / "key.png", transparency=77
    )
    assert np.array_equal(kept(DRAWING, tmp_path / "key.png")[0], upper / 255)
    with pytest.raises(FileNotFoundError):
        keep_mask(DRAWING, tmp_path / "none.png", DRAWING.size)


def test_transparency_of_a_mask_with_a_picture_in_it():
    """From 0.1 % of the pixels on, its alpha decides."""
    keep, notes = kept(DRAWING, rgba(np.asarray(DRAWING)[..., 1], HOLE))
    assert np.array_equal(keep, HOLE / 255) and notes == ""


def test_soft_masks_stay_soft():
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    keep, _ = kept(DRAWING, ramp)
    expected = np.where(ramp >= 250, 255, np.where(ramp <= 5, 0, ramp))
    assert np.array_equal(keep, expected.astype(np.float32) / 255)


def test_a_profile_does_not_change_black_and_white():
    mask = Image.fromarray(HOLE)
    mask.info["icc_profile"] = grey_profile()
    assert np.array_equal(kept(DRAWING, mask)[0], HOLE / 255)


# ---- the picture's own transparency --------------------------------------------------------------


@pytest.mark.parametrize("alpha", [250, 252, 254])
def test_almost_opaque_is_opaque(alpha):
    for image in (opaque_except(one_pixel(alpha)), Image.new("RGBA", (64, 64), (9, 9, 9, alpha))):
        with pytest.raises(ValueError, match="nothing to inpaint"):
            minisd.inpaint(StandIn(), "x", image, steps=2)
        assert not prepare(minisd.Recipe("x"), StandIn(), image).inpaints


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (opaque_except(one_pixel(0)), "only 0.0244 % of the picture is redrawn"),
        (opaque_except(one_pixel(249)), "only 0.0244 % of the picture is redrawn"),
        (opaque_except(HOLE * 0), "all of the picture is redrawn"),
        (opaque_except(HOLE * 0 + 3), "all of the picture is redrawn"),
        (opaque_except(HOLE * 0 + 128), "100 % of the picture is redrawn, most of it only in part"),
        (opaque_except(HOLE // 2 + 127), "25.8 % of the picture is redrawn, most of it only"),
        (opaque_except(HOLE, (0, 0, 0)), "no colours under its transparency"),
    ],
)  # fmt: skip
def test_what_may_be_a_mistake(image, words):
    """The same warnings from Python, by minisd.inpaint and by a recipe."""
    with pytest.warns(UserWarning, match=words):
        minisd.inpaint(StandIn(), "x", image, steps=2)
    with pytest.warns(UserWarning, match=words):
        assert prepare(minisd.Recipe("x"), StandIn(), image).inpaints


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (DRAWING, REPORTS / "mask_all_white.png", "by the mask: nothing is redrawn"),
        (DRAWING, HOLE * 0, "by the mask: all of the picture is redrawn"),
        (DRAWING, HOLE * 0 + 1, "by the mask: all of the picture is redrawn"),
        (DRAWING, one_pixel(254), "two values, 254 and 255"),
        (DRAWING, np.repeat(HOLE, 2, axis=1), "mask is 128x64, the picture 64x64: .* stretched"),
        (REPORTS / "wide_128x64.png", REPORTS / "mask_square.png", "stretched"),
        (opaque_except(HOLE), HOLE, "the picture's own transparency is ignored"),
    ],
)  # fmt: skip
def test_masks_that_may_be_a_mistake(image, mask, words):
    with pytest.warns(UserWarning, match=words):
        minisd.inpaint(StandIn(), "x", image, mask, steps=2)
    with pytest.warns(UserWarning, match=words):
        prepare(minisd.Recipe("x"), StandIn(), image, mask)


def test_an_ordinary_mask_gets_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minisd.inpaint(StandIn(), "x", opaque_except(HOLE), steps=2)
        minisd.inpaint(StandIn(), "x", DRAWING, REPORTS / "mask_hole.png", steps=2)
    assert doubt(torch.from_numpy(HOLE / 255)[None, None]) == ""


@pytest.mark.parametrize("size", [(70, 50), (64, 48), (140, 100), (35, 25)])
def test_a_mask_may_have_the_proportions_before_or_after_resizing(size):
    """A picture of 70x50 pixels is drawn at 64x48."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mask = Image.new("L", size, 255)
        mask.paste(0, (0, 0, size[0] // 2, size[1]))
        minisd.inpaint(StandIn(), "x", Image.new("RGB", (70, 50)), mask, steps=2)
    assert not any("stretched" in str(warning.message) for warning in caught)


def test_a_stray_pixel_of_a_large_picture_is_opaque():
    """Its alpha is averaged when the picture is scaled down: all of the picture is redrawn."""
    alpha = np.full((640, 640), 255, np.uint8)
    alpha[100, 100] = 0
    recipe = minisd.Recipe("x", fit=True, width=64, height=64)
    assert not prepare(recipe, StandIn(), opaque_except(alpha)).inpaints


@pytest.mark.parametrize(
    ("colour", "erased"), [((0, 0, 0), True), ((255, 255, 255), True), ((9, 0, 0), False)]
)
def test_erased_colours_are_noticed(colour, erased):
    image = Image.new("RGBA", (4, 4), (5, 5, 5, 255))
    image.putpixel((1, 1), (*colour, 0))
    assert colours_erased(image) == erased


def test_a_sprite_without_colours():
    with pytest.warns(UserWarning, match="no colours under its transparency"):
        prepare(minisd.Recipe("x", image=REPORTS / "sprite_erased.png"), StandIn())


# ---- kept pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.25, 0.5, 1, 1.5, 2, 3, 7.3])
def test_kept_pixels_keep_their_bits_with_a_mask_of_any_size(scale):
    side = round(64 * scale)
    mask = Image.fromarray(HOLE).resize((side, side), Image.Resampling.NEAREST)
    keep, _ = kept(DRAWING, mask)
    result = minisd.inpaint(StandIn(), "x", DRAWING, mask, steps=5, strength=0.8, seed=1)
    before, after = np.asarray(DRAWING), np.asarray(result.image)
    assert (keep == 1).mean() > 0.7 and np.array_equal(before[keep == 1], after[keep == 1])
    assert (before != after)[keep == 0].mean() > 0.5
    assert np.isin(keep, (0, 1)).mean() > 0.9  # no ringing: only the edge is soft
    if scale in (1, 2, 3):
        assert np.array_equal(keep, HOLE / 255)


def test_python_and_recipes_agree(emoji):
    """The same picture by minisd.inpaint, by a recipe, and by a recipe with the mask's tensor."""
    settings = {"steps": 4, "strength": 0.8, "guidance": 4.0, "seed": 5}
    for image, mask in ((DRAWING, REPORTS / "mask_hole_2x.png"), (opaque_except(HOLE), None)):
        direct = minisd.inpaint(emoji, "water", image, mask, **settings).image.tobytes()
        job = prepare(minisd.Recipe("water", **settings), emoji, image, mask)
        assert job.draw().image.tobytes() == direct
        tensor = minisd.inpaint(emoji, "water", job.image, job.mask, **settings)
        assert tensor.image.tobytes() == direct
        assert job.describe_mask() == "inpainting: 25.8 % of the picture is redrawn"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(64, 64), r"must have the shape \(1, 1, 64, 64\), the picture's size"),
        (torch.ones(1, 1, 32, 64), "must have the shape"),
        (torch.full((1, 1, 64, 64), 255.0), "values in 0..1"),
        (torch.full((1, 1, 64, 64), float("nan")), "values in 0..1"),
    ],
)
def test_wrong_tensors(mask, message):
    with pytest.raises(ValueError, match=message):
        minisd.inpaint(StandIn(), "x", DRAWING, mask)


def test_grey_changes_much_less_than_in_proportion(emoji):
    """README's numbers for strength 0.8."""

    def change(grey):
        mask, settings = Image.new("L", (64, 64), grey), {"strength": 0.8, "steps": 12, "seed": 1}
        image = minisd.inpaint(emoji, "water, noto", DRAWING, mask, **settings).image
        return np.abs(np.subtract(np.asarray(image, float), DRAWING)).mean()

    with pytest.warns(UserWarning, match="only in part"):
        assert 1 < change(128) < 3
    with pytest.warns(UserWarning, match="all of the picture is redrawn"):
        assert 15 < change(0) < 45


# ---- the command line ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, emoji):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    return tmp_path


def drawn(folder):
    """The pictures' files, in the order of drawing."""
    paths = (folder / "outputs/img-samples").glob("*.png")
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("words", "out", "err"),
    [
        (["-I", "alpha_one_pixel_254.png"], "", ""),
        (["-I", "wide_gamut_hole.png"], "inpainting: 25.8 % of the picture is redrawn", ""),
        (["-I", "alpha_half_everywhere.png"], "inpainting: 100 %", "most of it only in part"),
        (["-I", "drawing.png", "-M", "mask_all_white.png"], "inpainting: 0 %", "nothing is"),
        (["-I", "drawing.png", "-M", "mask_values_0_1.png"], "inpainting: 25.8 %", "two values"),
    ],
)  # fmt: skip
def test_the_command_says_what_it_redraws(folder, capsys, words, out, err):
    words = [str(REPORTS / word) if word.endswith(".png") else word for word in words]
    assert main(["img2img", "water", *words, "-s", "3", "-f", "0.7", "-S", "3"]) == 0
    printed = capsys.readouterr()
    assert out in printed.out and err in printed.err
    assert ("inpainting" in printed.out) == bool(out) and ("note" in printed.err) == bool(err)


@pytest.mark.parametrize("own", [False, True], ids=["mask", "transparency"])
def test_variants_keep_what_was_kept(folder, own):
    """Also where the mask was the init image's own transparency; and recall draws them again."""
    words = ["-I", str(REPORTS / "drawing.png"), "-M", str(REPORTS / "mask_hole.png")]
    words = ["-I", str(REPORTS / "wide_gamut_hole.png")] if own else words
    assert main(["img2img", "water", *words, "-s3", "-f.8", "-S3", "--variants", "2"]) == 0
    images = [np.asarray(Image.open(path)) for path in drawn(folder)]
    assert len(images) == 3
    for image in images:
        assert np.array_equal(image[HOLE > 0], np.asarray(DRAWING)[HOLE > 0])
    assert (images[1] != images[2])[HOLE == 0].mean() > 0.5
    assert main(["img2img", "--from", str(drawn(folder)[1]), "-o", "again"]) == 0
    (repeated,) = (folder / "again").glob("*.png")
    assert np.array_equal(np.asarray(Image.open(repeated)), images[1])
