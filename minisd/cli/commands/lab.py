"""`minisd lab SAMPLER`: certify a sampler, and compare it with others on a network."""

import argparse
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

from minisd.cli import switches
from minisd.cli.laboratory import one_thread, run_board, run_report
from minisd.cli.model_files import find_model
from minisd.cli.studio import load_model
from minisd.figures.svg import Curves
from minisd.files import check_file, open_folder, write_named
from minisd.lab.certificate import certify, theory_of
from minisd.lab.compare import STEPS, compare, table
from minisd.lab.report import page
from minisd.lab.subject import Subject
from minisd.more_samplers.adapters import find_sampler
from minisd.recipes import Recipe
from minisd.recipes.dream import between, guidance_value, option_value
from minisd.run import lookup
from minisd.samplers import SAMPLERS, Sampler
from minisd.schedule import SCHEDULES, levels_of

HELP = "certify a sampler: its order, its noise, its contract; compare it with others"


def configure(parser: argparse.ArgumentParser) -> None:
    add, number = parser.add_argument, switches.value_type
    known = ", ".join(SAMPLERS)
    text = (
        "FILE.py:FUNCTION; MODULE:NAME of k-diffusion, ComfyUI or diffusers, such as "
        f"k_diffusion.sampling:sample_dpmpp_2m or diffusers:LMSDiscreteScheduler; or one of {known}"
    )
    add("sampler", metavar="SAMPLER", nargs="?", help=text)
    add(
        "--set",
        dest="options",
        metavar="OPTION=VALUE",
        type=number(option_value),
        nargs="+",
        action="extend",
        default=[],
        help="options of the sampler, such as order=3; may be repeated",
    )
    order = number(between(1, 10, int))
    add("--order", metavar="N", type=order, help="the order that the sampler should have")
    text = "the order of a single step between steps of other lengths, if it differs (plms: 1)"
    add("--uneven-order", metavar="N", type=order, help=text)
    add("--json", action="store_true", help="print JSON instead of the card")
    text = "also write a page with plots"
    add("--html", type=Path, metavar="FILE", help=text)

    group = parser.add_argument_group("the board, and the report")
    add = group.add_argument
    text = (
        "place SAMPLER on the board: its error by network calls. Without SAMPLER, measure all of "
        "minisd's; FOLDER then gets board.md, board.csv, board.svg and board.safetensors"
    )
    add("--board", nargs="?", const="", metavar="FOLDER", help=text)
    text = "certify all samplers of k-diffusion and diffusers for SD 1.x; write a page in Markdown"
    add("--report", metavar="FILE.md", help=text)

    group = parser.add_argument_group("comparison on a network")
    add = group.add_argument
    text = "measure how far SAMPLER and these end from a run of many steps; takes minutes"
    add("--compare", nargs="+", default=[], metavar="SAMPLER", help=text)
    steps = number(between(1, 10_000, int))
    text = "steps of the run that they are compared with (1000)"
    add("--reference", metavar="N", type=steps, default=1000, help=text)
    add("--prompt", default="fire", help="what the network is asked to draw (fire)")
    guidance = number(guidance_value)
    names, text = ("-C", "--cfg_scale", "--guidance"), "guidance (4)"
    add(*names, metavar="X", type=guidance, default=4.0, dest="guidance", help=text)
    text = f"{', '.join(SCHEDULES)}, or FILE.py:FUNCTION (karras)"
    add("--schedule", metavar="NAME", default="karras", help=text)
    seed = number(between(0, 2**32 - 1, int))
    add("-S", "--seed", metavar="N", type=seed, default=0, help="seed of the noise (0)")
    switches.add_model_switches(
        parser, torch_only="the lab's measurements are compared with those of torch"
    )


def run(args: argparse.Namespace) -> int:
    options = {name: value for option in args.options for name, value in option.items()}
    if args.report is not None:
        return run_report(args)
    if args.board is not None:
        return run_board(args, options)
    if args.sampler is None:
        raise ValueError("lab needs a SAMPLER, --board or --report")
    # Mistakes are reported before anything is measured.
    page_file = check_file(args.html, "page.html") if args.html else None
    sampler, _, _ = Recipe("", sampler=args.sampler, options=options).functions()
    others = {name: find_sampler(name) for name in args.compare}
    schedule = lookup("schedule", args.schedule, SCHEDULES)
    for steps in (*STEPS, args.reference) if others else ():
        levels_of(schedule, steps)
    guidance = args.guidance
    if isinstance(guidance, str):
        guidance = lookup("guidance rule", guidance, {})

    if others:
        find_model(args.model)

    if page_file:
        open_folder(page_file.parent)
    theory = theory_of(args.sampler, options)
    if args.order is not None:
        theory = replace(theory, order=args.order)
    if args.uneven_order is not None:
        theory = replace(theory, uneven_order=args.uneven_order)
    words = [f"{option}={value!r}" for option, value in options.items()]
    name = " ".join([args.sampler.rpartition(":")[2], *words])
    with one_thread():
        certificate = certify(sampler, name, theory)
    print(certificate.json() if args.json else certificate.card())

    curves: Curves = {}
    if others:
        samplers = without_noise({name: sampler} | others)
        # With --json, standard output holds the JSON alone.
        with redirect_stdout(sys.stderr) if args.json else nullcontext():
            sd = load_model(args)
            settings = (args.prompt, guidance, schedule, args.seed, args.reference)
            curves = dict(compare(sd, samplers, *settings))
            print("\n" + table(curves, args.reference))
    if page_file:
        path = write_named(page_file, page(certificate, curves).encode())
        print(f"written: {path}", file=sys.stderr)
    return 0 if certificate.passed else 1


def without_noise(samplers: dict[str, Sampler]) -> dict[str, Sampler]:
    """The samplers that draw no noise. The others have no single result to compare."""
    kept = {}
    for name, sampler in samplers.items():
        if Subject(sampler).draws:
            print(f"note: {name} adds noise, so it has no single result", file=sys.stderr)
        else:
            kept[name] = sampler
    return kept
