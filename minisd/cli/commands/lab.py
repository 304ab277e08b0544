"""`minisd lab NAME` or `minisd lab FILE.py:FUNCTION`: certify a sampler, compare it with others."""

import argparse
import importlib.util
import sys
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

import minisd
from minisd.lab.certificate import certify, theory_of
from minisd.lab.compare import compare, table
from minisd.lab.plot import Curves
from minisd.lab.report import page
from minisd.lab.subject import Sampler, Subject
from minisd.samplers import SAMPLERS
from minisd.schedule import SCHEDULES


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sampler", metavar="SAMPLER", help=f"FILE.py:FUNCTION, or one of {', '.join(SAMPLERS)}"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="OPTION=VALUE", help="its options, as in order=3"
    )
    parser.add_argument("--order", type=int, help="the order that it should have")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the card")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with plots (over an older one)"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="SAMPLER",
        help="run it and these on a network, against 1000 steps; takes minutes",
    )
    parser.add_argument("--reference", type=int, default=1000, help="steps to compare with (1000)")
    parser.add_argument("--model", type=Path, help="the checkpoint for --compare")
    parser.add_argument("--prompt", default="fire", help="for --compare")
    parser.add_argument("-C", "--cfg_scale", "--guidance", type=float, default=4.0, dest="guidance")
    parser.add_argument("--schedule", choices=list(SCHEDULES), default="karras")
    parser.add_argument("-S", "--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    options = read_options(args.set)
    name = " ".join([args.sampler.rpartition(":")[2], *args.set])
    sampler = partial(find(args.sampler), **options)
    others = {other: find(other) for other in args.compare}
    with one_thread():
        certificate = certify(sampler, name, theory_of(args.sampler, options, order=args.order))
    print(certificate.json() if args.json else certificate.card())

    curves = compare_on_network(args, {name: sampler} | others) if others else {}
    if args.html:
        args.html.write_text(page(certificate, curves), encoding="utf-8")
        print(f"written: {args.html}", file=sys.stderr)
    return 0 if certificate.passed else 1


def compare_on_network(args: argparse.Namespace, samplers: dict[str, Sampler]) -> Curves:
    for name in [name for name, sampler in samplers.items() if Subject(sampler).draws]:
        print(f"note: {name} adds noise, so it has no one result", file=sys.stderr)
        del samplers[name]
    settings = (args.prompt, args.guidance, args.schedule, args.seed, args.reference)
    with nullcontext() if args.model else one_thread():
        curves = dict(compare(minisd.load(args.model), samplers, *settings))
    print("\n" + table(curves, args.reference), file=sys.stderr if args.json else sys.stdout)
    return curves


@contextmanager
def one_thread() -> Iterator[None]:
    """For small tensors: more threads only wait for each other, which can take 60 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def find(text: str) -> Sampler:
    """A sampler by its name, or a function in a file. The file is run: it is code."""
    if text in SAMPLERS:
        return SAMPLERS[text]
    path, colon, function = text.rpartition(":")
    if not colon or not path.endswith(".py"):
        known = ", ".join(SAMPLERS)
        raise ValueError(f"no sampler is named {text!r}; give FILE.py:FUNCTION or one of {known}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location("minisd_lab_given", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{path} has no function {function!r}")
    return getattr(module, function)


def read_options(words: list[str]) -> dict[str, float]:
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            options[key] = literal_eval(value)
        except (ValueError, SyntaxError):
            equals = ""
        if not equals:
            raise ValueError(f"--set takes OPTION=VALUE, such as order=3, not {word!r}")
    return options
