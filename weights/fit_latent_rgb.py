"""Fit the factors for previews of latents without the decoder: rgb = latent @ factors + bias.

    python weights/fit_latent_rgb.py                          # the weights that come with minisd
    python weights/fit_latent_rgb.py pictures/ --model FILE   # with pictures of your own

A least squares fit over every point of the pictures' latents. It pairs the point's four numbers, as
`sd.vae.encode` gives them, with the mean colour of the pixels below it, in [-1, 1]. The result goes
into a checkpoint's metadata, as `latent_rgb` and `latent_rgb_bias` under the key `minisd`.

If no pictures are named, the model draws them, from a list of words and styles.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minisd
from minisd.images import floor_to_multiple, open_image, resize, to_tensor

WORDS = """fire, red heart, cat face, pizza, house, rocket, sunflower, star, tree, hot beverage,
rainbow, crown, dog face, guitar, airplane, strawberry, grapes, whale, snowman, car, rose, moon,
green apple, frog""".replace("\n", " ").split(", ")
STYLES = ("3d", "flat", "noto", "mono")


def fit(sd: minisd.StableDiffusion, pictures: list[Image.Image]) -> tuple[Tensor, float]:
    """(5, 3), the factors and in the last row the bias; and the share of variance explained."""
    latents, colours = [], []
    with torch.inference_mode():
        for picture in pictures:
            image = to_tensor(floor_to_multiple(picture, sd.multiple))  # (1, 3, H, W)
            latents.append(sd.vae.encode(image)[0].flatten(1).T)  # (h * w, 4)
            colours.append(F.avg_pool2d(image, sd.vae.factor)[0].flatten(1).T)  # (h * w, 3)
    x, y = torch.cat(latents).double(), torch.cat(colours).double()
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    solution = torch.linalg.lstsq(x, y).solution  # (5, 3)
    unexplained = ((x @ solution - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    return solution, 1 - float(unexplained)


def drawn_pictures(sd: minisd.StableDiffusion) -> list[Image.Image]:
    prompts = [f"{word}, {style}" for word in WORDS for style in STYLES]
    return [
        minisd.txt2img(sd, prompt, steps=15, guidance=4, seed=i).image
        for i, prompt in enumerate(prompts)
    ]


def open_all(paths: list[str], side: int) -> list[Image.Image]:
    """Pictures from files and folders, scaled down until the shorter side is `side`."""
    files = []
    for path in map(Path, paths):
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    pictures = [open_image(file).convert("RGB") for file in files]
    scales = [min(1.0, side / min(picture.size)) for picture in pictures]
    return [
        resize(picture, (round(picture.width * scale), round(picture.height * scale)))
        for picture, scale in zip(pictures, scales, strict=True)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", nargs="*", help="files and folders; none: the model draws some")
    parser.add_argument("--model", metavar="FILE", help="a checkpoint (minisd's own small weights)")
    args = parser.parse_args()
    sd = minisd.load(args.model)
    factors, share = fit(sd, open_all(args.pictures, sd.native_size) or drawn_pictures(sd))
    rows = [[round(float(value), 4) for value in row] for row in factors]
    print(json.dumps({"latent_rgb": rows[:4], "latent_rgb_bias": rows[4]}))
    print(f"explains {share:.1%} of the colours' variance")
    own = torch.tensor([*map(list, sd.latent_rgb), list(sd.latent_rgb_bias)])
    print(f"largest difference from the model's own: {float((own - factors).abs().max()):.3f}")
