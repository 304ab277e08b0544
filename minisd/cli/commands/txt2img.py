"""`minisd txt2img PROMPT`: draw from noise alone."""

import argparse
from dataclasses import replace

from minisd.cli.commands import img2img
from minisd.cli.studio import Studio

HELP = "draw from noise alone"


def configure(parser: argparse.ArgumentParser) -> None:
    img2img.configure(parser, image=False)


def run(args: argparse.Namespace) -> int:
    request = img2img.typed_request(args)
    # A picture given with --from may have had an init image.
    recipe = replace(request.recipe, image=None, mask=None, fit=False)
    Studio(args).make(replace(request, recipe=recipe))
    return 0
