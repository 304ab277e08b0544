"""Pictures of every kind are read; 8-bit pictures are written as CompVis writes them."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

import minisd
from minisd.images import floor_to_multiple, open_image, resize, to_pil, to_pils, to_tensor
from tests.icc import SRGB, cmyk_profile, grey_profile, profile, rgb_profile, sampled_curve
from tests.stand_ins import StandIn

REPORTS = Path(__file__).parent / "data" / "reports"
RGB = np.random.RandomState(1).randint(0, 256, (20, 30, 3), np.uint8)
PICTURE = Image.fromarray(RGB)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK"])
def test_every_mode(mode):
    if mode in ("La", "RGBa"):
        image = PICTURE.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    elif mode == "PA":
        image = PICTURE.convert("P").convert("PA")
    else:
        image = PICTURE.convert(mode)
    opened = open_image(image)
    assert opened.mode == ("RGBA" if mode in ("LA", "La", "PA", "RGBA", "RGBa") else "RGB")
    assert to_tensor(opened).shape == (1, 3, 20, 30)
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(np.asarray(opened.convert("RGB")), RGB)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV"])
def test_other_colour_spaces(mode):
    image = Image.merge("LAB", PICTURE.split()) if mode == "LAB" else PICTURE.convert(mode)
    assert open_image(image).mode == "RGB"


def test_16_bit_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    opened = np.asarray(open_image(tmp_path / "ramp.png"))[..., 0]
    assert np.array_equal(opened, (ramp / 65535 * 255).astype(np.uint8))


def test_float_and_integer_modes():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert open_image(Image.fromarray(values)).getextrema()[0] == (0, 255)
    integers = Image.fromarray((values * 65535).astype(np.int32))
    assert open_image(integers).getextrema()[0] == (0, 255)
    assert open_image(Image.fromarray(np.full((8, 8), np.nan, np.float32))).mode == "RGB"


def test_transparent_palette(tmp_path):
    """The colours under the transparency are kept, and the transparency too."""
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    opened = open_image(tmp_path / "p.png")
    assert opened.getpixel((1, 1)) == (10, 20, 30, 0)
    assert opened.getpixel((0, 0)) == (200, 100, 50, 255)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    opened = open_image(tmp_path / "turned.png")
    assert opened.size == (20, 30)
    assert np.array_equal(np.asarray(opened), np.rot90(RGB, -1))


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "two.gif").convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_resizing_keeps_colours_under_transparency():
    hidden = Image.new("RGBA", (64, 64), (200, 100, 50, 0))
    assert resize(hidden, (16, 16)).getpixel((8, 8)) == (200, 100, 50, 0)


SIDES = [((512, 512), (512, 512)), ((384, 383), (384, 320)), ((1, 1), (64, 64))]


@pytest.mark.parametrize(("size", "expected"), [*SIDES, ((700, 90), (640, 64))])
def test_sides_are_floored_with_a_warning(size, expected, recwarn):
    assert floor_to_multiple(Image.new("RGB", size), 64).size == expected
    messages = [str(warning.message) for warning in recwarn]
    if size == expected:
        assert messages == []
    else:
        before, after = (f"{width}x{height}" for width, height in (size, expected))
        assert messages == [f"the image is {before}; resized to {after}, multiples of 64"]


def test_truncation_to_8_bits():
    """CompVis: 255 * clamp((x + 1) / 2) as uint8, without rounding."""
    x = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 1.5]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert np.asarray(to_pil(x))[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_broken_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.png")
    with pytest.raises(OSError):
        open_image(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    PICTURE.save(tmp_path / "complete.png")
    data = (tmp_path / "complete.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name in ("text.png", "cut.png"):
        with pytest.raises(OSError, match=name):
            open_image(tmp_path / name)


@pytest.mark.parametrize(
    "convert", [lambda x: x, lambda x: x / 255, lambda x: (x / 255).astype("f4")]
)
def test_arrays(convert):
    """uint8, or floats in 0..1, as grey, RGB or RGBA."""
    rgb, alpha = RGB, RGB[..., 0]
    assert np.array_equal(np.asarray(open_image(convert(rgb))), rgb)
    grey = np.asarray(open_image(convert(alpha)))
    assert np.array_equal(grey, np.stack([alpha] * 3, axis=-1))
    rgba = np.dstack([rgb, alpha])
    assert open_image(convert(rgba)).mode == "RGBA"
    assert np.array_equal(np.asarray(open_image(convert(rgba))), rgba)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 8, 8)), "must be .H, W., .H, W, 3. or .H, W, 4., not"),
        (np.zeros(8), "must be"),
        (
            np.full((8, 8, 3), 255.0),
            "must hold uint8, or floats in 0..1, not float64 255.0 to 255.0",
        ),
        (np.full((8, 8, 3), -0.1), "must hold uint8"),
        (np.zeros((8, 8, 3), np.int64), "must hold uint8"),
        (np.full((8, 8, 3), np.nan), "must hold uint8"),
    ],
)
def test_wrong_arrays(values, message):
    with pytest.raises(ValueError, match=message):
        open_image(values)


def test_a_batch_of_pictures():
    images = torch.rand(3, 3, 8, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert [image.size for image in to_pils(images)] == [(16, 8)] * 3
    for i, image in enumerate(to_pils(images)):
        assert image.tobytes() == to_pil(images[i : i + 1]).tobytes()


def test_huge_picture_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (20000, 20000)).save(path)
    with pytest.raises(ValueError, match="is too large: it has more than"):
        open_image(path)


# ---- colour profiles -----------------------------------------------------------------------------

SWAPPED = rgb_profile({"r": SRGB["b"], "g": SRGB["g"], "b": SRGB["r"]})


def with_profile(image, data):
    image = image.copy()
    image.info["icc_profile"] = data
    return image


@pytest.mark.parametrize("name", ["wide_gamut.png", "wide_gamut_hole.png"])
def test_a_wide_gamut_picture_is_its_twin_in_srgb(name):
    opened, twin = open_image(REPORTS / name), Image.open(REPORTS / "drawing.png")
    assert opened.mode == ("RGBA" if "hole" in name else "RGB")
    assert np.array_equal(np.asarray(opened.convert("RGB")), np.asarray(twin))
    assert "icc_profile" not in opened.info
    stored = Image.open(REPORTS / name)
    assert np.array_equal(np.asarray(opened)[..., 3:], np.asarray(stored)[..., 3:])


@pytest.mark.parametrize(
    ("image", "data", "expected"),
    [
        (Image.new("RGB", (4, 4), (0, 0, 255)), SWAPPED, (255, 0, 0)),
        (Image.new("RGBA", (4, 4), (0, 0, 255, 7)), SWAPPED, (255, 0, 0, 7)),
        (Image.new("RGBA", (4, 4), (0, 0, 255, 0)), SWAPPED, (255, 0, 0, 0)),
        (Image.new("RGB", (4, 4), (0, 0, 255)).quantize(2), SWAPPED, (255, 0, 0)),
        (Image.new("L", (4, 4), 128), rgb_profile(curve=b"curv" + bytes(8)), (188, 188, 188)),
        (Image.new("L", (4, 4), 128), grey_profile(), (188, 188, 188)),
        (Image.new("LA", (4, 4), (128, 9)), grey_profile(), (188, 188, 188, 9)),
        (Image.new("1", (4, 4), 1), grey_profile(), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 32896, np.uint16)), grey_profile(), (188, 188, 188)),
        (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), cmyk_profile(), (255, 0, 0)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), cmyk_profile(), (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 0, 255, 0)), cmyk_profile(), (0, 0, 0)),
    ],
    ids="rgb rgba hidden palette grey-rgb grey grey-alpha bit grey16 ink paper black".split(),  # noqa: SIM905
)
def test_profiles_of_every_kind(image, data, expected):
    opened = open_image(with_profile(image, data))
    assert np.abs(np.subtract(opened.getpixel((1, 1)), expected)).max() <= 2
    assert opened.mode == ("RGBA" if len(expected) == 4 else "RGB")
    assert "icc_profile" not in opened.info and "icc_profile" not in open_image(opened).info
    assert np.array_equal(np.asarray(open_image(opened)), np.asarray(opened))  # not twice


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_profiles_in_files(tmp_path, ending):
    Image.new("RGB", (16, 16), (0, 0, 255)).save(tmp_path / f"a.{ending}", icc_profile=SWAPPED)
    red, green, blue = open_image(tmp_path / f"a.{ending}").getpixel((8, 8))
    assert red > 245 and green < 10 and blue < 10


@pytest.mark.parametrize("points", [26, 1024])
def test_pictures_in_srgb_keep_their_bits(points):
    """Profiles of sRGB differ in how finely they describe its curve."""
    image = with_profile(PICTURE, rgb_profile(curve=sampled_curve(points)))
    assert np.array_equal(np.asarray(open_image(image)), RGB)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(np.asarray(open_image(with_profile(PICTURE, srgb))), RGB)


@pytest.mark.parametrize(
    "data",
    [b"x", b"\0" * 200, SWAPPED[:300], grey_profile(), cmyk_profile(), profile("RGB ", "XYZ ", {})],
    ids=["text", "zeros", "cut", "of-grey", "of-cmyk", "empty"],
)
def test_a_profile_that_cannot_be_used_is_ignored(data):
    with pytest.warns(UserWarning, match="the picture's colour profile cannot be used"):
        opened = open_image(with_profile(PICTURE, data))
    assert np.array_equal(np.asarray(opened), RGB)


def test_results_hold_no_profile():
    """A picture without one is taken for sRGB, and so is what minisd draws."""
    image = with_profile(Image.new("RGB", (16, 16), (0, 0, 255)), SWAPPED)
    result = minisd.img2img(StandIn(), "x", image, strength=0)
    assert result.image.getpixel((8, 8)) == (255, 0, 0) and result.image.info == {}


# ---- grey values of 16 and 32 bits ---------------------------------------------------------------


def test_the_colour_key_of_16_bits_is_kept():
    opened = open_image(REPORTS / "grey16_colour_key.png")
    values = np.asarray(Image.open(REPORTS / "grey16_colour_key.png"))
    assert np.array_equal(np.asarray(opened)[..., 3] == 0, values == 61680)
    assert np.array_equal(np.asarray(opened)[..., 0], (values / 65535 * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("image", "span"),
    [
        (REPORTS / "grey_float_one_hot_pixel.tif", "0.435294 to 1e.06, and 1e.06 is white"),
        (Image.fromarray(np.full((8, 8), 200, np.uint16)), "200 to 200, and 65535 is white"),
        (Image.fromarray(np.full((8, 8), 200, np.int32)), "200 to 200, and 65535 is white"),
        (Image.fromarray(np.full((8, 8), 0.01, np.float32)), "0.01 to 0.01, and 1 is white"),
    ],
    ids=["hot pixel", "8 bits in 16", "8 bits in 32", "dark floats"],
)
def test_nearly_black_after_scaling(image, span):
    with pytest.warns(UserWarning, match=f"nearly all of the picture is black.*{span}"):
        open_image(image)


def test_whole_numbers_above_16_bits_are_scaled():
    values = np.array([[0, 1 << 29], [1 << 30, 1 << 30]], np.int32)
    assert np.asarray(open_image(Image.fromarray(values)))[..., 0].tolist() == [
        [0, 127],
        [255, 255],
    ]


def test_ordinary_pictures_get_no_warning():
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    black = np.zeros((8, 8), np.uint16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in (ramp.astype(np.uint16), (ramp / 65535).astype(np.float32), black):
            open_image(Image.fromarray(values))


# ---- long texts ----------------------------------------------------------------------------------


def test_a_picture_with_a_long_text():
    opened = open_image(REPORTS / "big_text_ztxt.png")
    assert np.array_equal(np.asarray(opened), np.asarray(Image.open(REPORTS / "drawing.png")))


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("chunk", ["tEXt", "zTXt", "iTXt", "iCCP"])
def test_every_long_chunk_of_text(tmp_path, chunk):
    """Pillow alone refuses texts and profiles of more than 1 MB."""
    info, long = PngInfo(), "x" * 5_000_000
    if chunk == "iTXt":
        info.add_itxt("workflow", long, zip=True)
    elif chunk in ("tEXt", "zTXt"):
        info.add_text("workflow", long, zip=chunk == "zTXt")
    data = profile("RGB ", "XYZ ", {"long": long.encode()}) if chunk == "iCCP" else b""
    PICTURE.save(tmp_path / "long.png", pnginfo=info, icc_profile=data)
    if chunk == "iCCP":
        with pytest.warns(UserWarning, match="profile cannot be used"):
            opened = open_image(tmp_path / "long.png")
    else:
        opened = open_image(tmp_path / "long.png")
    assert np.array_equal(np.asarray(opened), RGB)


def test_a_bomb_of_text_is_refused(tmp_path):
    """200 kB in the file, 200 MB in memory."""
    data = io.BytesIO()
    PICTURE.save(data, "PNG")
    start = data.getvalue()[:33]  # the signature and the header
    bomb = png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(200_000_000), 9))
    (tmp_path / "bomb.png").write_bytes(start + bomb + data.getvalue()[33:])
    with pytest.raises(OSError, match=r"bomb.png cannot be read as a picture"):
        open_image(tmp_path / "bomb.png")


# ---- what cannot be a picture --------------------------------------------------------------------


@pytest.mark.parametrize("picture", [None, 3, 0.5, [[1, 2]]])
def test_other_types_are_refused(picture):
    with pytest.raises(TypeError, match=type(picture).__name__):
        open_image(picture)


def test_transparency_that_img2img_ignores():
    """img2img draws on all of the picture; with a warning if something of it is hidden."""
    hidden = Image.new("RGBA", (16, 16), (200, 100, 50, 0))
    with pytest.warns(UserWarning, match="the picture's transparency is ignored"):
        result = minisd.img2img(StandIn(), "x", hidden, strength=0)
    assert np.abs(np.subtract(result.image.getpixel((0, 0)), (200, 100, 50))).max() <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minisd.img2img(StandIn(), "x", Image.new("RGBA", (16, 16), (9, 9, 9, 250)), strength=0)


def test_alpha_is_averaged_and_does_not_ring():
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[20:44, 20:44] = 0
    image = Image.fromarray(np.dstack([np.zeros((64, 64, 3), np.uint8), alpha]))
    half = np.asarray(resize(image, (32, 32)))[..., 3]
    assert np.array_equal(half, alpha[::2, ::2])
