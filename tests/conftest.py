"""What the tests share: name-seeded weights at two sizes, and golden values (tests/golden)."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import minisd
from minisd.checkpoint.seeded import save_seeded

# With two threads the small models are no faster, and many times slower on a busy machine: the
# threads wait for each other at every layer. At full size they get all threads (all_threads).
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


def manifest() -> dict[str, tuple[int, ...]]:
    """The names and shapes of an SD 1.x checkpoint, written down by the original implementation."""
    entries = json.loads((GOLDEN / "sd1_manifest.json").read_text())
    return {name: tuple(shape) for name, shape in entries.items()}


def golden(size: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of the file of that name."""
    with safe_open(GOLDEN / f"{size}.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


full_size = pytest.mark.xdist_group("full size")  # one worker makes and holds these models


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cases of a test between its first and its last are slow.

    So plain `pytest` leaves them out. Runs before the selection by markers.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for group in cases.values():
        for item in group[1:-1]:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def memory_is_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no command lets the tests' own process keep its memory."""
    monkeypatch.setattr("minisd.fast.tuned.is_plentiful", lambda: False)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seeded(tmp_path_factory.mktemp("weights") / "tiny.safetensors", tiny=True)


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> minisd.StableDiffusion:
    return minisd.load(tiny_path)


@pytest.fixture(scope="session")
def sd1_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of all 1,143 entries at full size, 4.3 GB; removed at the end."""
    path = save_seeded(tmp_path_factory.mktemp("weights") / "sd1.safetensors")
    yield path
    path.unlink()


@pytest.fixture(scope="session")
def sd1(sd1_path: Path) -> minisd.StableDiffusion:
    return minisd.load(sd1_path)


@pytest.fixture(scope="module")
def all_threads() -> Iterator[None]:
    """Beside another worker, a second thread would only wait for its core."""
    is_alone = "PYTEST_XDIST_WORKER" not in os.environ
    torch.set_num_threads(os.cpu_count() or 1 if is_alone else 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def emoji() -> minisd.StableDiffusion:
    """The weights that come with minisd."""
    return minisd.load()
