"""Builders for weight files that were made to do harm, and for the small valid ones they hide in.

None is kept as a file: each is put together from a few opcodes or headers when a test asks for it.
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

from minisd.checkpoint import PREFIXES
from minisd.text_encoder import TextEncoder
from minisd.unet import Row, Table, UNet
from minisd.vae import VAE

from .conftest import seeded

FACTS: dict[str, str] = {}
FIRED: list[str] = []  # the canary: a payload that gets its way leaves something here
MARKER = "@@@ the payload goes here @@@"


class Trap:
    """What a file could name from the reader's own process. None of this may ever be called."""

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
    """The smallest model, about, that minisd loads (4 MB): SD 1.x's names, few layers."""
    rows = (
        (Row("conv", 4, 32), Row("res attn", 32, 32)),
        (Row("res attn", 64, 32), Row("res", 64, 32)),
    )
    with torch.device("meta"):
        models = {
            "unet": UNet(Table(rows[0], Row("res attn res", 32, 32), rows[1], 12), heads=8),
            "vae": VAE(32, (32, 32), 1),
            "text_encoder": TextEncoder(12, 1, 16, heads=12),
        }
    named = [
        (PREFIXES[part] + name, t.shape)
        for part, m in models.items()
        for name, t in m.state_dict().items()
    ]
    return {name: seeded(name, tuple(shape)) for name, shape in named}


FIRST = (
    "model.diffusion_model.time_embed.0.weight"  # the first tensor in `micro`: float32, (128, 32)
)


def micro_safetensors(facts: dict[str, str] | None = None, **changes: torch.Tensor | None) -> bytes:
    return safetensors_bytes(changed(changes), metadata=FACTS if facts is None else facts)


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """`micro` with other values for some names; None takes the name out."""
    return {name: value for name, value in {**micro(), **changes}.items() if value is not None}


# ---- pickles -------------------------------------------------------------------------------------


class Raw(bytes):
    """Opcodes, to be put in as they are."""


def ops(value: Any) -> bytes:
    """The opcodes that push a plain value. They leave the memo alone, to fit into any pickle."""
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
    """GLOBAL: the last dot divides module and name."""
    module, _, last = dotted.rpartition(".")
    return Raw(f"c{module}\n{last}\n".encode())


def call(function: str | Raw, *args: Any) -> Raw:
    """REDUCE: the function of that name, called with these."""
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


def whole(*opcodes: bytes | Any) -> bytes:
    """A pickle of one value."""
    return b"\x80\x02" + b"".join(o if isinstance(o, bytes) else ops(o) for o in opcodes) + b"."


# ---- torch.save ----------------------------------------------------------------------------------


class Member:
    """A file in a zip archive, whose headers can be made to say anything."""

    def __init__(self, name: str, data: bytes, **lies: Any):
        self.name, self.data, self.lies = name, data, lies

    def header(self, where: str, offset: int) -> bytes:
        """The local or the central header, as `where` says; most of the two is the same."""

        def says(field: str, truth: Any) -> Any:
            return self.lies.get(f"{where}_{field}", self.lies.get(field, truth))

        file_name = says("name", self.name).encode()
        extra = says("extra", b"")
        common = struct.pack(
            "<HHHHHLLLHH",
            *(20, says("flags", 0x800), says("method", 0), 0, 0, zipfile.crc32(self.data)),
            *(
                says("compressed", len(self.data)),
                says("size", len(self.data)),
                len(file_name),
                len(extra),
            ),
        )
        if where == "local":
            return b"PK\3\4" + common + file_name + extra
        rest = struct.pack("<HHHLL", 0, 0, 0, 0, says("offset", offset))
        return b"PK\1\2" + struct.pack("<H", 20) + common + rest + file_name + extra


def archive(members: Iterable[Member], **lies: int) -> bytes:
    """A zip of these; `lies` are what its end says of the directory: count, size, offset."""
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
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        return {each: found.read(each) for each in found.namelist()}


def rezipped(files: dict[str, bytes], **lies: dict[str, Any]) -> bytes:
    return archive(
        Member(each, data, **lies.get(each.rpartition("/")[2], {})) for each, data in files.items()
    )


@functools.cache
def template(where: str) -> dict[str, bytes]:
    """A valid checkpoint's members, with a marker where a payload can go in."""
    values: dict[str, Any] = {
        "callbacks": {"callbacks": MARKER, "state_dict": micro()},
        "key": {"callbacks": {MARKER: 0}, "state_dict": micro()},
        "state_dict": {"state_dict": {"extra": MARKER, **micro()}},
        "state_dict key": {"state_dict": {MARKER: 0, **micro()}},
        "weight": {
            "spare": micro()[FIRST],
            "state_dict": {**micro(), FIRST: MARKER},
        },  # its storage is "0"
    }
    return members(saved(values[where]))


def spliced(payload: bytes, where: str = "callbacks") -> bytes:
    """A valid checkpoint but for the payload."""
    if (
        where == "hooks"
    ):  # of the first tensor: OrderedDict() is `)R`, to which one more item is added
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
    """A torch archive of nothing but this pickle."""
    return rezipped({"archive/data.pkl": data, "archive/version": b"3\n", **more})


def legacy_parts(data: bytes) -> list[bytes]:
    """The five pickles of a legacy file, and the storages behind them."""
    stream, parts = io.BytesIO(data), []
    for _ in range(5):
        start = stream.tell()
        skip = pickle._Unpickler(
            stream
        )  # the slow one, whose methods can be replaced: it has to read, not to run
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
