"""The house, as far as a program can tell: who imports whom, sizes, variable names, formatting."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minisd"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Names that do not say what they hold: a review found each of them bound many times.
EMPTY_NAMES = set(
    "found one said what there near at some told seen several again whole kind_of".split()  # noqa: SIM905
)
WORLD_FACES = {"minisd", "minisd.__main__"}  # they bring the rooms together


def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def imports_of(name: str) -> set[str]:
    """The package's own files that a file imports, wherever the import stands."""
    modules: set[str] = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                modules.add(module if module in FILES else str(node.module))
    return {module for module in modules if module in FILES and module != name}


IMPORTS = {name: imports_of(name) for name in FILES}


def reached_from(name: str) -> list[str]:
    """The file and all that it imports, directly or not."""
    order, todo = [], [name]
    while todo:
        current = todo.pop(0)
        if current not in order:
            order.append(current)
            todo += sorted(IMPORTS[current])
    return order


def folder_of(name: str) -> str:
    """`minisd.lab.report` is in `lab`; the core's files are in `minisd`."""
    parts = name.split(".")
    is_package = FILES[name].name == "__init__.py"
    return parts[1] if len(parts) > 2 or (is_package and len(parts) == 2) else "minisd"


def is_core(name: str) -> bool:
    return folder_of(name) == "minisd" and name not in WORLD_FACES


def lines_of(names: list[str]) -> int:
    return sum(len(FILES[name].read_text().splitlines()) for name in names)


# ---- who imports whom ----------------------------------------------------------------------------


def test_the_reader_of_imports_sees_them():
    assert "minisd.samplers" in IMPORTS["minisd.run"]
    assert "minisd.more_samplers" in IMPORTS["minisd"]
    assert {"minisd.img2img", "minisd.unet", "minisd.attention"} < set(
        reached_from("minisd.img2img")
    )


def circles() -> Iterator[list[str]]:
    for name in FILES:
        for imported in IMPORTS[name]:
            if name in reached_from(imported):
                yield [name, imported]


def test_there_is_no_circle_between_files():
    assert list(circles()) == []


def test_there_is_no_circle_between_folders():
    """A folder is one subject: what it needs of another folder does not need it back."""
    arrows = {
        (folder_of(name), folder_of(imported))
        for name in FILES
        if name not in WORLD_FACES
        for imported in IMPORTS[name]
        if folder_of(name) != folder_of(imported)
    }
    for folder in {folder for folder, _ in arrows}:
        reached, todo = set(), [folder]
        while todo:
            current = todo.pop()
            beyond = {b for a, b in arrows if a == current} - reached
            reached |= beyond
            todo += beyond
        assert folder not in reached, (folder, sorted(reached))


def test_only_the_command_line_imports_cli():
    for name in FILES:
        if folder_of(name) != "cli" and name != "minisd.__main__":
            assert not any(folder_of(imported) == "cli" for imported in IMPORTS[name]), name


def test_the_core_imports_no_folder():
    for name in FILES:
        if is_core(name):
            assert all(is_core(imported) for imported in IMPORTS[name]), name


def test_imports_stand_at_the_top():
    """Inside a function only what is optional may be imported: the packages of an extra."""
    for name in FILES:
        for function in ast.walk(tree_of(name)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        assert imported_extra(node), f"{name}, line {node.lineno}"


EXTRAS = {"openvino", "onnx", "onnxruntime", "ray", "matplotlib", "starlette", "uvicorn"}


def imported_extra(node: ast.Import | ast.ImportFrom) -> bool:
    names = (
        [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
    )
    return all(name.split(".")[0] in EXTRAS for name in names)


@pytest.mark.parametrize("word", ["ModuleType", "TYPE_CHECKING", "sys.modules[", "sys.modules.set"])
def test_no_tricks_with_modules(word):
    for name, path in FILES.items():
        assert word not in path.read_text(), name


# ---- sizes ---------------------------------------------------------------------------------------


def test_the_path_of_one_picture():
    """img2img from Python, counted by following imports: 14 files and 1,500 lines at most."""
    path = reached_from("minisd.img2img")
    assert not any(folder_of(name) != "minisd" for name in path)
    assert len(path) <= 14, path
    assert lines_of(path) <= 1500, {name: lines_of([name]) for name in path}


def test_the_four_pages_of_the_algorithm():
    """With all ten samplers of the seed document."""
    pages = [f"minisd.{name}" for name in ("img2img", "schedule", "samplers", "guidance")]
    assert lines_of(pages) <= 600
    euler = next(
        node
        for node in tree_of("minisd.samplers").body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(("k_", "ddim", "plms"))
    )
    assert euler.name == "k_euler"


def test_one_insertion_line():
    lines = [
        (path.name, line.strip())
        for path in PACKAGE.glob("*.py")
        for line in path.read_text().split("\n")
        if "<<< the noise insertion" in line
    ]
    assert [name for name, _ in lines] == ["img2img.py"]
    assert lines[0][1].startswith("x = x0 + sigmas[0] * noise")


# ---- names and style -----------------------------------------------------------------------------

SOURCES = [
    *FILES.values(),
    *sorted((ROOT / "bench").rglob("*.py")),
    *sorted((ROOT / "weights").rglob("*.py")),
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_variables_are_nouns(path):
    """No variable, argument or function has a name that says nothing of what it holds."""
    for node in ast.walk(ast.parse(path.read_text())):
        name = {
            ast.Name: lambda n: n.id if isinstance(n.ctx, ast.Store) else "",
            ast.arg: lambda n: n.arg,
            ast.FunctionDef: lambda n: n.name,
            ast.Attribute: lambda n: n.attr if isinstance(n.ctx, ast.Store) else "",
        }.get(type(node), lambda n: "")(node)
        assert name not in EMPTY_NAMES, f"line {node.lineno}: {name}"


@pytest.mark.slow
def test_types():
    """The core, the prompts and the recipes: their annotations are true."""
    command = ["basedpyright", "--pythonpath", sys.executable]
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]])
def test_ruff(words):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
