"""From switches to pictures in a folder: `minisd img2img`, `txt2img`, and the prompt's lines."""

import argparse
import random
import re
import sys
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from minisd.cli import metadata, outputs, switches
from minisd.schedule import SCHEDULES, sigma_to_t, start_index, steps_after

if TYPE_CHECKING:
    from minisd.checkpoint import StableDiffusion
    from minisd.samplers import Step


def configure(parser: argparse.ArgumentParser) -> None:
    drawn_on = parser.prog.endswith("img2img")
    parser.set_defaults(drawn_on=drawn_on)
    parser.add_argument("prompt", nargs="?", help="what to draw; [words in brackets] are avoided")
    switches.configure(parser, picture=drawn_on)
    switches.configure_model(parser)
    parser.add_argument(
        "--from",
        dest="from_picture",
        metavar="FILE",
        help="take the settings from a picture that minisd or InvokeAI made; "
        "switches given beside it count more",
    )


def run(args: argparse.Namespace) -> int:
    notes: list[str] = []
    if args.from_picture:
        args, notes = recalled_under(args)
    for note in notes:
        warnings.warn(note, stacklevel=1)
    if args.drawn_on and not args.init_img:
        raise ValueError("img2img needs a picture to draw on: -I FILE (or use minisd txt2img)")
    for name in ("init_img", "init_mask", "strength", "fit", "no_paste", "variants", "steps_after"):
        if name not in args:
            setattr(args, name, None)
    Studio(args.model, args.device, args.dtype).make(args)
    return 0


def recalled_under(args: argparse.Namespace) -> tuple[argparse.Namespace, list[str]]:
    """The settings in args.from_picture, under those that were typed."""
    found, notes, init_hash = metadata.recall(args.from_picture)
    parser = argparse.ArgumentParser(prog="minisd img2img")
    switches.configure(parser)
    for name, value in vars(args).items():
        if value != parser.get_default(name) or name not in vars(found):
            setattr(found, name, value)
    notes += metadata.find_init_image(found, init_hash, Path(args.from_picture).parent)
    return found, notes


class Studio:
    """A model, loaded when first needed, and the pictures made with it."""

    def __init__(self, model: str | None, device: str | None, dtype: str):
        self.model, self.device, self.dtype = model, device, dtype
        self.made: list[Path] = []
        self.seeds: list[int] = []

    @cached_property
    def sd(self) -> "StableDiffusion":
        import torch

        from minisd.checkpoint import load
        from minisd.cli.models import find_model

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            sd = load(find_model(self.model), device=device, dtype=getattr(torch, self.dtype))
        except (RuntimeError, AssertionError) as error:  # what torch says of a device that is none
            raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
        if sd.native_size < 256:
            # So small a layer takes less time than handing it to threads, which wait for each
            # other: one thread is as fast, and on a busy machine many times faster.
            torch.set_num_threads(1)
        else:
            from minisd import fast

            fast.work_in_strips(sd)
            # In float32 it gains a tenth, and the weights would no longer stay in the mapped file.
            if sd.device.type == "cpu" and self.dtype != "float32":
                fast.pack(sd)
        # Hashing a large file takes seconds: meanwhile, draw.
        self.hash: Future[str] = ThreadPoolExecutor(1).submit(metadata.sha256, sd.path)
        print(f"model: {sd.name} ({sd.path.name}), {self.dtype} on {sd.device}")
        return sd

    def make(self, args: argparse.Namespace) -> list[Path]:
        """Draw what a line asks for, and write it. Returns the files, in order."""
        from minisd.conditioning import text_states
        from minisd.samplers import SAMPLERS
        from minisd.variations import seed_chain

        args = self.resolved(args)
        check_names(args, list(SAMPLERS))
        picture = open_init(args)
        folder = outputs.open_folder(args.outdir)
        sd = self.sd
        size = self.sizes(args, picture)
        if picture is not None and picture.size != size:
            from minisd.images import resize

            picture = resize(picture, size)
        prompt, negative = text_states(sd, args.prompt, normalize=not args.skip_normalize)
        say_steps(args)

        if args.seed is None:
            args.seed = random.SystemRandom().randrange(2**32 - 1)
        seeds = seed_chain(args.seed, args.iterations + (args.variation_amount > 0))
        jobs = []  # (settings as they go into the file, number in the file's name)
        for i in range(args.iterations):
            one = argparse.Namespace(**vars(args))
            if args.variation_amount > 0:
                one.with_variations = [*args.with_variations, (seeds[i + 1], args.variation_amount)]
                jobs.append((one, seeds[i + 1]))
            else:
                one.seed = seeds[i]
                jobs.append((one, seeds[i]))

        prefix, paths, images = outputs.next_prefix(folder), [], []

        def finish(image: Image.Image, one: argparse.Namespace, number: int, i: int) -> Path:
            images.append(image)
            paths.append(self.save(image, one, folder, f"{prefix:06}.{number}.png", i))
            return paths[-1]

        for i, (one, number) in enumerate(jobs):
            count = f"{i + 1}/{len(jobs)}" if len(jobs) > 1 else ""
            image = self.draw(one, picture, prompt, negative, size, count)
            path = finish(image, one, number, i + 1)
            for k, seed in enumerate(seed_chain(one.seed, (args.variants or 0) + 1)[1:], 1):
                again = argparse.Namespace(**vars(one) | {"init_img": str(path), "seed": seed})
                again.with_variations, again.fit, again.init_mask = [], False, None
                drawn = self.draw(again, image, prompt, negative, image.size, f"variant {k}")
                finish(drawn, again, seed, k)
        if args.grid and len(images) > 1:
            name = f"{prefix:06}.{jobs[0][1]}.grid.png"
            sheet = outputs.contact_sheet(images)
            paths.append(self.save(sheet, jobs[0][0], folder, name, 0))
        self.seeds += [one.seed for one, _ in jobs]
        return paths

    def resolved(self, args: argparse.Namespace) -> argparse.Namespace:
        """The settings with references to earlier pictures looked up, as a copy."""
        args = argparse.Namespace(**vars(args))
        if args.seed is not None and args.seed < 0:
            args.seed = nth_last(self.seeds, args.seed, "-S")
        for switch, name in (("-I", "init_img"), ("-M", "init_mask")):
            file = getattr(args, name)
            if file and re.fullmatch(r"-\d+", file):
                setattr(args, name, str(nth_last(self.made, int(file), switch)))
            elif file and not Path(file).exists() and (found := Path(args.outdir) / file).exists():
                setattr(args, name, str(found))
        if args.prompt is None and args.init_img:
            try:
                args.prompt = metadata.recall(args.init_img).args.prompt
            except ValueError:
                pass  # it has none; said below
        if args.steps_after and args.init_img:
            args.steps = steps_after(args.steps_after, args.strength)
            print(
                f"--steps-after {args.steps_after} at strength {args.strength:g}: -s {args.steps}"
            )
        if args.prompt is None:
            raise ValueError('say what to draw, as in: minisd img2img "a fire" -I drawing.png')
        return args

    def sizes(self, args: argparse.Namespace, picture: Image.Image | None) -> tuple[int, int]:
        """Width and height of what is drawn, from the switches or the picture; sets args.width and
        args.height, which the file records. Says aloud what it changes."""
        sd = self.sd
        asked = args.width is not None or args.height is not None
        args.width, args.height = args.width or sd.native_size, args.height or sd.native_size

        def floored(width: float, height: float) -> tuple[int, int]:
            w, h = (
                max(sd.multiple, int(n + 1e-6) // sd.multiple * sd.multiple)
                for n in (width, height)
            )
            return w, h

        if picture is None:
            size = floored(args.width, args.height)
            if size != (args.width, args.height):
                said = f"{args.width}x{args.height} becomes {size[0]}x{size[1]}"
                warnings.warn(f"{said}, multiples of {sd.multiple}", stacklevel=2)
            args.width, args.height = size
        elif args.fit:
            scale = min(args.width / picture.width, args.height / picture.height)
            size = floored(picture.width * scale, picture.height * scale)
            if size != picture.size:
                was = f"{args.init_img}: {picture.width}x{picture.height}"
                print(f"{was}, fitted into {args.width}x{args.height}: {size[0]}x{size[1]}")
        else:
            size = floored(*picture.size)
            if asked and size != (args.width, args.height):
                warnings.warn("-W and -H count with -I only together with --fit", stacklevel=2)
            if size != picture.size:
                said = f"{picture.width}x{picture.height} becomes {size[0]}x{size[1]}"
                warnings.warn(f"{args.init_img}: {said}, multiples of {sd.multiple}", stacklevel=2)
            args.width, args.height = size
        if max(size) < sd.native_size:
            said = f"{size[0]}x{size[1]} is smaller than the {sd.native_size} pixels a side"
            warnings.warn(f"{said} that the model was trained on: it may draw badly", stacklevel=2)
        return size

    def draw(self, args, picture, prompt, negative, size, count, *observers) -> Image.Image:
        from minisd.img2img import img2img
        from minisd.inpaint import inpaint, is_transparent
        from minisd.trace.ledger import auditing
        from minisd.trace.watch import together
        from minisd.txt2img import txt2img
        from minisd.variations import varied_noise

        factor = self.sd.vae.factor
        shape = (1, 4, size[1] // factor, size[0] // factor)
        with progress(args, count) as bar, auditing(self.sd.unet) as ledger:
            settings = {
                "steps": args.steps,
                "sampler": args.sampler,
                "schedule": args.schedule,
                "guidance": args.cfg_scale,
                "seed": args.seed,
                "negative_prompt": negative,
                "noise": varied_noise(args.seed, args.with_variations, shape),
                "observe": together(bar, ledger, *observers),
            }
            if picture is None:
                result = txt2img(self.sd, prompt, width=size[0], height=size[1], **settings)
            elif args.init_mask or is_transparent(picture):
                result = inpaint(
                    self.sd,
                    prompt,
                    picture,
                    args.init_mask,
                    strength=args.strength,
                    paste=not args.no_paste,
                    **settings,
                )
            else:
                result = img2img(self.sd, prompt, picture, strength=args.strength, **settings)
        print(ledger.line())
        return result.image

    def save(self, image, args, folder, name, number) -> Path:
        init_hash = metadata.sha256(args.init_img) if args.init_img else None
        model = {
            "name": self.sd.name,
            "hash": self.hash.result(),
            "dtype": self.dtype,
            "version": version("minisd"),
        }
        texts = metadata.texts(args, image.size, model, init_hash)
        path = outputs.save_png(image, folder, name, texts)
        self.made.append(path)
        line = f"{path}: {texts['Dream']}"
        with open(folder / outputs.LOG, "a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(f"[{number}] {line}" if number else f"[grid] {path}")
        return path


class progress:
    """A bar over the steps that are run, fed by an observer; silent where nobody looks."""

    def __init__(self, args: argparse.Namespace, count: str):
        run = args.steps
        if args.init_img:
            run = args.steps - start_index(args.steps, args.strength)
        self.bar = tqdm(
            total=run, desc=f"{count or 'drawing'}, seed {args.seed}", disable=None, leave=False
        )

    def __enter__(self) -> "progress":
        return self

    def __call__(self, name: str, step: "Step | None" = None, **_: object) -> None:
        if step is not None:
            self.bar.update()

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def nth_last(items: list, n: int, switch: str):
    if n == 0 or -n > len(items):
        have = f"{len(items)} made so far" if items else "none was made yet"
        raise ValueError(f"{switch} {n} is the {-n}. last picture, and {have}")
    return items[n]


def check_names(args: argparse.Namespace, samplers: list[str]) -> None:
    for switch, name, known in (
        ("-A", args.sampler, samplers),
        ("--schedule", args.schedule or "model", list(SCHEDULES)),
    ):
        if name not in known:
            raise ValueError(f"{switch} {name}: there are {', '.join(known)}")
    if args.with_variations and args.seed is None:
        raise ValueError("-V leads the noise of a seed: say which, with -S")
    if args.init_mask and not args.init_img:
        raise ValueError("-M is a mask for a picture: say which, with -I")


def open_init(args: argparse.Namespace) -> Image.Image | None:
    """The init image, or None; with the original's warning where its hidden colours are gone."""
    if not args.init_img:
        return None
    from minisd.images import open_image
    from minisd.inpaint import colours_erased, is_transparent

    picture = open_image(args.init_img)
    if args.init_mask:
        open_image(args.init_mask)  # before the model is loaded, in case that it can't be read
    elif is_transparent(picture) and colours_erased(picture):
        warnings.warn(
            f"{args.init_img} has no colours left under its transparency: inpainting starts from "
            "plain black or white there. Save it with the colours of transparent pixels kept",
            stacklevel=2,
        )
    return picture


def say_steps(args: argparse.Namespace) -> None:
    """The settings that decide how much noise goes in."""
    name = args.schedule or ("ddim" if args.sampler == "ddim" else "model")
    sigmas = SCHEDULES[name](args.steps)
    dropped = start_index(args.steps, args.strength) if args.init_img else 0
    run = args.steps - dropped
    print(
        f"{args.steps} steps asked, {run} run, {dropped} dropped; {args.sampler} on {name}", end=""
    )
    if run:
        sigma = sigmas[dropped]
        print(f"; the noise goes in at sigma {sigma:.4f} (t = {sigma_to_t(sigma):.1f})")
    else:
        print("; no noise goes in: the picture is encoded and decoded")
    sys.stdout.flush()
