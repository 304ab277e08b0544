"""Weights files that are damaged, of another kind, or made to do harm: all are refused in one line.

A list of dangerous names is not enough: scanners that rely on one have been evaded dozens of times
(picklescan alone has over 60 advisories). minisd has no code that could import or call what a file
names. These tests try to prove the opposite.
"""

import io
import itertools
import json
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import minisd
from minisd.checkpoint import tensors
from minisd.checkpoint.pickles import MAX_OPCODES
from minisd.checkpoint.tensors import MAX_HEADER, read_tensors

from . import hostile_files
from .hostile_files import (
    FIRST,
    Member,
    Raw,
    archive,
    call,
    changed,
    entry,
    legacy_parts,
    micro,
    micro_safetensors,
    name,
    ops,
    pickle_of,
    pickled_zip,
    rezipped,
    safetensors_of,
    saved,
    spliced,
    stack_global,
    storage,
    template,
    tensor,
    write,
)

CPU_SECONDS = 1.0  # of this process; a file that costs more could keep a server busy
MESSAGE = 1000  # characters besides the path: up to eight names of tensors


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    hostile_files.FIRED.clear()
    return tmp_path / "canary"


def refused(path: Path, message_part: str) -> None:
    """Load the file: it must be refused, in one line, with little work, and run nothing."""
    for _ in range(3):  # other programs may slow the processor, but hardly three times in a row
        start = time.process_time()
        with pytest.raises(minisd.CheckpointError, match=message_part) as error:
            minisd.load(path)
        seconds = time.process_time() - start
        if seconds < CPU_SECONDS:
            break
    message = str(error.value)
    print(f"{seconds:.2f} s  {message}")
    assert seconds < CPU_SECONDS
    assert message.isprintable() and len(message) < len(str(path)) + MESSAGE
    assert message.startswith(str(path)) and message.count(str(path)) == 1
    assert hostile_files.FIRED == []
    assert not (path.parent / "canary").exists() and "MINISD_FIRED" not in os.environ


# ---- files that ask to run something -------------------------------------------------------------

# Each of these creates the canary if it runs, or would with another argument.
PAYLOADS: dict[str, Callable[[Path], Raw]] = {
    "os.system": lambda c: call("os.system", f"touch {c}"),
    "posix.system": lambda c: call("posix.system", f"touch {c}"),
    "nt.system": lambda c: call("nt.system", f"touch {c}"),
    "builtins.eval": lambda c: call("builtins.eval", f"open({str(c)!r}, 'w')"),
    "builtins.exec": lambda c: call("builtins.exec", "import os; os.environ['MINISD_FIRED'] = '1'"),
    "__builtin__.eval": lambda c: call("__builtin__.eval", f"open({str(c)!r}, 'w')"),
    "builtins.open": lambda c: call("builtins.open", str(c), "w"),
    "builtins.__import__": lambda c: call("builtins.__import__", "antigravity"),
    "builtins.getattr": lambda c: call(call("builtins.getattr", name("os.path"), "os"), "system"),
    "subprocess.Popen": lambda c: call("subprocess.Popen", ["touch", str(c)]),
    "subprocess.check_output": lambda c: call("subprocess.check_output", ["touch", str(c)]),
    "runpy.run_path": lambda c: call("runpy.run_path", str(c)),
    "pip.main": lambda c: call("pip.main", ["install", str(c)]),
    "pip._internal": lambda c: call("pip._internal.cli.main.main", ["install", str(c)]),
    "pkgutil.resolve_name": lambda c: call(call("pkgutil.resolve_name", "os:system"), f"touch {c}"),
    "operator.attrgetter": lambda c: call(
        call(call("operator.attrgetter", "system"), name("os")), f"touch {c}"
    ),
    "functools.partial": lambda c: call(call("functools.partial", name("os.system"), f"touch {c}")),
    "functools.reduce": lambda c: call("functools.reduce", name("os.system"), [f"touch {c}"]),
    "importlib": lambda c: call("importlib.import_module", "antigravity"),
    "pickle.loads": lambda c: call("pickle.loads", pickle_of(call("os.system", f"touch {c}"))),
    "_pickle.loads": lambda c: call("_pickle.loads", pickle_of(call("os.system", f"touch {c}"))),
    "marshal.loads": lambda c: call("marshal.loads", b"N"),
    "types.FunctionType": lambda c: call("types.FunctionType", None, {}),
    "ctypes": lambda c: call("ctypes.CDLL", str(c)),
    "socket": lambda c: call("socket.create_connection", ("127.0.0.1", 9)),
    "shutil": lambda c: call("shutil.copy", __file__, str(c)),
    "webbrowser": lambda c: call("webbrowser.open", "about:blank"),
    "timeit": lambda c: call("timeit.timeit", f"open({str(c)!r}, 'w')"),
    "cProfile": lambda c: call("cProfile.run", f"open({str(c)!r}, 'w')"),
    "pdb": lambda c: call("pdb.run", f"open({str(c)!r}, 'w')"),
    "code": lambda c: call("code.interact"),
    "pty": lambda c: call("pty.spawn", "sh"),
    "multiprocessing": lambda c: call(
        "multiprocessing.util.spawnv_passfds", b"/bin/touch", [b"touch", str(c)], []
    ),
    "asyncio": lambda c: call("asyncio.unix_events._UnixSubprocessTransport._start", None),
    "urllib": lambda c: call("urllib.request.urlopen", "file:///etc/hostname"),
    "torch.load": lambda c: call("torch.load", str(c)),
    "torch.hub.load": lambda c: call("torch.hub.load", str(c), "model"),
    "torch.serialization": lambda c: call("torch.serialization.load", str(c)),
    "torch.storage": lambda c: call(
        "torch.storage._load_from_bytes", pickle_of(call("os.system", f"touch {c}"))
    ),
    "torch.jit": lambda c: call("torch.jit.load", str(c)),
    "torch.utils": lambda c: call("torch.utils.collect_env.run", f"touch {c}"),
    "torch._dynamo": lambda c: call("torch._dynamo.guards.GuardBuilder.get", str(c)),
    "numpy.load": lambda c: call("numpy.load", str(c), None, True),
    "numpy.fromfile": lambda c: call("numpy.fromfile", "/etc/hostname"),
    "numpy.lib": lambda c: call("numpy.lib.npyio.load", str(c), None, True),
    "numpy.testing": lambda c: call(
        "numpy.testing._private.utils.runstring", f"open({str(c)!r}, 'w')", {}
    ),
    "numpy.f2py": lambda c: call(
        "numpy.f2py.crackfortran.param_eval", f"open({str(c)!r}, 'w')", {}, {}
    ),
    # the same with other opcodes or names
    "STACK_GLOBAL": lambda c: call(stack_global("os", "system"), f"touch {c}"),
    "names taken from the memo": lambda c: call(
        Raw(
            ops("posix")
            + b"r\xf0\xff\xff\xff0"
            + ops("system")
            + b"r\xf1\xff\xff\xff0j\xf0\xff\xff\xffj\xf1\xff\xff\xff\x93"
        ),
        f"touch {c}",
    ),
    "memo at 2**32 - 1": lambda c: call(
        Raw(name("os.system") + b"r\xff\xff\xff\xff0j\xff\xff\xff\xff"), f"touch {c}"
    ),
    "a dotted name": lambda c: call(stack_global("torch", "serialization.os.system"), f"touch {c}"),
    "collections re-exports sys": lambda c: stack_global("collections", "_sys.modules"),
    "random re-exports os": lambda c: call(stack_global("random", "_os.system"), f"touch {c}"),
    "a call that is thrown away": lambda c: Raw(call("os.system", f"touch {c}") + b"0N"),
    "a call inside of a call": lambda c: call(
        "collections.OrderedDict", [("a", call("os.system", f"touch {c}"))]
    ),
    "NEWOBJ": lambda c: Raw(name("subprocess.Popen") + ops((["touch", str(c)],)) + b"\x81"),
    "NEWOBJ_EX": lambda c: Raw(
        name("subprocess.Popen") + ops((["touch", str(c)],)) + ops({}) + b"\x92"
    ),
    "INST": lambda c: Raw(b"(" + ops(f"touch {c}") + b"ios\nsystem\n"),
    "OBJ": lambda c: Raw(b"(" + name("os.system") + ops(f"touch {c}") + b"o"),
    "BUILD": lambda c: Raw(name("os._wrap_close") + b")\x81" + ops({"_proc": f"touch {c}"}) + b"b"),
    "EXT1": lambda c: Raw(b"\x82\xf0"),
    "EXT2": lambda c: Raw(b"\x83\xf0\xf0"),
    "EXT4": lambda c: Raw(b"\x84\xf0\xf0\xf0\x00"),
    "PERSID": lambda c: Raw(b"Pos.system\n"),
    "NEXT_BUFFER": lambda c: Raw(b"\x97"),
    "READONLY_BUFFER": lambda c: Raw(b"N\x98"),
    "DUP": lambda c: Raw(b"N20"),
    "an old pickle inside": lambda c: Raw(b"(dp0\nS'a'\np1\n"),
    # names that are harmless alone, beside one that is not
    "partial of eval": lambda c: call("functools.partial", name("builtins.eval"), "1"),
    "type with a method": lambda c: call("builtins.type", "A", (), {"f": name("os.system")}),
    "itemgetter of sys.modules": lambda c: call(
        call("operator.itemgetter", "os"), name("sys.modules")
    ),
    "defaultdict that makes": lambda c: call("collections.defaultdict", name("os.getcwd")),
    "SimpleNamespace with state": lambda c: Raw(
        name("types.SimpleNamespace") + b")\x81" + ops({"a": name("posix.system")}) + b"b"
    ),
    "operator.call": lambda c: call("operator.call", name("os.getcwd")),
    "types.CodeType": lambda c: call("types.CodeType", 0),
    "io.open": lambda c: call("io.open", str(c), "w"),
    "io.FileIO": lambda c: call("_io.FileIO", str(c), "w"),
    "torch.cuda": lambda c: call("torch.cuda.memory._dump_snapshot", str(c)),
}
ASKS = "asks to run|has the opcode"


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_nothing_runs(payload: Callable[[Path], Raw], canary: Path):
    """A checkpoint that is valid except for its callbacks, where most real attacks were."""
    refused(write(canary.parent / "model.ckpt", spliced(payload(canary))), ASKS)


@pytest.mark.parametrize("where", ["key", "state_dict", "state_dict key", "weight", "hooks"])
@pytest.mark.parametrize("kind", ["os.system", "STACK_GLOBAL", "NEWOBJ", "INST"])
def test_nothing_runs_wherever_the_payload_is(kind: str, where: str, canary: Path):
    refused(write(canary.parent / "model.ckpt", spliced(PAYLOADS[kind](canary), where)), ASKS)


@pytest.mark.parametrize("part", range(5))
def test_nothing_runs_in_any_pickle_of_the_legacy_format(part: int, canary: Path):
    parts = legacy_parts(saved(micro(), legacy=True))
    parts[part] = pickle_of(call("os.system", f"touch {canary}"))
    refused(write(canary.parent / "model.ckpt", b"".join(parts)), ASKS)


def test_nothing_runs_in_a_bare_pickle(canary: Path):
    """Not a torch file at all. pickle.load would run it at once."""
    refused(
        write(canary.parent / "model.ckpt", pickle_of(call("os.system", f"touch {canary}"))), ASKS
    )


@pytest.mark.parametrize(
    "kind",
    ["os.system", "builtins.eval", "a call that is thrown away", "pickle.loads", "OBJ", "INST"],
)
def test_python_runs_these_payloads(kind: str, canary: Path):
    """Python's own unpickler runs them, so the tests above could notice if minisd did."""
    pickle.loads(pickle_of(PAYLOADS[kind](canary)))
    assert canary.exists()


@pytest.mark.parametrize(
    "payload",
    [
        call("tests.hostile_files.fire", 1),
        Raw(name("tests.hostile_files.Trap") + b")\x81K\1b"),
        Raw(
            name("tests.hostile_files.Trap")
            + b")\x81}("
            + ops("__class__")
            + ops(1)
            + ops("__dict__")
            + ops(2)
            + b"ub"
        ),
        call(
            "copyreg._reconstructor",
            name("tests.hostile_files.Trap"),
            name("builtins.object"),
            None,
        ),
        Raw(name("torch._utils._rebuild_tensor_v2") + b"N" + b"b"),
        name("a_module_that_is_not_there.Class"),
    ],
    ids=[
        "REDUCE",
        "__setstate__",
        "__dict__",
        "reconstructor",
        "BUILD of a function",
        "missing module",
    ],
)
def test_an_unknown_name_stays_a_name(payload: Raw, canary: Path):
    """Training checkpoints name their trainer's classes. minisd does not import them, and loads."""
    path = write(canary.parent / "model.ckpt", spliced(payload))
    assert minisd.load(path).unet is not None
    assert hostile_files.FIRED == []
    refused(write(path, pickled_zip(pickle_of(payload))), "holds no tensors by name")
    refused(
        write(path, spliced(payload, "weight")), f"missing {FIRST}|{FIRST} is not a plain tensor"
    )


# ---- pickles that are wrong ----------------------------------------------------------------------


def nested(opening: bytes, closing: bytes, n: int) -> Raw:
    return Raw(opening * n + b"N" + closing * n)


def doubling(n: int) -> Raw:
    """A pair of a pair of a pair ...: few bytes, but 2**n leaves for code that visits them all."""
    return Raw(b"K\1" + b"r\x00\x00\xff\xff0j\x00\x00\xff\xffj\x00\x00\xff\xff\x86" * n)


DAMAGED = "its pickle is malformed or cut short"
PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", DAMAGED),
    "no STOP": (lambda: b"\x80\x02}", DAMAGED),
    "only STOP": (lambda: b"\x80\x02.", DAMAGED),
    "POP of nothing": (lambda: b"\x80\x020N.", DAMAGED),
    "MARK missing": (lambda: b"\x80\x02]e.", DAMAGED),
    "TUPLE3 of one": (lambda: b"\x80\x02N\x87.", DAMAGED),
    "memo never set": (lambda: b"\x80\x02h\x07.", DAMAGED),
    "memo at 2**32 - 1 never set": (lambda: b"\x80\x02j\xff\xff\xff\xff.", DAMAGED),
    "odd number of pairs": (lambda: b"\x80\x02}(K\1u.", DAMAGED),
    "unknown opcode": (lambda: b"\x80\x02\xff.", DAMAGED),
    "a name that is not UTF-8": (lambda: b"\x80\x02X\2\0\0\0\xff\xff.", DAMAGED),
    "a module name that is a number": (lambda: pickle_of(stack_global(1, 2)), DAMAGED),
    "a module name that is a bomb": (lambda: pickle_of(stack_global(doubling(60), "x")), DAMAGED),
    "BINUNICODE of 4 GB": (lambda: b"\x80\x02X\xff\xff\xff\xffa.", DAMAGED),
    "BINUNICODE8 of 2**62": (lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"a.", DAMAGED),
    "BINBYTES8 of 2**63": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 63) + b"a.", DAMAGED),
    "BYTEARRAY8 of 2**40": (lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"a.", DAMAGED),
    "LONG4 of 2 GB": (lambda: b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", DAMAGED),
    "LONG4 of -1": (lambda: b"\x80\x02\x8b\xff\xff\xff\xff\x01.", DAMAGED),
    "LONG of a million digits": (lambda: b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.", DAMAGED),
    "protocol 0": (lambda: pickle.dumps({"state_dict": {"a": 1}}, protocol=0), "has the opcode"),
    "protocol 1": (
        lambda: pickle.dumps({"state_dict": {"a": 1.5, "b": [None]}}, protocol=1),
        "holds no tensors by name",
    ),
    "a flood of opcodes": (lambda: pickle_of(Raw(b"N0" * 1_000_000)), "opcodes"),
    "a flood of lists": (lambda: pickle_of(Raw(b"]" * 2_000_000)), "opcodes"),
    "a flood of names": (
        lambda: pickle_of(Raw(b"ca\nb\n" * 500_000)),
        "more than 1,000 classes",
    ),
    "a flood of calls": (lambda: pickle_of(Raw(b"N" + b")R" * 1_000_000)), "opcodes"),
    "a flood of persistent ids": (lambda: pickle_of(Raw(b"N" + b"Q" * 1_000_000)), "opcodes"),
    "a flood of marks": (lambda: pickle_of(Raw(b"(" * 1_000_000)), "opcodes"),
    "lists, 100,000 deep": (
        lambda: pickle_of(nested(b"]", b"a", 100_000)),
        "holds no tensors by name",
    ),
    "tuples, 100,000 deep": (
        lambda: pickle_of(nested(b"(", b"t", 100_000)),
        "holds no tensors by name",
    ),
    "calls, 100,000 deep": (
        lambda: pickle_of(nested(b"N(", b"tR", 60_000)),
        "holds no tensors by name",
    ),
    "a bomb": (lambda: pickle_of(doubling(60)), "holds no tensors by name"),
    "a bomb as state_dict": (
        lambda: pickle_of({"state_dict": {"a": doubling(60)}}),
        "holds no tensors by name",
    ),
    "a list that holds itself": (lambda: b"\x80\x02]q\0h\0a.", "holds no tensors by name"),
    "a number": (lambda: pickle_of(1), "holds no tensors by name"),
    "an empty dict": (lambda: pickle_of({}), "holds no tensors by name"),
    "a whole model, not its weights": (
        lambda: pickle_of(call("torch.nn.modules.linear.Linear")),
        "holds no tensors by name",
    ),
    "more than 4 MB": (lambda: pickle_of(bytes(5 << 20)), "its pickle has 5,242,"),
}


@pytest.mark.parametrize(("make", "message_part"), PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_is_wrong(make: Callable[[], bytes], message_part: str, canary: Path):
    refused(write(canary.parent / "model.ckpt", pickled_zip(make())), message_part)


@pytest.mark.parametrize("kind", [kind for kind in PICKLES if kind.startswith("a flood")])
def test_a_flood_is_left_at_the_limit(kind: str, canary: Path, monkeypatch: pytest.MonkeyPatch):
    """Decoding stops right after the limit."""
    decode, count = pickletools.genops, 0

    def counted(stream: Any) -> Iterator[Any]:
        nonlocal count
        for operation in decode(stream):
            count += 1
            yield operation

    monkeypatch.setattr(pickletools, "genops", counted)
    with pytest.raises(minisd.CheckpointError):
        minisd.load(write(canary.parent / "model.ckpt", pickled_zip(PICKLES[kind][0]())))
    assert 1000 < count <= MAX_OPCODES + 2


@pytest.mark.parametrize(
    "file",
    [
        lambda: pickled_zip(pickle_of(bytes(5 << 20))),
        lambda: safetensors_of(b"{" + b" " * (5 << 20) + b"}"),
        lambda: rezipped({**valid(), "archive/byteorder": bytes(5 << 20)}),
        lambda: archive([Member("a", bytes(5 << 20))], size=0xFFFFFFF0),
    ],
    ids=["pickle", "header", "byteorder", "directory"],
)
def test_little_is_read_of_a_large_part(file: Callable[[], bytes], canary: Path, monkeypatch):
    """Of a part that no checkpoint needs at this size, at most MAX_HEADER bytes are read."""
    n_read = 0

    class CountingFile(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            nonlocal n_read
            data = super().read(size)
            n_read += len(data)
            return data

    path = write(canary.parent / "model.ckpt", file())
    monkeypatch.setattr(tensors, "open", CountingFile, raising=False)
    with pytest.raises(minisd.CheckpointError):
        read_tensors(path)
    assert 0 < n_read <= MAX_HEADER + (1 << 20)


WRONG = f"{FIRST} (has|should have|reaches|is not a plain|is a view|is stored)"
ODD = f"{FIRST} is not a plain tensor, or its storage is missing: minisd reads float32"
TENSORS: dict[str, tuple[Callable[[], Any], str]] = {
    "persistent id is a number": (lambda: tensor(Raw(b"K\1Q")), ODD),
    "persistent id is a bomb": (lambda: tensor(Raw(doubling(60) + b"Q")), ODD),
    "persistent id is too short": (
        lambda: tensor(Raw(ops(("storage", name("torch.FloatStorage"))) + b"Q")),
        ODD,
    ),
    "persistent id is a module": (lambda: tensor(Raw(ops(("module", 1, 2, 3, 4)) + b"Q")), ODD),
    "persistent id has a view": (
        lambda: tensor(storage("0", 4096, None, ("1", 0, 4096))),
        f"{FIRST} is a view in a form that minisd does not know",
    ),
    "no persistent id": (lambda: tensor(None), ODD),
    "storage of another module": (lambda: tensor(storage(kind=name("evil.FloatStorage"))), ODD),
    "storage that is not a class": (lambda: tensor(storage(kind="FloatStorage")), ODD),
    "storage that is not there": (lambda: tensor(storage("99999")), ODD),
    "storage key is a number": (lambda: tensor(storage(0)), ODD),
    "storage is the pickle itself": (lambda: tensor(storage("../data.pkl")), ODD),
    "storage is the archive's version": (lambda: tensor(storage("archive/version", 1)), ODD),
    "storage of fewer items": (
        lambda: tensor(storage(numel=4095)),
        f"{FIRST} should have 4,09[57] items, but its storage has 16,384 bytes",
    ),
    "storage of more items": (
        lambda: tensor(storage(numel=4097)),
        f"{FIRST} should have 4,09[57] items, but its storage has 16,384 bytes",
    ),
    "storage of 2**62 items": (lambda: tensor(storage(numel=1 << 62)), WRONG),
    "storage of -1 items": (lambda: tensor(storage(numel=-1)), WRONG),
    "storage of '4096' items": (lambda: tensor(storage(numel="4096")), WRONG),
    "storage of another type": (lambda: tensor(storage(kind=name("torch.DoubleStorage"))), WRONG),
    "integers": (
        lambda: tensor(storage(kind=name("torch.IntStorage"))),
        f"{FIRST} is stored as I32",
    ),
    "offset beyond": (lambda: tensor(storage(), 1), f"{FIRST} reaches beyond its storage"),
    "offset below": (lambda: tensor(storage(), -1), WRONG),
    "offset of 2**63": (lambda: tensor(storage(), 1 << 63), WRONG),
    "offset is a float": (lambda: tensor(storage(), 0.0), WRONG),
    "offset is a list": (lambda: tensor(storage(), []), WRONG),
    "shape too large": (
        lambda: tensor(storage(), size=(129, 32)),
        f"{FIRST} reaches beyond its storage",
    ),
    "shape below": (lambda: tensor(storage(), size=(-128, -32)), WRONG),
    "shape of 2**63": (lambda: tensor(storage(), size=(1 << 63, 32)), WRONG),
    "shape that overflows to the right size": (
        lambda: tensor(storage(), size=(1 << 33, 1 << 31), stride=(0, 0)),
        WRONG,
    ),
    "shape of 100,000 dimensions": (
        lambda: tensor(storage(), size=(1 << 40,) * 50_000, stride=(0,) * 50_000),
        WRONG,
    ),
    "shape is a number": (lambda: tensor(storage(), size=4096), WRONG),
    "shape is text": (lambda: tensor(storage(), size="ab"), WRONG),
    "shape is a bomb": (lambda: tensor(storage(), size=doubling(60)), WRONG),
    "shape of other length than stride": (lambda: tensor(storage(), size=(4096,)), WRONG),
    "shape is empty": (lambda: tensor(storage(), size=(0, 32)), f"{FIRST} is empty"),
    "stride below": (lambda: tensor(storage(), stride=(-32, -1)), WRONG),
    "stride beyond": (
        lambda: tensor(storage(), stride=(33, 1)),
        f"{FIRST} reaches beyond its storage",
    ),
    "stride of 2**60": (lambda: tensor(storage(), stride=(1 << 60, 1)), WRONG),
    "stride that repeats": (lambda: tensor(storage(), size=(1 << 20, 32), stride=(0, 1)), WRONG),
    "stride is a float": (lambda: tensor(storage(), stride=(32.0, 1.0)), WRONG),
    "no arguments": (lambda: call("torch._utils._rebuild_tensor_v2"), ODD),
    "arguments are a bomb": (
        lambda: Raw(name("torch._utils._rebuild_tensor_v2") + doubling(60) + b"R"),
        ODD,
    ),
    "a parameter of nothing": (lambda: call("torch._utils._rebuild_parameter"), ODD),
    "a parameter of a parameter": (
        lambda: call(
            "torch._utils._rebuild_parameter",
            call("torch._utils._rebuild_parameter", tensor(storage())),
        ),
        ODD,
    ),
    "sparse": (
        lambda: call("torch._utils._rebuild_sparse_tensor", name("torch.sparse_coo"), ()),
        ODD,
    ),
    "quantized": (
        lambda: call("torch._utils._rebuild_qtensor", storage(), 0, (128, 32), (32, 1), ()),
        ODD,
    ),
    "another number": (lambda: 1, f"missing {FIRST}"),
}


@pytest.mark.parametrize(("make", "message_part"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_that_is_wrong(make: Callable[[], Any], message_part: str, canary: Path):
    refused(write(canary.parent / "model.ckpt", spliced(ops(make()), "weight")), message_part)


def test_one_storage_under_many_names(canary: Path):
    """3 MB in the file, but 10,000 times 16 kB in memory if each tensor were copied."""
    shared = torch.zeros(128, 32)
    values = {
        **micro(),
        **{f"model.diffusion_model.time_embed.{i}.weight": shared for i in range(4, 5000)},
    }
    refused(write(canary.parent / "model.ckpt", saved(values)), "several share one storage")


def test_walking_through_the_data_of_a_legacy_file(canary: Path):
    """Lists of one and the same list: 60,000 ** 4 items for code that visits them all."""
    data = b"](" + b"K\1" * 60_000 + b"eq\0"
    for i in range(3):
        data += b"0](" + bytes([*b"h", i]) * 60_000 + bytes([*b"eq", i + 1])
    parts = legacy_parts(saved(micro(), legacy=True))
    parts[3] = pickle_of(Raw(data))
    refused(
        write(canary.parent / "model.ckpt", b"".join(parts)), "its list of storages does not fit"
    )


LEGACY: dict[str, tuple[int, Callable[[bytes], bytes], str]] = {
    "another magic number": (0, lambda _: pickle_of(1), "not one that torch.save makes"),
    "a bomb as magic number": (
        0,
        lambda _: pickle_of(doubling(60)),
        "not one that torch.save makes",
    ),
    "big-endian": (2, lambda _: pickle_of({"little_endian": False}), "big-endian"),
    "no data": (3, lambda _: pickle_of(None), "does not fit"),
    "keys are a number": (4, lambda _: pickle_of(7), "damaged"),
    "keys are text": (4, lambda _: pickle_of("abc"), "does not fit"),
    "keys are lists": (4, lambda _: pickle_of([[], []]), "damaged"),
    "no keys": (4, lambda _: pickle_of([]), "is not a plain tensor"),
    "keys twice": (
        4,
        lambda old: pickle_of([*pickle.loads(old), *pickle.loads(old)]),
        "does not fit",
    ),
    "keys unknown": (4, lambda old: pickle_of(["x", *pickle.loads(old)]), "does not fit"),
    "length of 2**63": (5, lambda old: struct.pack("<Q", 1 << 63) + old[8:], "cut short"),
    "length of 2**64 - 1": (5, lambda old: b"\xff" * 8 + old[8:], "cut short"),
    "length of 2**61": (5, lambda old: struct.pack("<Q", 1 << 61) + old[8:], "cut short"),
    "length of 0": (5, lambda old: bytes(8) + old[8:], "storage|cut short"),
    "no storages": (5, lambda old: b"", "has 0 bytes|cut short"),
    "BINBYTES8 of 2**62": (
        3,
        lambda _: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"a.",
        DAMAGED,
    ),
    "BINUNICODE8 of 2**40": (
        3,
        lambda _: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
        DAMAGED,
    ),
}


@pytest.mark.parametrize(("part", "change", "message_part"), LEGACY.values(), ids=LEGACY)
def test_a_legacy_file_that_is_wrong(
    part: int, change: Callable[[bytes], bytes], message_part: str, canary: Path
):
    parts = legacy_parts(saved(micro(), legacy=True))
    parts[part] = change(parts[part])
    refused(write(canary.parent / "model.ckpt", b"".join(parts)), message_part)


# ---- zips ----------------------------------------------------------------------------------------


def valid() -> dict[str, bytes]:
    """The members of a valid checkpoint."""
    return {**template("callbacks")}


def with_member(path: str, data: bytes = b"x") -> bytes:
    return archive([*(Member(*item) for item in valid().items()), Member(path, data)])


def lied(**lies: Any) -> bytes:
    """A checkpoint that is valid except for the headers of its first storage."""
    return rezipped(valid(), **{"0": lies})


def deflated() -> bytes:
    """The first storage is compressed."""
    files = {path: Member(path, data) for path, data in valid().items()}
    body = zlib.compress(bytes(16384), wbits=-15)
    files["archive/data/0"] = Member("archive/data/0", body, method=8, size=16384)
    return archive(files.values())


def bomb() -> bytes:
    """100 MB of zeros in 100 kB, as the pickle."""
    body = zlib.compress(bytes(100 << 20), wbits=-15)
    return archive([Member("archive/data.pkl", body, method=8, size=100 << 20)])


def huge_directory() -> bytes:
    """The end record gives a small size, the 64-bit one a large size, which Python uses."""
    data = archive(Member(str(i), b"") for i in range(120_000))
    end = data[-22:]
    size, offset = struct.unpack("<LL", end[12:20])
    wide = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, size, offset)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, len(data) - 22, 1)
    return (
        data[:-22] + wide + locator + end[:8] + struct.pack("<HHLL", 1, 1, 100, offset) + end[20:]
    )


def endless_extra() -> bytes:
    """The last file's local header claims 64 kB between itself and its data."""
    data = rezipped(valid())
    place = data.rindex(b"PK\3\4") + 28
    return data[:place] + b"\xff\xff" + data[place + 2 :]


def reordered() -> bytes:
    """The archive's first two files claim the same bytes."""
    return rezipped(valid(), version={"central_offset": 0})


ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "the same name twice": (
        lambda: with_member("archive/data/0", valid()["archive/data/0"]),
        "two files named archive/data/0",
    ),
    "data.pkl twice": (
        lambda: with_member("archive/data.pkl", valid()["archive/data.pkl"]),
        "two files named",
    ),
    "two of data.pkl": (
        lambda: with_member("other/data.pkl", valid()["archive/data.pkl"]),
        "not one that torch.save makes",
    ),
    "no data.pkl": (
        lambda: archive([Member("archive/version", b"3")]),
        "not one that torch.save makes",
    ),
    "path out of the archive": (
        lambda: with_member("archive/../../evil"),
        "file outside of itself",
    ),
    "absolute path": (lambda: with_member("/etc/evil"), "file outside of itself"),
    "path with backslashes": (lambda: with_member("archive\\..\\evil"), "file outside of itself"),
    "compressed": (deflated, "is compressed"),
    "compressed, by the local header alone": (
        lambda: lied(local_method=8),
        "contradicts itself",
    ),
    "a bomb": (bomb, "is compressed"),
    "unknown method": (lambda: lied(method=99), "is compressed"),
    "encrypted": (lambda: lied(flags=0x801), "is encrypted"),
    "encrypted, by the local header alone": (
        lambda: lied(local_flags=0x801),
        "contradicts itself",
    ),
    "local name differs": (lambda: lied(local_name="archive/data/9"), "contradicts itself"),
    "local name differs for the pickle": (
        lambda: rezipped(valid(), **{"data.pkl": {"local_name": "archive/data.txt"}}),
        "contradicts itself",
    ),
    "local size differs": (lambda: lied(local_size=8, local_compressed=8), "contradicts itself"),
    "local extra reaches beyond the end": (endless_extra, "overlaps another file or the end"),
    "size beyond the file": (
        lambda: lied(size=1 << 31, compressed=1 << 31),
        "overlaps another file or the end",
    ),
    "size of 4 GB": (
        lambda: lied(central_size=(1 << 32) - 2, central_compressed=(1 << 32) - 2),
        "overlaps|contradicts",
    ),
    "sizes that differ": (lambda: lied(size=1 << 31), "is compressed"),
    "storage too small": (
        lambda: rezipped({**valid(), "archive/data/0": bytes(16383)}),
        f"{FIRST} should have 4,096 items, but its storage has 16,383 bytes",
    ),
    "storage too large": (
        lambda: rezipped({**valid(), "archive/data/0": bytes(16385)}),
        f"{FIRST} should have 4,096 items, but its storage has 16,385 bytes",
    ),
    "storage missing": (
        lambda: rezipped(
            {each: data for each, data in valid().items() if each != "archive/data/0"}
        ),
        f"{FIRST} is not a plain tensor",
    ),
    "overlapping": (lambda: lied(size=20_000, compressed=20_000), "overlaps another file"),
    "the same bytes twice": (reordered, "overlaps|contradicts|two files|in front"),
    "offset beyond the file": (
        lambda: lied(central_offset=1 << 31),
        "overlaps another file or the end",
    ),
    "offset into the numbers": (
        lambda: lied(central_offset=70_000),
        "overlaps|nowhere|contradicts",
    ),
    "directory of 120,000 files": (huge_directory, "its directory has"),
    "directory of 30,000 files": (
        lambda: archive(Member(str(i), b"") for i in range(30_000)),
        "has 30,000 files",
    ),
    "directory size of 4 GB": (
        lambda: archive([Member("a", b"")], size=0xFFFFFFF0),
        "its directory has",
    ),
    "directory size too large": (lambda: archive([Member("a", b"")], size=1000), "damaged"),
    "directory offset beyond": (
        lambda: archive([Member("a", b"")], offset=1 << 31),
        "in front|damaged",
    ),
    "an empty archive": (lambda: archive([]), "not a weights file"),
    "something in front": (
        lambda: b"PK\3\4 something else" + rezipped(valid()),
        "something else is in front",
    ),
    "something behind": (lambda: rezipped(valid()) + b"<script>", "something is appended"),
    "a second archive behind": (
        lambda: rezipped(valid()) + pickled_zip(pickle_of({})),
        "something else is in front",
    ),
    "an archive in an archive": (
        lambda: archive([Member("model.ckpt", rezipped(valid()))]),
        "not one that torch.save makes",
    ),
    "a TorchScript program": (lambda: with_member("archive/constants.pkl"), "TorchScript program"),
    "a document": (
        lambda: archive(
            [Member("[Content_Types].xml", b"<x/>"), Member("word/document.xml", b"<x/>")]
        ),
        "not one that",
    ),
    "numpy's archive": (
        lambda: archive([Member("a.npy", b"\x93NUMPY")]),
        "not one that torch.save makes",
    ),
    "big-endian": (lambda: rezipped({**valid(), "archive/byteorder": b"big"}), "big-endian"),
    "byteorder of 5 MB": (
        lambda: rezipped({**valid(), "archive/byteorder": bytes(5 << 20)}),
        "big-endian",
    ),
    "line breaks and terminal codes in a name": (
        lambda: with_member("archive/\n\x1b[2J\\"),
        "file outside of itself",
    ),
}


@pytest.mark.parametrize(("make", "message_part"), ZIPS.values(), ids=ZIPS)
def test_a_zip_that_is_wrong(make: Callable[[], bytes], message_part: str, canary: Path):
    refused(write(canary.parent / "model.ckpt", make()), message_part)


# ---- .safetensors --------------------------------------------------------------------------------


def deep(n: int, opening: bytes = b'{"a":', closing: bytes = b"}") -> bytes:
    return opening * n + b"1" + closing * n


HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "header of 2**63": (
        lambda: safetensors_of({}, length=1 << 63),
        "cut short: its header has",
    ),
    "header of 2**64 - 1": (lambda: safetensors_of({}, length=(1 << 64) - 1), "cut short"),
    "header one byte longer than the file": (lambda: safetensors_of({}, length=3), "cut short"),
    "header shorter than its JSON": (
        lambda: safetensors_of({"a": entry()}, bytes(16), length=10),
        "damaged",
    ),
    "header of 5 MB": (
        lambda: safetensors_of(b"{" + b" " * (5 << 20) + b"}"),
        "more than any model needs",
    ),
    "header of nothing": (lambda: safetensors_of(b"{", length=0), "damaged"),
    "not JSON": (lambda: safetensors_of(b"{this is not JSON}"), "damaged"),
    "not UTF-8": (lambda: safetensors_of(b'{"\xff": 1}'), "damaged"),
    "JSON, 100,000 deep": (lambda: safetensors_of(deep(100_000)), "damaged"),
    "lists, 1,000,000 deep": (
        lambda: safetensors_of(b'{"a":' + deep(1_000_000, b"[", b"]") + b"}"),
        "damaged",
    ),
    "a million empty lists": (
        lambda: safetensors_of(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"),
        "damaged",
    ),
    "the same name twice": (
        lambda: safetensors_of(
            f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}'.encode(), bytes(16)
        ),
        "same name twice|damaged",
    ),
    "the same name twice, other places": (
        lambda: safetensors_of(
            f'{{"a": {json.dumps(entry(begin=16, end=32))}, "a": {json.dumps(entry())}}}'.encode(),
            bytes(16),
        ),
        "same name twice|damaged",
    ),
    "metadata twice": (
        lambda: safetensors_of(b'{"__metadata__": {}, "__metadata__": {}}'),
        "same name twice|damaged",
    ),
    "a shape twice": (
        lambda: safetensors_of(
            b'{"a":{"dtype":"F32","shape":[4],"shape":[1],"data_offsets":[0,16]}}', bytes(16)
        ),
        "damaged|same name twice",
    ),
    "metadata that is not text": (
        lambda: safetensors_of({"__metadata__": {"a": 1}, "a": entry()}, bytes(16)),
        "damaged",
    ),
    "metadata that is a list": (
        lambda: safetensors_of({"__metadata__": [], "a": entry()}, bytes(16)),
        "damaged",
    ),
    "metadata that is nothing": (
        lambda: safetensors_of({"__metadata__": None, "a": entry()}, bytes(16)),
        "damaged|a name of SD 1.x",
    ),
    "an entry that is a number": (lambda: safetensors_of({"a": 1}), "damaged"),
    "an entry that is empty": (lambda: safetensors_of({"a": {}}), "damaged"),
    "offsets that overlap": (
        lambda: safetensors_of({"a": entry(), "b": entry(begin=8, end=24)}, bytes(24)),
        "damaged",
    ),
    "the same bytes under two names": (
        lambda: safetensors_of({"a": entry(), "b": entry()}, bytes(16)),
        "damaged",
    ),
    "offsets the wrong way round": (
        lambda: safetensors_of({"a": entry(begin=16, end=0)}, bytes(16)),
        "damaged",
    ),
    "offsets below": (lambda: safetensors_of({"a": entry(begin=-16, end=0)}, bytes(16)), "damaged"),
    "offsets beyond the end": (
        lambda: safetensors_of({"a": entry(shape=[8], end=32)}, bytes(16)),
        "damaged",
    ),
    "offsets of 2**64": (
        lambda: safetensors_of({"a": entry(begin=1 << 64, end=(1 << 64) + 16)}, bytes(16)),
        "damaged",
    ),
    "offsets that are not whole": (
        lambda: safetensors_of({"a": entry(begin=0.0, end=16.0)}, bytes(16)),
        "damaged",
    ),
    "three offsets": (
        lambda: safetensors_of(
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 16]}}, bytes(16)
        ),
        "damaged",
    ),
    "a hole": (
        lambda: safetensors_of({"a": entry(), "b": entry(begin=32, end=48)}, bytes(48)),
        "damaged",
    ),
    "a hole in front": (
        lambda: safetensors_of({"a": entry(begin=16, end=32)}, bytes(32)),
        "damaged",
    ),
    "something behind": (
        lambda: safetensors_of({"a": entry()}, bytes(16) + b"<script>"),
        "8 bytes follow its last tensor",
    ),
    "length does not fit the shape": (
        lambda: safetensors_of({"a": entry(shape=[3])}, bytes(16)),
        "damaged",
    ),
    "shape that overflows to the right size": (
        lambda: safetensors_of({"a": entry(shape=[1 << 62, 4, 1], end=0)}),
        "damaged",
    ),
    "shape of 2**63": (lambda: safetensors_of({"a": entry(shape=[1 << 63])}, bytes(16)), "damaged"),
    "shape below": (lambda: safetensors_of({"a": entry(shape=[-4])}, bytes(16)), "damaged"),
    "shape of 100,000 dimensions": (
        lambda: safetensors_of({"a": entry(shape=[4] + [1] * 100_000)}, bytes(16)),
        "dimensions",
    ),
    "unknown type": (lambda: safetensors_of({"a": entry("F128", [1])}, bytes(16)), "damaged"),
    "4-bit floats": (
        lambda: safetensors_of({"a": entry("F4", [32])}, bytes(16)),
        "is of type F4: minisd reads|damaged",
    ),
    "8-bit floats": (
        lambda: safetensors_of({"a": entry("F8_E4M3", [16])}, bytes(16)),
        "none of its tensors has a name of SD 1.x",
    ),
    "complex numbers": (
        lambda: safetensors_of({"a": entry("C64", [2])}, bytes(16)),
        "none of its tensors has a name of SD 1.x",
    ),
    "30,000 tensors": (
        lambda: safetensors_of(
            {f"{i}": entry(begin=16 * i, end=16 * i + 16) for i in range(30_000)}, bytes(480_000)
        ),
        "names 30,000 tensors",
    ),
    "30,000 tensors of no size": (
        lambda: safetensors_of({f"{i}": entry(shape=[0], end=0) for i in range(30_000)}),
        "names 30,000 tensors",
    ),
    "line breaks and terminal codes in a name": (
        lambda: safetensors_of(
            {"model.diffusion_model.\r\n\x1b[2J\u202e": entry("F32", [4])}, bytes(16)
        ),
        "a UNet without its autoencoder",
    ),
    "a name of 1 MB": (
        lambda: safetensors_of({"cond_stage_model." + "a" * (1 << 20): entry()}, bytes(16)),
        "SD 1.x",
    ),
}


@pytest.mark.parametrize(("make", "message_part"), HEADERS.values(), ids=HEADERS)
def test_a_safetensors_file_that_is_wrong(
    make: Callable[[], bytes], message_part: str, canary: Path
):
    refused(write(canary.parent / "model.safetensors", make()), message_part)


BROKEN = "its metadata under the key 'minisd' is wrong"
METADATA: dict[str, tuple[str, str]] = {
    "JSON, 100,000 deep": (deep(100_000).decode(), BROKEN),
    "zero heads": ('{"unet_heads": 0}', BROKEN),
    "less than no heads": ('{"text_heads": -1}', BROKEN),
    "heads that do not divide": ('{"unet_heads": 7}', "7 heads do not divide"),
    "text heads that do not divide": ('{"text_heads": 5}', "5 heads do not divide"),
    "heads as a word": ('{"unet_heads": "eight"}', BROKEN),
    "heads as a list": ('{"unet_heads": [8]}', BROKEN),
    "heads as null": ('{"unet_heads": null}', BROKEN),
    "heads without end": ('{"unet_heads": Infinity}', BROKEN),
    "heads that are not a number": ('{"unet_heads": NaN}', BROKEN),
    "heads of 10**300": ('{"unet_heads": 1' + "0" * 300 + "}", BROKEN),
    "size of 10**12": ('{"native_size": 1000000000000}', BROKEN),
    "latent_rgb alone": ('{"latent_rgb": [[1,1,1],[1,1,1],[1,1,1],[1,1,1]]}', BROKEN),
    "latent_rgb_bias alone": ('{"latent_rgb_bias": [1,1,1]}', BROKEN),
    "latent_rgb of three rows": (
        '{"latent_rgb": [[1,1,1],[1,1,1],[1,1,1]], "latent_rgb_bias": [0,0,0]}',
        BROKEN,
    ),
    "latent_rgb of six rows": (
        json.dumps({"latent_rgb": [[1, 1, 1]] * 6, "latent_rgb_bias": [0, 0, 0]}),
        BROKEN,
    ),
    "latent_rgb of four columns": (
        json.dumps({"latent_rgb": [[1] * 4] * 4, "latent_rgb_bias": [0] * 4}),
        BROKEN,
    ),
    "latent_rgb that is ragged": (
        '{"latent_rgb": [[1,1,1],[1],[1,1,1],[1,1,1]], "latent_rgb_bias": [0,0,0]}',
        BROKEN,
    ),
    "latent_rgb of words": (
        json.dumps({"latent_rgb": ["red"] * 4, "latent_rgb_bias": [0, 0, 0]}),
        BROKEN,
    ),
    "latent_rgb with NaN": (
        '{"latent_rgb": [[NaN,1,1],[1,1,1],[1,1,1],[1,1,1]], "latent_rgb_bias": [0,0,0]}',
        BROKEN,
    ),
}


@pytest.mark.parametrize(("facts", "message_part"), METADATA.values(), ids=METADATA)
def test_metadata_that_is_wrong(facts: str, message_part: str, canary: Path):
    refused(
        write(canary.parent / "model.safetensors", micro_safetensors({"minisd": facts})),
        message_part,
    )


OTHERS_METADATA = {
    "not JSON": "{unet_heads: 8}",
    "empty": "",
    "a list": "[]",
    "a number": "8",
    "null": "null",
    "a number that Python does not read": '{"unet_heads": 1' + "0" * 10_000 + "}",
}


@pytest.mark.parametrize("text", OTHERS_METADATA.values(), ids=OTHERS_METADATA)
def test_metadata_of_another_program_under_the_same_key(text: str, canary: Path):
    """It is not minisd's, so it says nothing about heads and sizes: the file loads, with a note."""
    path = write(canary.parent / "model.safetensors", micro_safetensors({"minisd": text}))
    with pytest.warns(UserWarning, match="under the key 'minisd' is ignored: not minisd's"):
        assert minisd.load(path).native_size == 512


# ---- files that are cut short or altered ---------------------------------------------------------


def places(data: bytes, structure: list[int]) -> list[int]:
    """Where to cut: each byte at the start, around each boundary, and at 25 even places."""
    around = {place + d for place in structure for d in (-1, 0, 1)}
    return sorted(
        n
        for n in {*range(40), *around, *range(0, len(data), len(data) // 25), len(data) - 1}
        if n < len(data)
    )


def cut(kind: str) -> tuple[bytes, list[int]]:
    if kind == ".safetensors":
        data = micro_safetensors()
        (header,) = struct.unpack("<Q", data[:8])
        return data, places(data, [8, 8 + header // 2, 8 + header, 8 + header + 16384])
    if kind == "legacy":
        data = saved(micro(), legacy=True)
        ends = list(itertools.accumulate(map(len, legacy_parts(data)[:5])))
        return data, places(data, [*ends, ends[-1] + 8, ends[-1] + 100])
    data = saved({"state_dict": micro()})
    directory, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    second = data.index(b"PK\3\4", 4)
    return data, places(
        data,
        [30, 46, 64, second, second + 30, second + 64, directory, directory + 46, end, end + 10],
    )


@pytest.mark.parametrize("kind", [".safetensors", ".ckpt", "legacy"])
def test_cut_short_anywhere(kind: str, canary: Path):
    data, where = cut(kind)
    assert len(where) > 60
    for n in where:
        path = write(canary.parent / "model.ckpt", data[:n])
        refused(path, "cut short|empty|damaged|not a weights file|only zeros")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".safetensors", ".ckpt", "legacy"])
def test_bytes_changed_anywhere(kind: str, tmp_path: Path):
    """A file with a changed byte is read or refused; nothing else is ever raised."""
    data, _ = cut(kind)
    rng, outcomes = random.Random(kind), []
    header = 8 + struct.unpack("<Q", data[:8])[0] if kind == ".safetensors" else 45_000
    tail = len(data) - data.index(b"PK\1\2") if kind == ".ckpt" else 0
    path = write(tmp_path / "model.ckpt", data)
    with open(path, "r+b", buffering=0) as file:
        for _ in range(300):
            n = rng.choice(
                [
                    rng.randrange(header),
                    len(data) - 1 - rng.randrange(max(tail, 1)),
                    rng.randrange(100),
                ]
            )
            file.seek(n)
            file.write(
                bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF, data[n] ^ 1 << rng.randrange(8)])])
            )
            try:
                read_tensors(path)
                outcomes.append("read")
            except minisd.CheckpointError as error:
                assert str(error).isprintable()
                outcomes.append("refused")
            file.seek(n)
            file.write(data[n : n + 1])
    assert read_tensors(path) and outcomes.count("refused") > 50


# ---- files that are something else ---------------------------------------------------------------

OTHERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty: download it again"),
    "zeros": (bytes(100_000), "only zeros: the download was not finished"),
    "HTML": (
        b"<!DOCTYPE html><html><title>Sign in</title>",
        "a web page .*: download the file itself",
    ),
    "HTML without doctype": (b"\n <html lang=en>", "a web page"),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:fe4efff1\nsize 4265380512\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "this is a picture"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(100), "this is a picture"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "compressed archive: unpack it first"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "compressed archive: unpack it first"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(100), "GGUF file: minisd reads .ckpt and .safetensors"),
    "text": (b"Entry not found", "not a weights file"),
    "JSON": (b'{"error": "Access denied"}', "not a weights file"),
    "ELF": (b"\x7fELF" + bytes(100), "not a weights file"),
    "tar": (b"model/".ljust(257, b"\0") + b"ustar" + bytes(250), "not a weights file"),
    "a pickle of protocol 0": (pickle.dumps({"a": 1}, 0), "not a weights file"),
    "a pickle": (pickle.dumps({"a": 1}, 4), "not one that torch.save makes"),
    "one byte": (b"P", "not a weights file"),
    "0x80 alone": (b"\x80", "malformed or cut short"),
}


@pytest.mark.parametrize(("data", "message_part"), OTHERS.values(), ids=OTHERS)
def test_not_a_weights_file(data: bytes, message_part: str, canary: Path):
    refused(write(canary.parent / "model.ckpt", data), message_part)


def test_folders_and_the_like(tmp_path: Path, canary: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    refused(folder, "this folder has no unet/ and no vae/ and no text_encoder/: minisd reads a")
    (folder / "unet").mkdir()
    refused(folder, "this folder has no vae/ and no text_encoder/: minisd reads a file, or a")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        minisd.load(tmp_path / "nowhere.ckpt")
    if hasattr(os, "mkfifo"):  # opening one would wait for a writer
        os.mkfifo(tmp_path / "fifo")
        refused(tmp_path / "fifo", "is not a file")


UNET, VAE, TEXT = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.text_model.",
)


def starting(prefix: str, new: str = "") -> dict[str, torch.Tensor]:
    """The part of `micro` with this prefix, under another one."""
    return {
        new + key.removeprefix(prefix): value
        for key, value in micro().items()
        if key.startswith(prefix)
    }


def without(prefix: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in micro().items() if not key.startswith(prefix)}


def named(*names: str) -> dict[str, torch.Tensor]:
    return {each: torch.zeros(4, 4) for each in names}


COMPLETE = "minisd needs a whole SD 1.x checkpoint in one file"
CONV = UNET + "input_blocks.0.0.weight"
MODELS: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], str]] = {
    "SD 2": (
        lambda: {
            **without(TEXT),
            **named("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"),
        },
        "SD 2.x checkpoint: minisd is for SD 1.x",
    ),
    "SD 2 without its text encoder": (
        lambda: {
            **without(TEXT),
            UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(32, 1024),
        },
        "SD 2.x checkpoint: minisd is for SD 1.x",
    ),
    "SDXL": (
        lambda: {
            **without(TEXT),
            **named("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight"),
        },
        "SDXL checkpoint: minisd is for SD 1.x",
    ),
    "SD 3": (
        lambda: {
            **starting(VAE, VAE),
            **named(UNET + "joint_blocks.0.context_block.attn.qkv.weight"),
        },
        "SD 3 checkpoint: minisd is for SD 1.x",
    ),
    "Flux": (
        lambda: named("double_blocks.0.img_attn.qkv.weight", "img_in.weight"),
        "Flux model: minisd is for SD 1.x",
    ),
    "inpainting": (
        lambda: {**micro(), CONV: torch.zeros(32, 9, 3, 3)},
        "inpainting checkpoint .9 input channels",
    ),
    "pix2pix": (
        lambda: {**micro(), CONV: torch.zeros(32, 8, 3, 3)},
        "instruct-pix2pix checkpoint .8 input channels",
    ),
    "LoRA": (
        lambda: named(
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            "lora_te_text_model.alpha",
        ),
        f"a LoRA, not a model: {COMPLETE}",
    ),
    "LoRA by PEFT": (
        lambda: named("unet.down_blocks.0.attn1.to_q.lora_A.weight"),
        f"a LoRA, not a model: {COMPLETE}",
    ),
    "ControlNet": (
        lambda: named("control_model.input_blocks.0.0.weight"),
        f"a ControlNet, not a model: {COMPLETE}",
    ),
    "ControlNet without prefix": (
        lambda: named("zero_convs.0.0.weight", "input_blocks.0.0.weight"),
        "a ControlNet",
    ),
    "textual inversion": (
        lambda: named("emb_params"),
        "a textual inversion embedding, not a model",
    ),
    "autoencoder": (lambda: starting(VAE), f"an autoencoder alone: {COMPLETE}"),
    "autoencoder with its prefix": (
        lambda: starting(VAE, VAE),
        f"an autoencoder alone: {COMPLETE}",
    ),
    "UNet": (lambda: starting(UNET), f"a UNet alone: {COMPLETE}"),
    "UNet with its prefix": (lambda: starting(UNET, UNET), f"a UNet without its .*: {COMPLETE}"),
    "text encoder": (lambda: starting(TEXT, "text_model."), f"a text encoder alone: {COMPLETE}"),
    "no text encoder": (lambda: without(TEXT), f"a UNet without its text encoder: {COMPLETE}"),
    "no autoencoder": (lambda: without(VAE), f"a UNet without its autoencoder: {COMPLETE}"),
    "diffusers UNet": (
        lambda: named(
            "conv_in.weight",
            "time_embedding.linear_1.weight",
            "down_blocks.0.resnets.0.conv1.weight",
        ),
        f"a UNet in the diffusers layout: {COMPLETE}",
    ),
    "diffusers autoencoder": (
        lambda: named("encoder.down_blocks.0.resnets.0.conv1.weight"),
        "an autoencoder in the diffusers layout",
    ),
    "only the training average": (
        lambda: {**without(UNET), **named("model_ema.diffusion_modelinput_blocks00weight")},
        f"only training averages .model_ema.*: {COMPLETE}",
    ),
    "another model": (
        lambda: named("layer1.0.conv1.weight", "fc.weight"),
        "none of its tensors has a name of SD 1.x",
    ),
    "names of nothing": (lambda: named(""), "none of its tensors has a name of SD 1.x"),
    "one tensor too many": (
        lambda: {**micro(), **named("extra.weight")},
        "SD 1.x does not have: extra.weight",
    ),
    "one tensor too many in the UNet": (
        lambda: {**micro(), **named(UNET + "x.y")},
        f"unknown {UNET}x.y",
    ),
    "one tensor missing": (lambda: changed({FIRST: None}), f"missing {FIRST}"),
    "one tensor of another shape": (
        lambda: {**micro(), FIRST: torch.zeros(32, 128)},
        rf"wrong shape: {FIRST} is \(32, 128\), should be \(128, 32\)",
    ),
    "schedule of another length": (
        lambda: {**micro(), "betas": torch.zeros(999)},
        "wrong shape: betas is",
    ),
    "the same weight under two names": (
        lambda: {
            **micro(),
            "cond_stage_model.transformer.final_layer_norm.weight": torch.zeros(12),
        },
        "text_model.final_layer_norm.weight occurs twice, as cond_stage_model.* and as cond_",
    ),
    "parts of two models": (
        lambda: {
            **micro(),
            **{
                key: torch.zeros(32, 24)
                for key in micro()
                if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
            },
        },
        "its UNet reads 24 channels of text, its text encoder makes 12: they do not belong",
    ),
    "an MLP without neurons": (
        lambda: {
            **micro(),
            TEXT + "encoder.layers.0.mlp.fc1.weight": torch.zeros(0, 12),
            TEXT + "encoder.layers.0.mlp.fc1.bias": torch.zeros(0),
            TEXT + "encoder.layers.0.mlp.fc2.weight": torch.zeros(12, 0),
        },
        "mlp.fc1.* is empty",
    ),
    "integers": (
        lambda: {**micro(), FIRST: torch.zeros(128, 32, dtype=torch.int64)},
        f"{FIRST} is stored as I64",
    ),
    "NaN": (
        lambda: {**micro(), FIRST: torch.full((128, 32), torch.nan)},
        f"{FIRST} holds NaN or Inf as float32",
    ),
    "Inf": (
        lambda: {**micro(), TEXT + "final_layer_norm.bias": torch.tensor([torch.inf] * 12)},
        f"{TEXT}final_layer_norm.bias holds NaN or Inf",
    ),
    "one NaN": (
        lambda: {
            **micro(),
            FIRST: torch.where(torch.arange(4096).view(128, 32) == 4095, torch.nan, 0.0),
        },
        f"{FIRST} holds NaN or Inf",
    ),
    "a hundred blocks of a hundred layers": (
        lambda: {
            **micro(),
            **{
                UNET + f"input_blocks.{i}.{j}.transformer_blocks.0.x": torch.zeros(1)
                for i in range(99)
                for j in range(99)
            },
        },
        "missing model.diffusion_model.input_blocks.2.0.* more|opcodes",
    ),
    "twenty blocks of four layers": (
        lambda: {
            **micro(),
            **{
                UNET + f"{side}put_blocks.{i}.{j}.transformer_blocks.0.x": torch.zeros(1)
                for side in ("in", "out")
                for i in range(2, 20)
                for j in range(4)
            },
        },
        "missing model.diffusion_model.input_blocks.2.0.* more|opcodes",
    ),
    "19,000 names": (
        lambda: {**micro(), **{UNET + f"{i}": torch.zeros(1) for i in range(18_500)}},
        "unknown model.diffusion_model.0; .* and 18,492 more|opcodes",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(("make", "message_part"), MODELS.values(), ids=MODELS)
def test_another_model(
    make: Callable[[], dict[str, torch.Tensor]], message_part: str, form: str, canary: Path
):
    data = (
        hostile_files.safetensors_bytes(make())
        if form == ".safetensors"
        else saved({"state_dict": make()})
    )
    refused(write(canary.parent / f"model{form}", data), message_part)


def test_textual_inversion_as_it_is_shared(canary: Path):
    values = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.zeros(1, 768)},
        "name": "cat",
        "step": 9,
    }
    refused(
        write(canary.parent / "cat.pt", saved(values)), "a textual inversion embedding, not a model"
    )


def test_8_bit_weights(canary: Path):
    values = {**micro(), FIRST: torch.zeros(128, 32).to(torch.float8_e4m3fn)}
    reads = "minisd reads float32, float16, bfloat16 and float64"
    path = write(canary.parent / "model.ckpt", saved(values))
    refused(path, f"{FIRST} is of type float8_e4m3fn: {reads}")
    file = micro_safetensors(**{FIRST: values[FIRST]})
    refused(write(canary.parent / "a.safetensors", file), f"{FIRST} is stored as F8_E4M3: {reads}")


def test_a_number_too_large_for_float16(canary: Path):
    """The file is not wrong: the message says what to do."""
    path = write(
        canary.parent / "model.safetensors",
        micro_safetensors(**{FIRST: torch.full((128, 32), 1e5)}),
    )
    minisd.load(path)
    wrong = f"{FIRST} holds NaN or Inf as float16: load it as bfloat16 or float32"
    with pytest.raises(minisd.CheckpointError, match=wrong):
        minisd.load(path, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_numbers_and_infinite_ones(dtype: torch.dtype, canary: Path):
    """Numbers whose sum overflows are accepted; Infs of both signs are not."""
    large = torch.full((128, 32), 0.9 * torch.finfo(dtype).max).to(dtype)
    file = micro_safetensors(**{FIRST: large.float()})
    sd = minisd.load(write(canary.parent / "large.safetensors", file), dtype=dtype)
    assert not sd.unet.state_dict()[FIRST.removeprefix(UNET)].sum().isfinite()
    infinite = torch.zeros(128, 32)
    infinite[3, 0], infinite[100, 7] = torch.inf, -torch.inf
    path = write(canary.parent / "model.safetensors", micro_safetensors(**{FIRST: infinite}))
    with pytest.raises(minisd.CheckpointError, match=f"{FIRST} holds NaN or Inf as "):
        minisd.load(path, dtype=dtype)


def test_a_path_with_a_line_break(tmp_path: Path):
    path = write(tmp_path / "a\nb.ckpt", b"")
    with pytest.raises(minisd.CheckpointError) as error:
        minisd.load(path)
    assert str(error.value).isprintable()


# ---- memory --------------------------------------------------------------------------------------

# A file may cost at most this much address space besides its size: for Python's objects from
# 250,000 opcodes, or from 4 MB of JSON.
SLACK = 150 << 20
BOMBS: dict[str, Callable[[], bytes]] = {
    **{
        f"pickle: {each}": lambda make=make: pickled_zip(make())
        for each, (make, _) in PICKLES.items()
    },
    **{f"zip: {each}": make for each, (make, _) in ZIPS.items()},
    **{f"header: {each}": make for each, (make, _) in HEADERS.items()},
    **{
        f"legacy: {each}": lambda part=part, change=change: b"".join(
            change(old) if i == part else old
            for i, old in enumerate(legacy_parts(saved(micro(), legacy=True)))
        )
        for each, (part, change, _) in LEGACY.items()
    },
}
CHILD = """
import resource, sys, minisd
from pathlib import Path
try:
    minisd.load("/dev/null")  # to import everything
except minisd.CheckpointError:
    pass
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]),) * 2)
for path in sorted(Path(sys.argv[2]).iterdir()):
    try:
        minisd.load(path)
        print("loaded", path)
    except minisd.CheckpointError as error:
        if "Memory" in str(error):
            print(error)
print("done")
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="asks Linux for the size of the process"
)
@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_memory(stride: int, tmp_path: Path):
    """The files again, in a process that has only the memory that reading a file needs.

    In the quick run this reads one file in 16.
    """
    for i, make in enumerate([*BOMBS.values()][::stride]):
        write(tmp_path / f"{i:03}", make())
    limit = SLACK + max(path.stat().st_size for path in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(limit), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n", done.stdout + done.stderr
