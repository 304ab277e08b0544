"""Sweeps: batches, the folder, the table, workers, shards, metrics, and what is refused."""

import csv
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from scipy.ndimage import gaussian_filter

import minisd
from minisd.cli.commands.sweep import Rate
from minisd.cli.main import main
from minisd.observe import NoiseMismatch
from minisd.recipes import Recipe, prepare
from minisd.sweeps import combinations, metrics, read_recipes
from minisd.sweeps.axes import caption, describe, differing, with_steps_run
from minisd.sweeps.drawing import batches, draw_together, file_name
from minisd.sweeps.folder import LOCK, LOG, NOTES
from minisd.sweeps.metrics import Drawn, distance
from minisd.sweeps.model import Source, source_of
from minisd.sweeps.page import PAGE
from minisd.sweeps.pool import WorkerDied, draw_in_pool
from minisd.sweeps.recipe_lists import VARYING, Keys
from minisd.sweeps.table import PARQUET, TABLE
from minisd.sweeps.work import PICTURES, Outcome, Task
from tests.chromium import NAMES, Chromium, find_chromium

from .test_strips import box_of, run

FIRE = Image.new("RGB", (64, 64), "white")
FIRE.paste("red", (20, 20, 44, 50))


@pytest.fixture
def folder(tmp_path, monkeypatch, emoji):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    FIRE.save("in.png")
    return tmp_path


def rows_of(folder: Path | str) -> list[dict[str, str]]:
    with open(Path(folder, TABLE), newline="") as file:
        return list(csv.DictReader(file))


def same_rows(folder: Path | str) -> list[dict[str, str]]:
    """The table without the columns that depend on where it was drawn."""
    return [{k: v for k, v in row.items() if k not in VARYING} for row in rows_of(folder)]


def pictures(folder: str = "out") -> dict[str, Path]:
    """The pictures by their names, without the row's key."""
    paths = Path(folder, "pictures").glob("*.png")
    return {path.name.rpartition("-")[0]: path for path in paths}


def test_combinations():
    base = Recipe("fire", image="in.png", seed=1)
    lists = {"strength": [0.5, 1.0], "steps": [4, 2, 4], "sampler": ["ddim"]}
    recipes = combinations(base, lists)
    values = [(r.strength, r.steps, r.sampler, r.seed) for r in recipes]
    assert values == [(f, s, "ddim", 1) for f in (0.5, 1.0) for s in (4, 2)]
    assert differing(recipes) == ["strength", "steps"]
    assert describe(recipes[0], ["strength", "steps", "sampler"]) == "strength 0.5, 4 steps, ddim"
    assert caption(recipes) == '"fire", ddim, seed 1, guidance 7.5'
    running = with_steps_run(recipes, 3)
    assert [(r.strength, r.steps) for r in running] == [(0.5, 6), (1.0, 3)]

    drawn = combinations(Recipe("fire"), {"strength": [0.5, 1.0], "steps": [2, 3]})
    assert len(drawn) == 2 and with_steps_run(drawn, 9) == drawn
    with pytest.raises(ValueError, match="strength"):
        combinations(base, {"strength": [2.0]})


def test_file_names_of_samplers_in_files():
    recipe = Recipe("fire", sampler="../my samplers/rk3.py:rk3", steps=5, seed=1)
    assert file_name(recipe) == "s5-my-samplers-rk3.py-rk3-S1.png"
    recipe = Recipe("fire", image="in.png", strength=0.3, seed=1)
    assert file_name(recipe) == "f0.3-s50-k_lms-S1.png"


@pytest.mark.slow
def test_each_run_of_a_batch_has_a_ledger(emoji):
    """One wrong run among right ones is refused: its first level is above the network's highest."""
    recipe = Recipe("fire", steps=2, seed=1, guidance=1)
    job = prepare(recipe, emoji, FIRE)
    wrong = replace(job, recipe=replace(recipe, strength=1, schedule=lambda _: [20.0, 1.0, 0.0]))
    with pytest.raises(NoiseMismatch, match=r"noise added has sigma 20\.0.*expects 14\.61"):
        draw_together([job, wrong])
    with pytest.warns(UserWarning, match="THE NOISE IS WRONG"):
        results = draw_together([job, wrong], refuse=False)
    assert len(results) == 2
    # In a batch sums are rounded differently: 1e-3 is far below what 8 bits show.
    assert torch.allclose(results[0].latent, job.draw().latent, atol=1e-3)


def test_a_sweep_draws_one_picture_for_each_seed(folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(shlex.split("sweep fire -n 3"))
    assert end.value.code == 2 and "-n 3" in capsys.readouterr().err


@pytest.mark.slow
def test_sweep(folder, emoji):
    run("sweep fire -I in.png -f 0,0.5,1 -s 2,4 -S 1,2 -C 1 --to out")
    paths = pictures()
    assert len(paths) == 12
    alone = minisd.img2img(emoji, "fire", FIRE, strength=0.5, steps=4, guidance=1, seed=2).image
    half = Image.open(paths["f0.5-s4-k_lms-S2"])
    # In a batch sums are rounded differently: a level or two of 255.
    assert np.abs(np.asarray(alone, int) - np.asarray(half, int)).max() <= 2

    rows = {Path(row["file"]).name.rpartition("-")[0]: row for row in rows_of("out")}
    row = rows["f1-s4-k_lms-S2"]
    assert (row["steps_run"], row["calls"], row["sigma"]) == ("4", "4", "14.6146")
    assert "to_previous_sampler" not in row  # there is one sampler

    def apart(a, b):
        a, b = (np.asarray(image.convert("RGB"), float) for image in (a, b))
        return np.sqrt(((a - b) ** 2).mean())

    full = Image.open(paths["f1-s4-k_lms-S2"])
    assert float(row["to_init"]) == pytest.approx(apart(full, FIRE), abs=1e-3)
    assert float(row["to_previous_strength"]) == pytest.approx(apart(full, half), abs=1e-3)
    assert distance(full, half) == pytest.approx(apart(full, half))
    assert rows["f0-s2-k_lms-S1"]["to_previous_steps"] == ""
    assert rows["f0-s4-k_lms-S2"]["to_previous_seed"] == "0.0"  # strength 0: no noise

    sheet = Image.open(folder / "out/sheet.png").convert("RGB")
    boxes = {}
    for name in ("f0-s2-k_lms-S1", "f0.5-s2-k_lms-S1", "f1-s2-k_lms-S1", "f1-s4-k_lms-S2"):
        picture = Image.open(paths[name]).resize((96, 96), Image.Resampling.LANCZOS)
        boxes[name] = box_of(sheet, picture)
    lefts = [boxes[f"{f}-s2-k_lms-S1"][0] for f in ("f0", "f0.5", "f1")]
    assert lefts == sorted(set(lefts)) and boxes["f1-s4-k_lms-S2"][0] == lefts[2]  # a column each
    assert box_of(sheet, FIRE.resize((96, 96), Image.Resampling.LANCZOS))[0] < lefts[0]


@pytest.mark.slow
def test_a_sweep_continues_after_an_interruption(folder, monkeypatch, emoji, capsys):
    line = "sweep fire -I in.png -f 0.5,1 -s 2,3 -C 1 --batch 1 --to out"  # a seed is drawn
    calls = []
    count = emoji.unet.register_forward_hook(lambda *_: calls.append(1))
    interrupted = Interrupted(after=2)
    with monkeypatch.context() as patch:
        patch.setattr("minisd.files.writing.os.link", interrupted)
        run(line, status=130)
    assert interrupted.calls == 3 and len(pictures()) == 2
    assert not list((folder / "out").rglob(".*"))  # no half-written files are left
    calls.clear()
    run(line)
    count.remove()
    # Longest first: the two of strength 1 are drawn, the others run floor(3 / 2) and 2 / 2 steps.
    # A picture whose row the interruption prevented is drawn again.
    assert len(calls) == 2
    assert "2 of 4 pictures are already in out" in capsys.readouterr().out
    run("sweep fire -I in.png -f 1 -s 2,4 -C 1 --to out")  # other values are welcome
    assert len(pictures()) == len(rows_of("out")) == 5
    run("sweep water -I in.png -f 1 -s 2 -C 1 --metrics none --to out", status=2)
    assert "holds a sweep with other metrics: choose another folder" in capsys.readouterr().err


def test_a_sweep_inpaints(folder, emoji):
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (10, 10, 50, 50))
    mask.save("mask.png")
    run("sweep fire -I in.png -M mask.png -V 7:0.2 -f 0.5 -s 4 -S 1,2 -C 1 --to out")
    recipe = Recipe("fire", image="in.png", mask="mask.png", variations=((7, 0.2),), seed=2)
    alone = replace(recipe, strength=0.5, steps=4, guidance=1).draw(emoji).image
    swept = Image.open(pictures()["f0.5-s4-k_lms-S2"])
    # In a batch sums are rounded differently: a level or two of 255.
    assert np.abs(np.asarray(alone, int) - np.asarray(swept, int)).max() <= 2
    assert swept.getpixel((2, 2)) == (255, 255, 255)  # kept
    run("sweep fire -I in.png -V 7:0.2 -f 0.5 -s 4 -S 1,2 -C 1 --to out")  # no mask: other rows
    assert len(rows_of("out")) == 4


class Interrupted:
    """os.link; Ctrl-C is pressed after some pictures."""

    def __init__(self, after):
        self.after, self.calls = after, 0

    def __call__(self, a, b):
        if str(b).endswith(".png"):
            self.calls += 1
            if self.calls > self.after:
                raise KeyboardInterrupt
        shutil.copy(a, b)


OUTPUTS = ["sheet.png", TABLE, PARQUET, PAGE, NOTES, LOG, PICTURES]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_sweep_does_not_replace_files_of_others(folder, capsys, name):
    if name.endswith("parquet") and not find_spec("pyarrow"):
        pytest.skip("pyarrow is not installed: no Parquet file is written")
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("mine")
    run("sweep fire -s 2 -S 1 -C 1 --to out", status=2)
    assert "choose another folder" in capsys.readouterr().err
    assert [path.name for path in (folder / "out").iterdir()] == [name]
    assert (folder / "out" / name).read_text() == "mine"


def test_a_sweep_replaces_its_own_sheet(folder, capsys):
    run("sweep fire -s 2 -S 1 -C 1 --to out")
    run("sweep fire -s 2,3 -S 1 -C 1 --to out")
    assert len(rows_of("out")) == 2
    (path,) = Path("out/pictures").glob("s3-*.png")
    path.write_text("mine")  # the row is complete, so the picture is not looked at
    Path("out", LOG).write_text(Path("out", LOG).read_text().split("\n")[0] + "\n")
    run("sweep fire -s 2,3 -S 1 -C 1 --to out", status=2)
    assert f"{path} exists, and no sweep wrote it" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_text_and_image_are_encoded_once(folder, monkeypatch, emoji):
    encoded, texts = [], []
    monkeypatch.setattr(
        emoji.vae, "encode", lambda image: encoded.append(1) or torch.zeros(1, 4, 16, 16)
    )
    count = emoji.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    run("sweep fire -I in.png -f 0.5,1 -s 2 -S 1,2,3 -C 1 --to out")
    count.remove()
    assert len(encoded) == 1 and len(texts) <= 2  # the prompt, and the negative prompt


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_batches_of_n(folder):
    """-n 4 --batch 3 draws the pictures of -n 4: bit for bit in exact mode."""
    line = "img2img fire -I in.png -s 1 -f 1 -A k_euler_a -S 3 -C 1 -n 3 --exact"
    run(f"{line} -o single")
    run(f"{line} --batch 2 -o together")
    singles = {path.name.split(".")[1]: path for path in Path("single").glob("*.png")}
    together = {path.name.split(".")[1]: path for path in Path("together").glob("*.png")}
    assert len(singles) == 3 and singles.keys() == together.keys()
    for seed, path in singles.items():
        assert Image.open(path).tobytes() == Image.open(together[seed]).tobytes()
    run("txt2img fire -n 4 --batch 2 -v 0.1 -S 1", status=2)


def test_batches_put_seeds_beside_each_other():
    base = Recipe("fire", image="in.png", strength=1)
    recipes = combinations(base, {"seed": [1, 2, 3], "steps": [4, 8], "guidance": [2.0, 3.0]})
    wide = [replace(recipe, width=128) for recipe in recipes[:2]]
    parts = [[[*recipes, *wide][i] for i in part] for part in batches([*recipes, *wide], 3)]
    assert sorted(len(part) for part in parts) == [2, 3, 3, 3, 3]
    for part in parts:
        assert len({(r.steps, r.guidance, r.width) for r in part}) == 1
    assert [part[0].steps for part in parts] == sorted((p[0].steps for p in parts), reverse=True)


def test_two_groups_of_seeds_are_one_batch_each(emoji):
    """Seeds are one run of img2img; the groups meet in lockstep. Each gets its own picture."""
    job = prepare(Recipe("fire", steps=2, guidance=1.0), emoji, FIRE)
    recipes = [
        replace(job.recipe, seed=seed, sampler=sampler)
        for sampler in ("k_euler", "k_euler_a")
        for seed in (5, 6)
    ]
    calls = []
    hook = emoji.unet.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    together = draw_together([replace(job, recipe=recipe) for recipe in recipes])
    hook.remove()
    assert calls == [4]  # one step is run, of 2 * 0.75 rounded down
    for recipe, result in zip(recipes, together, strict=True):
        assert result.seed == recipe.seed and result.latent.shape[0] == 1
        alone = replace(job, recipe=recipe).draw()
        # In a batch sums are rounded differently: 1e-3 is far below what 8 bits show.
        assert torch.allclose(result.latent, alone.latent, atol=1e-3)


# ---- the table does not depend on where it was drawn ---------------------------------------------

MODEL = """
import os
import time
from pathlib import Path
from tests.stand_ins import StandIn


def make():
    return StandIn()


def dies_once(drawn):
    if drawn.recipe.seed == 3 and not Path("died").exists():
        Path("died").touch()
        os.kill(os.getpid(), 9)
    return drawn.recipe.seed


def kills_the_driver(drawn):
    if drawn.recipe.seed == 5 and not Path("died").exists():
        # The driver first writes a row of another seed.
        rows = Path("out/rows.jsonl")
        while not (rows.exists() and rows.stat().st_size):
            time.sleep(0.01)
        Path("died").touch()
        os.kill(os.getppid(), 9)
    return 1


def always_dies(drawn):
    if drawn.recipe.seed == 2:
        os.kill(os.getpid(), 9)
    return 0


def fails(drawn):
    return 1 / (drawn.recipe.seed - 2)
"""
SMALL = Recipe("fire", steps=2, sampler="k_euler", width=16, height=16, guidance=1.0)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model that costs nothing, as FILE.py:FUNCTION, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    Path("model.py").write_text(MODEL)
    return "model.py:make"


@pytest.mark.slow
def test_shards_and_batches_give_one_table(folder, emoji):
    """In exact mode, batches of 1 and of 8 and merged parts give the same rows and pixels."""
    grid = {"prompt": ["fire", "a cat"], "sampler": ["k_euler_a", "ddim"], "seed": [1, 2]}
    base = Recipe("", image="in.png", strength=1.0, steps=1, guidance=1.0)
    recipes = combinations(base, grid)[::2]
    with minisd.exact():
        minisd.sweep(recipes, emoji, "one", batch=1)
        minisd.sweep(recipes, emoji, "eight", batch=8, latents=True)
        shutil.copytree("one", "part-1")  # a part that was drawn before
        for k in (2, 3):
            minisd.sweep(recipes, emoji, f"part-{k}", shard=(k, 3))
    run("sweep merge part-1 part-2 part-3 --to whole")
    rows = same_rows("one")
    assert len({row["pixels"] for row in rows}) == len(rows) == 4
    assert same_rows("eight") == rows and same_rows("whole") == rows
    (row,) = (r for r in rows if (r["prompt"], r["sampler"]) == ("fire", "ddim"))
    with minisd.exact():
        alone = replace(base, prompt="fire", sampler="ddim", seed=1).draw(emoji)
    assert Image.open(Path("whole", row["file"])).tobytes() == alone.image.tobytes()
    with safe_open(Path("eight/latents", f"{row['key'][:12]}.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("latent"), alone.latent)


@pytest.mark.slow
def test_workers_that_die(model):
    """A worker's batch is drawn by another one. A row that kills all workers is a failed row."""
    recipes = combinations(SMALL, {"seed": range(8)})
    both = ["model.py:dies_once", "model.py:always_dies"]
    two = minisd.sweep(recipes, model, "two", workers=2, metrics=both, batch=1)
    assert Path("died").exists()
    (row,) = two.failed
    assert row["seed"] == 2
    assert re.match("the worker died 2 times while it drew this: .* signal 9", row["error"])
    alone = minisd.sweep(recipes[3:], model, "one", metrics=both)
    rows = {row["seed"]: row for row in same_rows("two")}
    assert all(rows[row["seed"]] == row for row in same_rows("one"))
    assert [row["dies_once"] for row in alone.rows] == [3, 4, 5, 6, 7]
    failed = minisd.sweep(recipes[:3], model, "fails", metrics=["model.py:fails"]).failed
    assert [row["error"] for row in failed] == [
        "the metric fails: ZeroDivisionError: division by zero"
    ]
    assert Path("fails", failed[0]["file"]).exists()


@pytest.mark.slow
def test_a_driver_that_dies(model, capsys):
    """kill -9 of the driver: its workers end, nothing is lost, the same command draws the rest."""
    metric = "--metrics model.py:kills_the_driver"
    words = "sweep fire -s 2 -A k_euler -W 16 -H 16 -C 1 --batch 1 --workers 2"
    line = [*shlex.split(f"{words} {metric} --model model.py:make"), "-S", "0,1,2,3,4,5,6,7"]
    command = [sys.executable, "-m", "minisd", *line, "--to", "out"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    finished = Path("out", LOG).read_text().splitlines()
    assert 0 < len(finished) < 8 and Path("out", LOCK).exists()
    drawn = {path: path.stat().st_mtime_ns for path in Path("out/pictures").iterdir()}
    assert main([*line, "--workers", "1", "--to", "out"]) == 0
    assert f"{len(finished)} of 8 pictures are already" in capsys.readouterr().out
    redrawn = [path for path, time in drawn.items() if path.stat().st_mtime_ns != time]
    assert len(redrawn) <= len(drawn) - len(finished)  # none but what was in flight
    assert main([*line, "--workers", "1", "--to", "one"]) == 0
    assert same_rows("out") == same_rows("one")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_actors_of_ray(model, capsys):
    """Two actors, one of which dies; then an actor that every row of a seed kills."""
    ray = pytest.importorskip("ray")
    recipes = combinations(SMALL, {"seed": range(8)})
    metric = ["model.py:dies_once"]
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    try:
        two = minisd.sweep(recipes, model, "two", ray="local", metrics=metric, batch=2)
        assert Path("died").exists() and not two.failed
        minisd.sweep(recipes, model, "one", metrics=metric)
        assert same_rows("two") == same_rows("one")
        with pytest.raises(ValueError, match=r"model.py has no function named 'nothing'"):
            minisd.sweep(recipes, "model.py:nothing", "none", ray="local", workers=1)
    finally:
        ray.shutdown()


class FakeHand:
    """A worker in a thread. It dies when it gets a recipe of a seed in `deadly`."""

    def __init__(self, deadly=(), starts=True):
        self.deadly, self.starts, self.drawn, self.closed = deadly, starts, [], False

    def is_ready(self):
        if not self.starts:
            raise WorkerDied("it does not start")
        return True

    def draw(self, tasks):
        for task in tasks:
            if task.recipe.seed in self.deadly:
                raise WorkerDied("it is dead")
        self.drawn += [task.key for task in tasks]
        return [Outcome({"key": task.key}) for task in tasks]

    def close(self):
        self.closed = True


def test_a_pool_draws_each_row_once():
    tasks = [Task(f"{seed}", replace(SMALL, seed=seed)) for seed in range(30)]
    work = [tasks[i : i + 4] for i in range(0, 30, 4)]
    hands = [FakeHand(), FakeHand({7, 8}), FakeHand(range(20))]
    outcomes = [o for part in draw_in_pool(hands, iter(work)) for o in part]
    assert sorted(int(o.row["key"]) for o in outcomes) == list(range(30))
    assert all(hand.closed for hand in hands)
    hands = [FakeHand({7}), FakeHand({7})]
    outcomes = [o for part in draw_in_pool(hands, iter(work)) for o in part]
    failed = [o.row for o in outcomes if o.row.get("error")]
    assert len(outcomes) == 30 and [row["seed"] for row in failed] == [7]
    drawn = [key for hand in hands for key in hand.drawn]
    assert sorted(map(int, drawn)) == [n for n in range(30) if n != 7]
    with pytest.raises(OSError, match="the workers end as soon as they start: it does not start"):
        list(draw_in_pool([FakeHand(starts=False)], iter(work)))


# ---- rows and keys -------------------------------------------------------------------------------


def test_keys(folder):
    """A key depends on what decides the picture, wherever the files are, and on nothing else."""
    keys = Keys(Source().facts())
    base = Recipe("fire", image="in.png", seed=1, sampler="own.py:mine")
    Path("own.py").write_text("mine = None")
    key = keys.key(base)
    assert re.fullmatch("[0-9a-f]{64}", key)
    Path("elsewhere").mkdir()
    shutil.copy("in.png", "elsewhere/other.png")
    assert keys.key(replace(base, image=Path("elsewhere/other.png"))) == key
    others = [
        replace(base, seed=2),
        replace(base, prompt="Fire"),
        replace(base, options={"eta": 0.5}),
        replace(base, variations=((1, 0.5),)),
        replace(base, mask="in.png"),
        replace(base, dialect="a1111"),
    ]
    Path("own.py").write_text("mine = 1")
    FIRE.rotate(90).save("elsewhere/other.png")
    different = [keys.key(other) for other in others]
    later = Keys(Source().facts())
    different += [later.key(base), later.key(replace(base, image="elsewhere/other.png"))]
    different += [Keys(replace(Source(), ema=True).facts()).key(base)]
    assert len({key, *different}) == 1 + len(different)
    assert Keys(Source().facts()).key(Recipe("a", seed=1)) == keys.key(Recipe("a", seed=1))


@pytest.mark.slow
def test_a_model_in_memory(emoji):
    """With the tensors of its file it has the file's hash. Otherwise its own, and no source."""
    source, facts = source_of(emoji)
    assert source is not None and facts.sha256 == Source().facts().sha256
    source, _ = source_of(minisd.load(prediction="v"))
    assert source is not None and source.prediction == "v"
    changed = replace(emoji, unet=torch.nn.Linear(1, 1))
    source, facts = source_of(changed)
    assert source is None and re.fullmatch("[0-9a-f]{64}", facts.sha256)
    with pytest.raises(ValueError, match=r"not the one in its file: .* FILE.py:FUNCTION"):
        minisd.sweep([SMALL], changed, "out", workers=2)
    shutil.rmtree("out")


def test_a_row_that_fails(folder, emoji, monkeypatch, capsys):
    """It is in the table with its error. The next call tries it again, and nothing else."""
    bad = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(2))[0, 0, 0, 0]
    Path("own.py").write_text(
        "from minisd.samplers import k_euler\n"
        "def mine(predict_eps, x, sigmas):\n"
        f"    if (abs(x[:, 0, 0, 0] / sigmas[0] - {float(bad)}) < 1e-4).any():\n"
        "        raise KeyError('no such\\nthing')\n"
        "    yield from k_euler(predict_eps, x, sigmas)\n"
    )
    line = "sweep fire -s 2 -S 1,2,3 -A own.py:mine -C 1 --to out"
    run(line, status=1)
    errors = {row["seed"]: row["error"] for row in rows_of("out")}
    assert errors == {"1": "", "2": r"KeyError: 'no such\nthing'", "3": ""}
    assert {row["seed"] for row in rows_of("out") if row["file"]} == {"1", "3"}
    assert "1 of 3 rows failed; the first: KeyError: 'no such" in capsys.readouterr().err
    tasks = []
    monkeypatch.setattr("minisd.sweeps.work.Worker.draw", lambda _, part: tasks.extend(part) or [])
    run(line, status=1)
    assert [task.recipe.seed for task in tasks] == [2]
    run(line.replace("1,2,3", "2"), status=2)  # all of its rows failed


def test_rows_that_were_cut(folder, capsys):
    """A killed process leaves half a line: it is cut off. A line that somebody changed is named."""
    run("sweep fire -s 1 -S 1,2 -C 1 --to out")
    log = Path("out", LOG)
    data = log.read_bytes()
    log.write_bytes(data[:-30])
    run("sweep fire -s 1 -S 1,2 -C 1 --to out")
    assert "1 of 2 pictures are already in out" in capsys.readouterr().out
    assert len(log.read_bytes().splitlines()) == 2 and len(rows_of("out")) == 2
    log.write_bytes(data.replace(b"{", b"(", 1))
    run("sweep fire -s 1 -S 1,2 -C 1 --to out", status=2)
    assert f"{log}, line 1, is not a row of a sweep: remove this line" in capsys.readouterr().err
    log.write_bytes(data.replace(b"pictures/s1", b"pictures/../../s1", 1))
    run("sweep merge out --to other", status=2)
    assert f"{log}, line 1, is not a row of a sweep" in capsys.readouterr().err


def test_a_picture_that_was_removed_is_drawn_again(folder, capsys):
    run("sweep fire -s 1 -S 1,2 -C 1 --to out")
    paths = pictures()
    paths["s1-k_lms-S2"].unlink()
    run("sweep fire -s 1 -S 1,2 -C 1 --to out")
    assert "1 of 2 pictures are already in out" in capsys.readouterr().out
    assert pictures() == paths


def test_seeds_that_nobody_chose(folder, capsys):
    """One is drawn for the folder, and used again. Shards would draw different ones."""
    run("sweep fire -s 1 -C 1 --to out")
    (row,) = rows_of("out")
    run("sweep fire -s 1 -C 1 --to out --grid guidance=1,2")
    assert {each["seed"] for each in rows_of("out")} == {row["seed"]}
    run("sweep fire -s 1 -C 1 --to new --shard 1/2", status=2)
    assert "the shards of a sweep need the same seeds" in capsys.readouterr().err


def test_merging_two_drawings_of_a_row(folder, capsys):
    run("sweep fire -s 1 -S 1,2 -C 1 --to a")
    run("sweep fire -s 1 -S 2,3 -C 1 --to b")
    pixels = rows_of("b")[0]["pixels"]
    Path("b", LOG).write_text(Path("b", LOG).read_text().replace(pixels, "0" * 64))
    run("sweep merge a b --to c")
    assert "1 rows have different pictures in different folders" in capsys.readouterr().err
    assert [row["seed"] for row in rows_of("c")] == ["1", "2", "3"] and len(pictures("c")) == 3
    assert rows_of("c")[1]["pixels"] == pixels
    run("sweep merge c --to c")
    assert len(rows_of("c")) == 3


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    run("sweep fire -s 1 -S 1,2 --grid guidance=1,2.5 --to out")
    table = parquet.read_table("out/table.parquet").to_pydict()
    rows = rows_of("out")
    assert table["seed"] == [1, 2, 1, 2] and table["guidance"] == [1.0, 1.0, 2.5, 2.5]
    assert table["key"] == [row["key"] for row in rows] and table["fit"] == [False] * 4
    assert table["mask"] == [None] * 4 and list(table) == list(rows[0])


# ---- lists of recipes ----------------------------------------------------------------------------


def test_lists_of_recipes(folder):
    Path("list.jsonl").write_text(
        '{"prompt": "a, b", "steps": 3, "options": {"eta": 0.5}, "variations": [[1, 0.25]]}\n\n'
        '{"prompt": "c", "seed": [1, 2], "guidance": 3, "fit": true, "image": null}\n'
    )
    first, second = read_recipes("list.jsonl", Recipe("", sampler="ddim"))
    assert first == Recipe(
        "a, b", steps=3, options={"eta": 0.5}, variations=((1, 0.25),), sampler="ddim"
    )
    assert second == Recipe("c", seed=(1, 2), guidance=3.0, fit=True, sampler="ddim")
    Path("list.csv").write_text(
        "\ufeffprompt,seed,options,paste,variations\r\n"
        '"a, ""b""",7,eta=0.5,false,\r\n,,"{""eta"": 1}",,1:0.5\r\n'
    )
    assert read_recipes("list.csv", Recipe("base")) == [
        Recipe('a, "b"', seed=7, options={"eta": 0.5}, paste=False),
        Recipe("base", options={"eta": 1}, variations=((1, 0.5),)),
    ]


def test_a_table_can_be_drawn_again(folder):
    """Every field goes through the table: the new sweep has the same keys, but for the size."""
    Path("list.jsonl").write_text(
        '{"prompt": "a [b]", "options": {"eta": 0.5}, "sampler": "ddim", "seed": 1}\n'
        '{"prompt": "=1+1, \\"x\\"", "variations": [[3, 0.5]], "normalize": false, "seed": 2}\n'
        '{"prompt": "c", "image": "in.png", "strength": 0.5, "seed": 3, "paste": false}\n'
    )
    run("sweep --from list.jsonl -s 2 -C 1 -W 64 -H 64 --to out")
    run(f"sweep --from out/{TABLE} --to again")
    assert same_rows("again") == same_rows("out") and len(rows_of("out")) == 3


def test_a_grid_of_the_command_line(folder):
    Path("prompts.txt").write_text("a fire, 3d\n\n a cat \n")
    run(
        "sweep --grid prompt=@prompts.txt --grid options.eta=0,1 --grid schedule=karras,default "
        "-A ddim -s 1 -S 1 -C 1 --no-pictures --metrics none --to out"
    )
    rows = [(row["prompt"], row["schedule"], row["options"]) for row in rows_of("out")]
    assert len(rows) == 8 and rows[0] == ("a cat", "", '{"eta": 0}')
    assert ("a fire, 3d", "karras", '{"eta": 1}') in rows
    assert not Path("out/pictures").exists() and not Path("out/sheet.png").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sweep", "say what to draw, as in: minisd sweep fire"),
        ("sweep a red fire", "'red fire' belongs to no switch: put a prompt that has spaces in"),
        ("sweep fire --workers 0", "--workers must be 1 or more, not 0"),
        ("sweep fire --shard 17/16", "--shard 17/16: write K/N, from 1/N to N/N, as in 3/16"),
        ("sweep fire --shard 1", "--shard 1: write K/N"),
        ("sweep fire --grid gidance=3", "--grid gidance=3: write FIELD=VALUE,VALUE, as in"),
        ("sweep fire --grid steps=3,x", "--grid steps: 'x' is not a whole number"),
        ("sweep --grid prompt=@none.txt", "none.txt: No such file or directory"),
        ("sweep fire --metrics psrn", "no metric named 'psrn'; choose from to_init, psnr"),
        ("sweep fire --metrics lpips", "the metric lpips needs a package: No module named 'lpips'"),
        ("sweep fire -I none.png", "there is no file none.png"),
        ("sweep fire -M in.png", "the mask in.png needs an init image"),
        ("sweep fire -S -3", "seed must be between 0 and 4294967295, not -3"),
        ("sweep fire -A k_euler --set eta=1", "k_euler has no option 'eta'"),
        ("sweep --from in.png", "in.png should end in .jsonl or .csv"),
        ("sweep --from none.csv", "none.csv: No such file or directory"),
        ("sweep --from bad.csv", "bad.csv, line 3: it has not 2 values, as the first line has"),
        ("sweep --from bad.jsonl", "bad.jsonl, line 2: it is not an object, as in"),
        ("sweep --from field.jsonl", "line 1: a recipe has no field 'step' (did you mean steps?)"),
        ("sweep --from type.jsonl", "type.jsonl, line 1: steps: '2.5' is not a whole number"),
        ("sweep --from flag.csv", "flag.csv, line 2: fit: 'yes' is neither true nor false"),
        ("sweep --from range.csv", "range.csv, line 2: strength: 7 is not between 0 and 1"),
        ("sweep --from empty.csv", "empty.csv has no recipes"),
        ("sweep --from latin.csv", "latin.csv is not text in UTF-8, at byte 9"),
        ("sweep merge", "name the folders to merge, as in: minisd sweep merge part-*"),
        ("sweep merge nowhere --to x", "nowhere/sweep.json is missing: nowhere is not the folder"),
        ("sweep fire --model none.py:make", "there is no file none.py"),
        ("sweep fire --to in.png", "in.png should be a folder"),
    ],
)
def test_mistakes(folder, capsys, line, message):
    bad = {
        "bad.csv": b"prompt,seed\na,1\nb\n",
        "bad.jsonl": b'{"prompt": "a"}\n[1]\n',
        "field.jsonl": b'{"prompt": "a", "step": 1}\n',
        "type.jsonl": b'{"prompt": "a", "steps": 2.5}\n',
        "flag.csv": b"prompt,fit\na,yes\n",
        "range.csv": b"prompt,strength\na,7\n",
        "empty.csv": b"prompt,seed\n",
        "latin.csv": b"prompt\na\xe9\n",
    }
    for name, data in bad.items():
        Path(name).write_bytes(data)
    run(line, status=2)
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert {path.name for path in folder.iterdir()} == {*bad, "in.png"}


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.slow
def test_a_wrong_address(folder, capsys):
    run("sweep fire -s 1 -S 1 --ray 127.0.0.1:1 --to out", status=2)
    assert "there is no Ray cluster at 127.0.0.1:1" in capsys.readouterr().err


def test_ray_is_missing(folder, capsys, monkeypatch):
    monkeypatch.setattr("minisd.sweeps.cluster.find_spec", lambda _: None)
    run("sweep fire -s 1 -S 1 --ray --to out", status=2)
    assert 'the package ray is missing: pip install "minisd[ray]"' in capsys.readouterr().err


@pytest.mark.slow
def test_python_mistakes(folder, emoji):
    for recipes, problem in (
        ([], "there are no recipes"),
        ([{"prompt": "a", "sed": 1}], r"recipe 1: a recipe has no field 'sed' \(did you mean seed"),
        ([replace(SMALL, sampler=minisd.SAMPLERS["ddim"])], "a sweep's sampler is a name or FILE"),
        ([replace(SMALL, options={"eta": {1}})], "has no option"),
    ):
        with pytest.raises(ValueError, match=problem):
            minisd.sweep(recipes, emoji, "out")
    assert not Path("out").exists()


def test_progress_where_there_is_no_terminal(monkeypatch, capsys):
    """A line each minute, with the rate and the time left."""
    times = iter([0.0, 10.0, 70.0, 80.0])
    monkeypatch.setattr("minisd.cli.commands.sweep.time.monotonic", lambda: next(times))
    rate = Rate(Path("out"))
    for finished in (10, 30, 80, 90):
        rate(finished, 360)
    out, err = capsys.readouterr()
    assert out == "10 of 360 pictures are already in out\n"
    assert "80 of 360 pictures, 1 a second, 5 minutes left" in err and err.count("left") == 1


# ---- metrics -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    return a, b


def test_metrics_of_two_pictures(two):
    a, b = two
    images = [Image.fromarray(x) for x in two]
    rms = np.sqrt(np.mean((a.astype(float) - b) ** 2))
    assert distance(*images) == pytest.approx(rms, rel=1e-12)
    assert metrics.psnr_of(*images) == pytest.approx(10 * np.log10(255**2 / rms**2), rel=1e-12)
    assert metrics.psnr_of(images[0], images[0]) == math.inf

    def mean(x):
        """scipy's Gaussian, cut at 5 pixels, where the whole window is inside the picture."""
        return gaussian_filter(x, 1.5, truncate=5 / 1.5, axes=(0, 1))[5:-5, 5:-5]

    x, y = a / 255, b / 255
    mx, my = mean(x), mean(y)
    cov = np.stack([mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my])
    ratio = (2 * mx * my + 1e-4) * (2 * cov[2] + 9e-4)
    ratio /= (mx**2 + my**2 + 1e-4) * (cov[0] + cov[1] + 9e-4)
    assert metrics.ssim_of(*images) == pytest.approx(ratio.mean(), abs=1e-9)
    assert metrics.ssim_of(*(image.resize((8, 20)) for image in images)) is None


def test_edges(two):
    image = Image.fromarray(two[0])
    darker = Image.fromarray((two[0] // 2).astype(np.uint8))
    assert metrics.edges_of(image, image) == pytest.approx(1)
    assert metrics.edges_of(image, darker) > 0.95  # edges stay where they are
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert metrics.edges_of(image, flipped) < 0.5
    assert metrics.edges_of(image, Image.new("RGB", image.size)) is None


def drawn(sd, recipe: Recipe, image=None) -> Drawn:
    job = prepare(recipe, sd, image)
    result = job.draw()
    sigma = minisd.SCHEDULES["model"](recipe.steps)[
        0 if image is None else minisd.start_index(recipe.steps, recipe.strength)
    ]
    return Drawn(result.image, result.latent, job, sigma)


@pytest.mark.slow
def test_the_reference_starts_from_the_same_latent(emoji, monkeypatch):
    """The distance to it falls with the steps of the sampler, as its error does."""
    monkeypatch.setattr(metrics, "REFERENCE_STEPS", 8)
    recipe = Recipe("fire", strength=0.5, guidance=1.0, seed=1, sampler="k_euler")
    few, many = (drawn(emoji, replace(recipe, steps=s), FIRE) for s in (5, 20))
    noised: list[torch.Tensor] = []

    class Noting(type(few.job)):
        def draw(self, observe=None):
            return super().draw(lambda e: isinstance(e, minisd.Noised) and noised.append(e.x))

    for job in (few.job, replace(few, job=Noting(**vars(few.job))).job):
        job.draw()
    replace(few, job=Noting(**vars(few.job))).reference()
    assert len(noised) == 2 and torch.equal(*noised)
    assert metrics.to_reference(many) < metrics.to_reference(few) < 20
    assert metrics.to_reference(replace(few, sigma=0.0)) is None


@pytest.mark.slow
def test_the_caption_s_share(emoji):
    """The prompt that a picture was drawn for explains it better than another prompt."""
    for prompt, other in (("fire, noto", "a cat face, noto"), ("a cat face, noto", "fire, noto")):
        picture = drawn(emoji, Recipe(prompt, steps=8, guidance=4.0, seed=2))
        job = replace(picture.job, recipe=replace(picture.recipe, prompt=other))
        assert metrics.caption(picture) > 0.01 > metrics.caption(replace(picture, job=job))


def test_hooks_for_other_packages(emoji, monkeypatch):
    """LPIPS and CLIP score, with packages that only look like them."""
    network = SimpleNamespace(
        LPIPS=lambda net, verbose: lambda a, b: (a - b).abs().mean() if net == "alex" else None
    )
    monkeypatch.setitem(sys.modules, "lpips", network)
    metrics.lpips_network.cache_clear()
    white = SimpleNamespace(image=FIRE, init_image=Image.new("RGB", FIRE.size, "white"))
    expected = np.abs(np.asarray(FIRE, float) - 255).mean() / 127.5
    assert metrics.lpips(white) == pytest.approx(expected, rel=1e-6)
    embeds = SimpleNamespace(
        image_embeds=torch.ones(1, 4), text_embeds=torch.tensor([[3.0, 0, 0, 0]])
    )
    part = SimpleNamespace(from_pretrained=lambda name: lambda **_: embeds)
    parts = SimpleNamespace(
        CLIPModel=part, CLIPProcessor=SimpleNamespace(from_pretrained=lambda _: lambda **k: k)
    )
    monkeypatch.setitem(sys.modules, "transformers", parts)
    metrics.clip_network.cache_clear()
    score = metrics.clip_score(SimpleNamespace(image=FIRE, recipe=Recipe("fire")))
    assert score == pytest.approx(50)  # cos of (1, 1, 1, 1) and (3, 0, 0, 0) is 1/2
    metrics.lpips_network.cache_clear()
    metrics.clip_network.cache_clear()


# ---- the page ------------------------------------------------------------------------------------

SCRIPT = re.compile(r'<script type="application/json" id="data">(.*?)</script>')


def test_the_page_s_data(folder):
    nasty = '</script><img src=x onerror="alert(1)"> {{data}}'
    Path("list.jsonl").write_text(
        "\n".join(json.dumps({"prompt": prompt, "seed": 1}) for prompt in (nasty, "b"))
    )
    run("sweep --from list.jsonl -s 1 -C 1 --metrics caption --to out")
    text = Path("out/page.html").read_text()
    (data,) = SCRIPT.findall(text)
    data = json.loads(data)
    assert data["columns"] == ["file", "prompt", "caption", "seconds"] or data["columns"] == [
        "file",
        "prompt",
        "caption",
    ]
    assert [row[1] for row in data["rows"]] == [nasty, "b"]
    assert ["steps", "1"] in data["constants"] and ["guidance", "1.0"] in data["constants"]
    assert all(name != "sampler" for name, _ in data["constants"])  # it is the usual one
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason=f"none of {', '.join(NAMES)} is here")
def test_the_page_in_a_browser(folder, tmp_path):
    run("sweep fire -s 1,2 -S 1,2,3 -C 1 --to out")
    with Chromium(tmp_path / "profile") as page:
        page.size(1000, 700)
        page.open(Path("out/page.html"), "document.documentElement?.dataset.ready === 'yes'")
        count = "document.getElementById('count').textContent"
        first = "document.querySelector('.row .cell').textContent"
        assert page.run(count) == "6 of 6"
        page.wait("[...document.images].filter((i) => i.naturalWidth === 64).length === 6")
        page.run("document.getElementById('filter').value = 'steps=2 seed>=2'")
        page.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
        assert (
            page.run(count) == "2 of 6"
            and page.run("document.querySelectorAll('.tile').length") == 2
        )
        page.click("#as-table")
        heads = "[...document.querySelectorAll('#heads button')].map((b) => b.textContent)"
        seed = page.run(heads).index("seed")
        cells = f"r.querySelectorAll('.cell')[{seed}].textContent"
        cells = f"[...document.querySelectorAll('.row')].map((r) => {cells})"
        page.click(f"#heads button:nth-of-type({seed + 1})")
        assert page.run(cells) == ["2", "3"]
        page.click(f"#heads button:nth-of-type({seed + 1})")
        assert page.run(cells) == ["3", "2"]
        page.click(".row")
        assert page.run("document.getElementById('detail').open") and page.run(first)
        root = Path("out").resolve().as_uri()
        assert page.requests and all(url.startswith(root) for url in page.requests)
        assert not page.problems


# ---- docs/sweeps.md ------------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs"


def documented(language: str) -> list[str]:
    text = (DOCS / "sweeps.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_documented_commands(folder):
    """With one strength in place of four, and in this process. The seeds and samplers are less."""
    Path("docs/pictures").mkdir(parents=True)
    shutil.copy(DOCS / "pictures/fire-sketch.png", "docs/pictures")
    Path("prompts.txt").write_text(documented("text")[0])
    table, stars, redness = documented("python")
    Path("redness.py").write_text(redness)
    first, second = (block.replace("\\\n", " ") for block in documented("sh"))
    assert "-f 0.3,0.5,0.7,0.9" in first and "--workers 2" in first and "-s 8" in first
    first = first.replace("0.3,0.5,0.7,0.9", "0.5,1").replace("-s 8", "-s 2")
    first = first.replace("--workers 2", "").replace("-S 1,2", "-S 1").replace("k_lms,", "")
    for line in (first, second):
        run(line.removeprefix("minisd "))
    assert len(rows_of("outputs/fires")) == 6
    red, redder = (float(row["redness"]) for row in rows_of("outputs/red"))
    assert red > 0 and redder > 0  # stars are yellow: more red than green and blue
    exec(compile(stars, "sweeps.md", "exec"), {})
    assert len(rows_of("outputs/stars")) == 5
    if find_spec("pandas") and find_spec("matplotlib"):
        exec(compile(table, "sweeps.md", "exec"), {})
        assert Image.open("outputs/fires/plot.png").size == (1000, 400)


def test_the_documented_switches_exist(capsys):
    """Those of the scripts for SLURM and Ray, which no test can run."""
    with pytest.raises(SystemExit):
        main(["sweep", "-h"])
    known = capsys.readouterr().out
    for block in documented("bash"):
        for line in re.findall(r"^minisd sweep .*$", block.replace("\\\n", " "), re.MULTILINE):
            for switch in re.findall(r"(?<= )--?[a-z][\w-]*", line):
                assert switch in known, switch
