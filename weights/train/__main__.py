"""Train a model like the one that comes with minisd, from pictures and captions to one file.

    python -m weights.train --profile gpu       # or cpu; or --quick, a toy in two minutes

Run from the repository's root. Stop it at any time with Ctrl-C or SIGTERM; the same command goes
on where it stopped. README.md beside this explains each stage, and how to measure the result.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import minisd
from minisd.fast import keep_memory
from minisd.images import to_tensor
from weights.train import data
from weights.train.autoencoder import reconstructions, train_autoencoder, train_decoder
from weights.train.cache import encode_all
from weights.train.diffusion import train_diffusion
from weights.train.export import export, take_up
from weights.train.pictures import FIRE, Stylist, draw, sheet
from weights.train.profiles import PROFILES, STAGES, new_text_encoder, new_vae
from weights.train.words import train_words

PROMPTS = ("fire", "red heart", "cat face", "house", "star", "rocket", "red apple", "two hearts")


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m weights.train", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu", help="default: cpu")
    parser.add_argument("--quick", action="store_const", const="quick", dest="profile")
    parser.add_argument("--data", metavar="DIR", help="folder of the packed pictures")
    parser.add_argument("--run", type=Path, metavar="DIR", help="default: runs/PROFILE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--minutes", type=float, nargs=4, metavar=tuple("ABCD"), help=f"of {', '.join(STAGES)}"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="FILE", help="go on from an exported file"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Path:
    args = parsed(argv)
    profile, device = PROFILES[args.profile], torch.device(args.device)
    if args.minutes:
        stages = zip(STAGES, args.minutes)
        profile = replace(
            profile, **{s: replace(getattr(profile, s), minutes=m) for s, m in stages}
        )
    folder = args.run or Path("runs") / profile.name
    folder.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    start = time.monotonic()
    pack = data.read(data.find(args.data), profile.size, device)
    parts = data.split(pack.rows)
    train, held = (pack.take(np.flatnonzero(parts == part)) for part in ("train", "held"))
    seconds = time.monotonic() - start
    print(f"{len(train.rows):,} pictures to train on, {len(held.rows)} held out ({seconds:.0f} s)")

    took_up = take_up(args.start) if args.start else None
    if took_up:
        vae = new_vae(profile)
        vae.load_state_dict(took_up["vae"])
        vae = vae.to(device).requires_grad_(False).eval()
    else:
        vae = train_autoencoder(train, profile, folder, args.seed)
    train_decoder(train, vae, profile, folder, args.seed)
    shown = on_white(held.rgba[:32])
    reconstructions(vae, shown, folder / "reconstructions.png")

    learned = np.flatnonzero(data.labelled(train.rows, profile.concepts))
    fire = [i for i in learned if train.rows[i]["codepoint"] == FIRE]
    train = train.take(np.concatenate([learned, *[fire] * 7]).astype(int))  # the document's word
    cache = encode_all(train, vae, profile, folder / "latents.pt", args.seed)
    some = train.take(np.arange(0, len(train.rows), max(1, len(train.rows) // 200)))
    some = [picture(image) for image in torch.cat([*plain_and_augmented(some, args.seed)])]
    del pack, train
    text = new_text_encoder(profile) if took_up else train_words(cache, profile, folder, args.seed)
    models, trained, stopped = train_diffusion(cache, text, profile, folder, args.seed, took_up)
    path = folder / "model.safetensors"
    sd = export(path, vae, models, profile, trained, some)
    drawn = [minisd.txt2img(sd, p, steps=10, guidance=4, seed=1).image for p in PROMPTS]
    sheet([(torch.cat([*map(to_tensor, drawn)]) + 1) / 2], folder / "samples.png")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB after {trained['step']:,} steps")
    if stopped:
        raise stopped
    return path


def on_white(rgba: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 4, S, S) -> (B, 3, S, S) in [-1, 1]."""
    rgba = rgba.float() / 255
    return (rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]) * 2 - 1


def plain_and_augmented(pack: data.Pack, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures on white, and as augmentation makes them: (N, 3, S, S) in [-1, 1] each."""
    everything = np.arange(len(pack.rows))
    looks = Stylist(pack.rows)(everything, np.random.default_rng(seed))
    return on_white(pack.rgba), draw(pack, everything, looks)


def picture(image: torch.Tensor) -> Image.Image:
    values = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values)


if __name__ == "__main__":
    keep_memory()  # on a CPU, with a thread for each core: half of the time
    main()
