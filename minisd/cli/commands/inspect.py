"""`minisd inspect FILE`: say what a weights file is."""

import argparse
import json
from dataclasses import asdict

from minisd.checkpoint.forms import describe_leftovers
from minisd.checkpoint.inspection import Inspection, inspect
from minisd.cli.messages import visible
from minisd.cli.model_files import find_model

HELP = "say what a weights file is, without loading it and without running anything in it"
PARTS = {"unet": "UNet", "vae": "autoencoder", "text_encoder": "text encoder", "all": "tensors"}
HASHES = {
    "AutoV1": "AUTOMATIC1111's first model hash, CivitAI's AutoV1",
    "SHA-256": "SHA-256 of the file",
    "AutoV2": "AUTOMATIC1111's model hash, CivitAI's AutoV2",
    "AutoV3": "kohya's model hash, CivitAI's AutoV3",
}
# Metadata of these prefixes is printed; --json prints all.
METADATA = ("modelspec.", "ss_base", "ss_sd_model_name", "ss_output", "ss_network", "ss_v", "ss_z")


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a weights file, by path or by name, or a diffusers folder")
    add("--json", action="store_true", help="print JSON instead")
    text = "also read all numbers: hashes, NaN, zeros, training averages; seconds for 4 GB"
    add("--numbers", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    result = inspect(find_model(args.file) or args.file, args.numbers)
    if args.json:
        print(json.dumps(asdict(result), indent=2))
        return 0
    print(visible(result.sentence))
    for name, text in rows(result, args.numbers):
        print(f"{name:13} {visible(text)}")
    return 0


def rows(result: Inspection, numbers: bool) -> list[tuple[str, str]]:
    """The lines below the sentence: a name and a text each."""
    table = [("file", f"{result.path}, {result.format}, {result.size:,} bytes")]
    for name, part in result.parts.items():
        types = ", ".join(f"{n:,} {kind}" for kind, n in part.types.items())
        table.append(
            (PARTS[name], f"{part.numbers:,} numbers in {part.tensors:,} tensors: {types}")
        )
    source = f", by {result.prediction_source}" if result.prediction_source else ", as usual"
    if "all" not in result.parts:
        table.append(("predicts", result.prediction + source))
        table.append(("schedule", result.schedule))
        table.append(("position ids", result.position_ids))
    if result.averages:
        far = result.average_distance
        distance = "" if far is None else f", {far:.2%} away from the weights"
        table.append(("averages", f"{result.averages} tensors{distance}"))
    if result.leftovers:
        table.append(("left over", describe_leftovers(result.leftovers)))
    hashes = ((digest, HASHES.get(kind, kind)) for kind, digest in result.hashes.items())
    table += [("hash", f"{digest} ({kind})") for digest, kind in hashes]
    table += [("known", f"{PARTS.get(n, n)}: {owner}") for n, owner in result.known.items()]
    if numbers:
        table.append(("NaN or Inf", listed_names(result.not_finite)))
        table.append(
            ("zero", listed_names(result.zero) + f"; {result.zero_bytes:,} bytes in blocks")
        )
    for key, value in result.training.items():
        table.append(("training", f"{key} {value}"))
    for key, value in result.metadata.items():
        if key.startswith(METADATA):
            table.append(
                ("metadata", f"{key}: {value if len(value) <= 80 else value[:77] + '...'}")
            )
    table += [("note", text) for text in result.differences]
    return table


def listed_names(names: list[str]) -> str:
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{len(names)} tensors: {', '.join(names[:8])}{rest}" if names else "no tensor"
