"""`minisd recall FILE ...`: the command that makes a picture again."""

import argparse
import shlex
import warnings
from pathlib import Path

from minisd.cli import in_words, metadata


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a PNG with its settings in it")


def run(args: argparse.Namespace) -> int:
    failed = 0
    for file in args.files:
        try:
            found = metadata.recall(file)
        except (ValueError, OSError) as error:
            failed = 1
            warnings.warn(in_words(error), stacklevel=1)
            continue
        notes = metadata.find_init_image(found.args, found.init_hash, Path(file).parent)
        for note in [*found.notes, *notes]:
            warnings.warn(f"{file}: {note}", stacklevel=1)
        prompt, *words = shlex.split(metadata.dream(found.args))
        words = [*words, "--", prompt] if prompt.startswith("-") else [prompt, *words]
        print(shlex.join(["minisd", "img2img" if found.args.init_img else "txt2img", *words]))
    return failed
