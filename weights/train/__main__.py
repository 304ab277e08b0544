"""Train a model like the one that comes with minisd: from pictures with captions to one file.

    python -m weights.train --profile gpu       # or cpu; or --quick, a toy in half a minute

Run it from the repository's root. Ctrl-C or SIGTERM stops it at any time; the same command then
continues where it stopped. README.md in this folder explains the stages and how to measure results.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import minisd
from minisd.fast import keep_memory
from minisd.images import to_tensor
from weights.train import data
from weights.train.autoencoder import reconstructions, train_autoencoder, train_decoder
from weights.train.cache import encode_all
from weights.train.diffusion import train_diffusion
from weights.train.export import export, resume
from weights.train.pictures import FIRE, on_white, plain_and_augmented, sheet, to_image
from weights.train.pool import draw_pool
from weights.train.profiles import PROFILES, STAGES, Profile, new_text_encoder, new_vae
from weights.train.words import train_words

AUTOENCODER_SHARE, EXPORT_SECONDS = 0.25, 20  # of the time that --within leaves, for its stages
FIT_PICTURES = 200  # for fitting the factors of latent previews; as many plain as augmented
PROMPTS = ("fire", "red heart", "cat face", "house", "star", "rocket", "red apple", "two hearts")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m weights.train", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu", help="default: cpu")
    parser.add_argument("--quick", action="store_const", const="quick", dest="profile")
    parser.add_argument("--data", metavar="DIR", help="the folder that holds the pack")
    parser.add_argument("--run", type=Path, metavar="DIR", help="default: runs/PROFILE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--minutes",
        type=float,
        nargs=4,
        metavar=tuple("ABCD"),
        help=f"the time for each stage: {', '.join(STAGES)}",
    )
    parser.add_argument(
        "--within",
        type=float,
        metavar="SECONDS",
        help="finish in this time, export included; the autoencoder and the UNet share it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="FILE", help="continue from an exported file"
    )
    parser.add_argument(
        "--begin-with",
        type=Path,
        metavar="FILE",
        help="the first weights of all stages, whose budgets begin anew: an exported file",
    )
    return parser.parse_args(argv)


def limited(profile: Profile, until: float, new: bool) -> Profile:
    """The profile with stages that end by `until`. A new text encoder gets its own minutes."""
    now = time.monotonic()
    words = replace(profile.words, minutes=profile.words.minutes if new else 0)
    autoencoder = now + AUTOENCODER_SHARE * (until - now)
    return replace(
        profile,
        autoencoder=replace(profile.autoencoder, until=autoencoder, steps=None),
        decoder=replace(profile.decoder, minutes=0, steps=None),
        words=words,
        diffusion=replace(profile.diffusion, until=until, steps=None),
    )


def main(argv: list[str] | None = None) -> Path:
    args = parse(argv)
    profile, device = PROFILES[args.profile], torch.device(args.device)
    if args.minutes:
        budgets = dict(zip(STAGES, args.minutes, strict=True))
        profile = replace(
            profile,
            **{name: replace(getattr(profile, name), minutes=m) for name, m in budgets.items()},
        )
    folder = args.run or Path("runs") / profile.name
    folder.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True

    start = time.monotonic()
    pack = data.read(data.find(args.data), profile.size, device)
    parts = data.split(pack.rows)
    train, held = (pack.take(np.flatnonzero(parts == part)) for part in ("train", "held"))
    seconds = time.monotonic() - start
    print(f"{len(train.rows):,} pictures to train on, {len(held.rows)} held out ({seconds:.0f} s)")
    learned = np.flatnonzero(data.labelled(train.rows, profile.concepts))
    fire = [i for i in learned if train.rows[i]["codepoint"] == FIRE]
    # Fire, the seed document's own prompt, comes eight times as often as other things.
    learned = np.concatenate([learned, *[fire] * 7]).astype(int)
    pool = draw_pool(train, learned, profile, None if args.within else folder, args.seed)
    seconds = time.monotonic() - start
    print(f"{len(pool.pictures):,} pictures drawn ({seconds:.0f} s)", flush=True)
    if args.within:
        profile = limited(profile, start + args.within - EXPORT_SECONDS, new=not args.begin_with)

    begin = resume(args.begin_with) if args.begin_with else None
    resumed = resume(args.start) if args.start else None
    if resumed:
        vae = new_vae(profile)
        vae.load_state_dict(resumed["vae"])
        vae = vae.to(device).requires_grad_(False).eval()
    else:
        vae = train_autoencoder(pool, profile, folder, args.seed, begin and begin["vae"])
    train_decoder(pool, vae, profile, folder, args.seed)
    reconstructions(vae, on_white(held.rgba[:32]), folder / "reconstructions.png")

    cache = encode_all(pool, vae, args.seed)
    train = train.take(learned)
    sample = train.take(np.arange(0, len(train.rows), max(1, len(train.rows) // FIT_PICTURES)))
    pictures = [to_image(image) for image in torch.cat(plain_and_augmented(sample, args.seed))]
    del pack, train, pool
    if begin:
        resumed = begin | {"step": 0, "seconds": 0}
    text = new_text_encoder(profile) if resumed else train_words(cache, profile, folder, args.seed)
    models, trained, stopped = train_diffusion(cache, text, profile, folder, args.seed, resumed)
    path = folder / "model.safetensors"
    sd = export(path, vae, models, profile, trained, pictures)
    drawn = [minisd.txt2img(sd, p, steps=10, guidance=4, seed=1).image for p in PROMPTS]
    sheet([(torch.cat([*map(to_tensor, drawn)]) + 1) / 2], folder / "samples.png")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB after {trained['step']:,} steps")
    if stopped:
        raise stopped
    return path


if __name__ == "__main__":
    if not torch.cuda.is_available():
        keep_memory()  # on a CPU with a thread for each core, this halves the time
    main()
