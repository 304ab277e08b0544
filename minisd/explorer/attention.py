"""`minisd attention PROMPT -I FILE`: which words the picture looks at where, step by step."""

import argparse
import random
from typing import Any

from minisd.cli import outputs, switches

IDLE = ("iterations", "grid", "variation_amount", "with_variations", "init_mask", "variants")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw; [words in brackets] are avoided")
    switches.configure(parser)
    switches.configure_model(parser)
    parser.set_defaults(unset={name: parser.get_default(name) for name in IDLE})


def run(args: argparse.Namespace) -> int:
    import torch

    from minisd.attention_maps import AttentionMaps
    from minisd.cli.pictures import Studio, check_names, open_init, say_steps
    from minisd.conditioning import text_states
    from minisd.explorer.overlay import attention_strip
    from minisd.images import resize, to_pil
    from minisd.img2img import img2img
    from minisd.prompts import parse
    from minisd.samplers import SAMPLERS
    from minisd.trace.watch import together

    if idle := [name for name, value in args.unset.items() if getattr(args, name) != value]:
        raise ValueError(f"attention looks at one run: --{', --'.join(idle)} can't be used here")
    if not args.init_img:
        raise ValueError("attention needs a picture to draw on: -I FILE")
    studio = Studio(args.model, args.device, args.dtype)
    args = studio.resolved(args)
    check_names(args, list(SAMPLERS))
    pieces = pieces_of(parse(args.prompt).parts)
    picture = open_init(args).convert("RGB")
    folder = outputs.open_folder(args.outdir)
    sd = studio.sd
    size = studio.sizes(args, picture)
    if picture.size != size:
        picture = resize(picture, size)
    prompt, negative = text_states(sd, args.prompt, normalize=not args.skip_normalize)
    seed = random.SystemRandom().randrange(2**32 - 1) if args.seed is None else args.seed
    say_steps(args)

    believed: list[torch.Tensor] = []

    def record(name: str, **values: Any) -> None:
        if name == "step":
            believed.append(values["step"].x0)

    with AttentionMaps(sd, pieces) as maps:
        img2img(
            sd,
            prompt,
            picture,
            strength=args.strength,
            steps=args.steps,
            sampler=args.sampler,
            schedule=args.schedule,
            guidance=args.cfg_scale,
            seed=seed,
            negative_prompt=negative,
            observe=together(record, maps),
        )
    if not maps.steps:
        raise ValueError(f"strength {args.strength:g} runs no step: nothing looks at any word")
    with torch.inference_mode():
        pictures = [to_pil(sd.vae.decode(x0)) for x0 in believed]
    title = f"{args.prompt} -s {args.steps} -S {seed} -C {args.cfg_scale:g} -A {args.sampler}"
    title = f"{title} -f {args.strength:g}: which words it looks at where"
    name = f"{outputs.next_prefix(folder):06}.{seed}.attention.png"
    path = outputs.save_png(attention_strip(maps, pictures, title), folder, name, {"Title": title})
    shares = ", ".join(f"{w.text} {maps.word(i).mean():.1%}" for i, w in enumerate(maps.words))
    print(f"of all attention: {shares}; the rest goes to the start, the end and punctuation")
    print(path)
    return 0


def pieces_of(parts: list) -> list[str]:
    """The prompt's words as they are tokenised. A blend has several texts in one place."""
    if len(parts) > 1:
        raise ValueError("attention to words can't be told apart in a blend: give one prompt")
    return [fragment.text for fragment in parts[0].fragments]
