"""Builders of weights files that are made to do harm, and of the small valid ones that hide them.

None is kept as a file: a test builds the one it needs from a few opcodes or headers.
"""

import functools
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from minisd.checkpoint.seeded import named_shapes, seeded_tensors
from minisd.text_encoder import TextEncoder
from minisd.unet import Row, Table, UNet
from minisd.vae import VAE

FIRED: list[str] = []  # the canary: a payload that runs appends to this list
MARKER = "@@@ the payload goes here @@@"


class Trap:
    """A class that a file can name. None of its methods may ever be called."""

    def __init__(self, *args: Any) -> None:
        FIRED.append("__init__")

    def __setstate__(self, state: Any) -> None:
        FIRED.append("__setstate__")

    def __reduce__(self) -> tuple[Any, ...]:
        return Trap, ("from a pickle",)


def fire(*args: Any) -> None:
    FIRED.append("fire")


@functools.cache
def micro() -> dict[str, torch.Tensor]:
    """About the smallest model that minisd loads (4 MB): SD 1.x's names, few layers."""
    table = Table(
        (Row("conv", 4, 32), Row("res attn", 32, 32)),
        Row("res attn res", 32, 32),
        (Row("res attn", 64, 32), Row("res", 64, 32)),
        c_context=12,
    )
    with torch.device("meta"):
        models = UNet(table), VAE(32, (32, 32), blocks=1), TextEncoder(12, layers=1, hidden=16)
    return seeded_tensors(named_shapes(*models))


# The first tensor of `micro`: float32, (128, 32).
FIRST = "model.diffusion_model.time_embed.0.weight"


def micro_safetensors(facts: dict[str, str] | None = None, **changes: torch.Tensor | None) -> bytes:
    return safetensors_bytes(changed(changes), metadata=facts or {})


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """`micro` with other values for some names. None removes the name."""
    return {name: value for name, value in {**micro(), **changes}.items() if value is not None}


# ---- pickles -------------------------------------------------------------------------------------


class Raw(bytes):
    """Opcodes, which `ops` passes on as they are."""


def ops(value: Any) -> bytes:
    """The opcodes that push a plain value. They do not use the memo, so they fit any pickle."""
    if isinstance(value, Raw):
        return bytes(value)
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        n = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([n]) + value.to_bytes(n, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(ops, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(ops, value)) + b"e"
    assert isinstance(value, dict)
    return b"}(" + b"".join(ops(key) + ops(item) for key, item in value.items()) + b"u"


def name(dotted: str) -> Raw:
    """GLOBAL: the last dot separates module and name."""
    module, _, last = dotted.rpartition(".")
    return Raw(f"c{module}\n{last}\n".encode())


def call(function: str | Raw, *args: Any) -> Raw:
    """REDUCE: a call of the function of that name with these arguments."""
    return Raw((function if isinstance(function, Raw) else name(function)) + ops(args) + b"R")


def stack_global(module: Any, last: Any) -> Raw:
    return Raw(ops(module) + ops(last) + b"\x93")


def storage(key: Any = "0", numel: Any = 4096, kind: Any = None, *more: Any) -> Raw:
    """A persistent id, which is how torch's pickles refer to the numbers."""
    return Raw(
        ops(("storage", kind or name("torch.FloatStorage"), key, "cpu", numel, *more)) + b"Q"
    )


def tensor(
    where: Any, offset: Any = 0, size: Any = (128, 32), stride: Any = (32, 1), hooks: Any = None
) -> Raw:
    hooks = call("collections.OrderedDict") if hooks is None else hooks
    return call("torch._utils._rebuild_tensor_v2", where, offset, size, stride, False, hooks)


def pickle_of(*opcodes: bytes | Any) -> bytes:
    """A complete pickle of one value."""
    return b"\x80\x02" + b"".join(o if isinstance(o, bytes) else ops(o) for o in opcodes) + b"."


# ---- torch.save ----------------------------------------------------------------------------------


class Member:
    """A file in a zip archive. `lies` are header fields with other values than the true ones."""

    def __init__(self, name: str, data: bytes, **lies: Any):
        self.name, self.data, self.lies = name, data, lies

    def header(self, which: str, offset: int) -> bytes:
        """The local or the central header. Most of their fields are the same."""

        def value(field: str, truth: Any) -> Any:
            return self.lies.get(f"{which}_{field}", self.lies.get(field, truth))

        file_name, extra = value("name", self.name).encode(), value("extra", b"")
        compressed, size = value("compressed", len(self.data)), value("size", len(self.data))
        flags, method = value("flags", 0x800), value("method", 0)
        sums = (zipfile.crc32(self.data), compressed, size)
        lengths = (len(file_name), len(extra))
        common = struct.pack("<HHHHHLLLHH", 20, flags, method, 0, 0, *sums, *lengths)
        if which == "local":
            return b"PK\3\4" + common + file_name + extra
        rest = struct.pack("<HHHLL", 0, 0, 0, 0, value("offset", offset))
        return b"PK\1\2" + struct.pack("<H", 20) + common + rest + file_name + extra


def archive(members: Iterable[Member], **lies: int) -> bytes:
    """A zip of these. `lies` are values in its end record: count, size, offset of the directory."""
    body, directory, n = io.BytesIO(), io.BytesIO(), 0
    for n, member in enumerate(members, 1):  # noqa: B007
        offset = body.tell()
        body.write(member.header("local", offset) + member.data)
        directory.write(member.header("central", offset))
    count, size = lies.get("count", min(n, 0xFFFF)), lies.get("size", directory.tell())
    end = struct.pack("<HHHHLLH", 0, 0, count, count, size, lies.get("offset", body.tell()), 0)
    return body.getvalue() + directory.getvalue() + b"PK\5\6" + end


def saved(value: Any, *, legacy: bool = False, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return buffer.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezipped(files: dict[str, bytes], **lies: dict[str, Any]) -> bytes:
    return archive(
        Member(path, data, **lies.get(path.rpartition("/")[2], {})) for path, data in files.items()
    )


@functools.cache
def template(where: str) -> dict[str, bytes]:
    """The members of a valid checkpoint that contains a marker, to be replaced by a payload."""
    values: dict[str, Any] = {
        "callbacks": {"callbacks": MARKER, "state_dict": micro()},
        "key": {"callbacks": {MARKER: 0}, "state_dict": micro()},
        "state_dict": {"state_dict": {"extra": MARKER, **micro()}},
        "state_dict key": {"state_dict": {MARKER: 0, **micro()}},
        # The spare tensor's storage is "0".
        "weight": {"spare": micro()[FIRST], "state_dict": {**micro(), FIRST: MARKER}},
    }
    return members(saved(values[where]))


def spliced(payload: bytes, where: str = "callbacks") -> bytes:
    """A checkpoint that is valid except for the payload."""
    if where == "hooks":  # the first tensor's hooks, `)R`: an OrderedDict() that gets an item
        files = dict(template("callbacks"))
        old, new = b")R", b")RK\0" + payload + b"s"
    else:
        files, old, new = dict(template(where)), ops(MARKER), payload
    pickled = files["archive/data.pkl"]
    assert old in pickled
    return rezipped(
        {**files, "archive/data.pkl": pickled.replace(old, new, 1).replace(ops(MARKER), b"N")}
    )


def pickled_zip(data: bytes, **more: bytes) -> bytes:
    """A torch archive that contains only this pickle."""
    return rezipped({"archive/data.pkl": data, "archive/version": b"3\n", **more})


def legacy_parts(data: bytes) -> list[bytes]:
    """The five pickles of a legacy file, then its storages."""
    stream, parts = io.BytesIO(data), []
    for _ in range(5):
        start = stream.tell()
        # The unpickler in Python: its methods can be replaced, so that nothing runs.
        skip = pickle._Unpickler(stream)
        skip.find_class = lambda *_: lambda *_, **__: {}
        skip.persistent_load = lambda _: None
        skip.load()
        parts.append(data[start : stream.tell()])
    return [*parts, data[stream.tell() :]]


# ---- .safetensors --------------------------------------------------------------------------------


def safetensors_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str = "F32", shape: Any = (4,), begin: Any = 0, end: Any = 16) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
