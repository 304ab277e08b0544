"""The board and the report of `minisd lab`: long measurements, and the files that they make."""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from minisd.cli.model_files import find_model
from minisd.cli.studio import load_model
from minisd.files import open_folder, write_named
from minisd.files.marks import HTML_MARK
from minisd.lab.board import (
    STARTS,
    Entry,
    exact_benches,
    from_csv,
    measure,
    network_bench,
    rows_of,
    to_csv,
    with_references,
)
from minisd.lab.board_page import committed, figure, places, text_table
from minisd.lab.board_page import page as page_of_board
from minisd.lab.originals import examine, originals
from minisd.lab.originals_page import report_page
from minisd.recipes import Recipe
from minisd.samplers import SAMPLERS, Sampler


def run_board(args: argparse.Namespace, options: Mapping[str, Any]) -> int:
    """Measure SAMPLER, or all samplers, on a checkpoint and on two exact models."""
    samplers: dict[str, Sampler] = dict(SAMPLERS)
    if args.sampler is not None:
        sampler, _, _ = Recipe("", sampler=args.sampler, options=options).functions()
        samplers = {args.sampler: sampler}
    find_model(args.model)
    folder = open_folder(Path(args.board)) if args.board else None
    begin = time.perf_counter()
    sd = load_model(args)
    board, references = [], {}
    table_file, reference_file = committed("board.csv"), committed("board.safetensors")
    if table_file and args.model is None:
        board = from_csv(table_file.read_text(encoding="utf-8"))
    if reference_file and args.model is None and args.sampler is not None:
        references = load_file(reference_file)
    measured: list[Entry] = []
    benches = [network_bench(sd, references), *exact_benches()]
    with tqdm(total=len(benches) * len(samplers), disable=None, leave=False) as bar:
        for i in range(len(benches)):
            bar.set_description(f"{benches[i].name}: 1000 steps")
            benches[i] = with_references(benches[i], args.reference)
            for name, sampler in samplers.items():
                bar.set_description(f"{benches[i].name}: {name}")
                with one_thread() if i else nullcontext():
                    own = i > 0 or args.sampler is not None  # of 1000 steps: on a network, minutes
                    measured += measure(benches[i], name, sampler, args.reference, own)
                bar.update()
    seconds = time.perf_counter() - begin
    if args.sampler is None or not board:
        for model in dict.fromkeys(entry.model for entry in measured):
            for start in STARTS:
                print(f"{model}, from {start}")
                for reference in ("k_dpmpp_2", "itself"):
                    rows = rows_of(measured, model, start, reference)
                    print("\n".join(text_table(rows)) if rows else "")
    else:
        print("\n".join([f"{args.sampler} on minisd's board:", *places(board, measured)]))
    print(f"{len(samplers)} samplers in {seconds:.0f} s on {sd.device}", file=sys.stderr)
    if folder:
        facts = [
            f"minisd {version('minisd')} and torch {torch.__version__.partition('+')[0]}",
            f"on {sd.device}, {seconds:.0f} seconds.",
        ]
        texts = {
            "board.md": page_of_board(measured, facts),
            "board.svg": figure(measured, sd.name),
            "board.csv": to_csv(measured),
        }
        for name, text in texts.items():
            print(
                f"written: {write_named(folder / name, text.encode(), is_board)}", file=sys.stderr
            )
        tensors = {start: x.cpu().contiguous() for start, x in benches[0].plain.items()}
        data = save(tensors, {"minisd": "board"})
        path = write_named(folder / "board.safetensors", data, is_board)
        print(f"written: {path}", file=sys.stderr)
    return 0


def is_board(path: Path) -> bool:
    """Whether the file is of a board that this command wrote."""
    with open(path, "rb") as file:
        begin = file.read(1000)
    head = b"model,start,sampler,calls"
    return begin.startswith(head) or HTML_MARK in begin or b'"minisd":"board"' in begin


def run_report(args: argparse.Namespace) -> int:
    """Certify the samplers of k-diffusion and diffusers; the page replaces an older report only."""
    path = Path(args.report)
    if path.suffix != ".md":
        raise ValueError(f"{path} should end in .md")
    open_folder(path.parent)
    begin = time.perf_counter()
    subjects = originals()
    results = []
    with one_thread(), tqdm(total=len(subjects), disable=None, leave=False) as bar:
        for original in subjects:
            bar.set_description(original.name)
            results.append(examine(original))
            bar.update()
    text = report_page(results, time.perf_counter() - begin)
    print(f"written: {write_named(path, text.encode(), is_board)}", file=sys.stderr)
    return 0


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, for small tensors: several wait for each other, and can take 60 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
