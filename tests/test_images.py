"""Pictures of every kind are read; 8-bit pictures are written as CompVis writes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from minisd.images import floor_to_multiple, open_image, resize, to_pil, to_pils, to_tensor

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
