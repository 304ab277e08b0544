"""What tensors a weights file holds, and where in the file they are.

It reads three formats: .safetensors, .ckpt (torch's zip archive), and torch's format before 1.6.
Only names, shapes and places are read here. The numbers stay on disk, and nothing in the file is
ever run. A file that is damaged, of another kind, or made to do harm raises CheckpointError.
"""

import io
import json
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from safetensors import SafetensorError, safe_open

from minisd.checkpoint.kinds import kind_of_file
from minisd.checkpoint.pickles import Call, Global, PersistentId, PickleError, read_pickle

MAX_HEADER = 4 << 20  # bytes of a header, pickle or directory; SD 1.x has about 200 kB
MAX_TENSORS = 20_000  # SD 1.x has 1,831 with training averages, and 3 times that with its optimizer
MAX_DIMENSIONS = 8  # SD 1.x has 4
MAX_LEVELS = 4  # dicts in dicts around the tensors; usually none, or `state_dict`
MAX_TEXT = 1000  # characters of a plain value beside the weights
READABLE = "minisd reads float32, float16, bfloat16 and float64"
DAMAGED = "damaged or cut short: download it again"

ITEMSIZE = dict(F64=8, F32=4, F16=2, BF16=2, I64=8, I32=4, I16=2, I8=1, U8=1, BOOL=1)  # bytes
ITEMSIZE |= dict(C64=8, U64=8, U32=4, U16=2, F8_E4M3=1, F8_E5M2=1, F8_E8M0=1)  # never weights here
STORAGE_DTYPES = {
    Global("torch", "DoubleStorage"): "F64",
    Global("torch", "FloatStorage"): "F32",
    Global("torch", "HalfStorage"): "F16",
    Global("torch", "BFloat16Storage"): "BF16",
    Global("torch", "LongStorage"): "I64",
    Global("torch", "IntStorage"): "I32",
    Global("torch", "ShortStorage"): "I16",
    Global("torch", "CharStorage"): "I8",
    Global("torch", "ByteStorage"): "U8",
    Global("torch", "BoolStorage"): "BOOL",
}


class CheckpointError(ValueError):
    """The file cannot be used as an SD 1.x model. The message says in one line what the file is
    instead, or which of its tensors are wrong."""

    def __init__(self, message: str):  # it may quote the file: no line breaks, no terminal codes
        super().__init__("".join(c if c.isprintable() else "?" for c in message))


class StoredTensor(NamedTuple):
    """A tensor on disk."""

    dtype: str  # a key of ITEMSIZE
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # in items
    start: int  # the byte in the file at which its first item begins

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last item. For a contiguous tensor this is its size."""
        if 0 in self.shape:
            return 0
        last = sum((n - 1) * stride for n, stride in zip(self.shape, self.stride, strict=True))
        return ITEMSIZE[self.dtype] * (1 + last)


def read_tensors(path: str | Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors in a file by name, and its metadata: for a .ckpt, the texts and numbers beside
    the weights, as text. Raises CheckpointError, OSError."""
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file"
        if (path / "model_index.json").exists():
            kind = "a diffusers folder"
        raise CheckpointError(f"{path} is {kind}: minisd reads one file, .ckpt or .safetensors")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(512)
            file.seek(0)
            if head[:4] == b"PK\3\4":
                return read_zip(file, size)
            # This test comes before the next: one safetensors file in 32 begins as a pickle does.
            if head[8:9] == b"{":
                return read_safetensors(path, file, size)
            if head[:1] == b"\x80":
                return read_legacy(file, size)
            raise CheckpointError(kind_of_file(head))
    except (CheckpointError, PickleError) as error:
        raise CheckpointError(f"{path}: {str(error)[:500]}") from None
    except (struct.error, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: {DAMAGED} ({error})") from None
    except (ValueError, LookupError, TypeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {DAMAGED} ({type(error).__name__})") from None


# ---- .safetensors --------------------------------------------------------------------------------


def read_safetensors(
    path: Path, file: BinaryIO, size: int
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise CheckpointError(f"cut short: its header has {length:,} bytes, the file {size:,}")
    if length > MAX_HEADER:
        raise CheckpointError(f"its header has {length:,} bytes, more than any model needs")
    encoded = file.read(length)
    try:
        with safe_open(path, framework="numpy"):  # the reference reader checks the whole header
            pass
    except (SafetensorError, OSError) as error:
        if "not fully covered" in str(error):
            entries = json.loads(encoded).values()
            ends = [entry["data_offsets"][1] for entry in entries if "data_offsets" in entry]
            behind = size - 8 - length - max(ends, default=0)
            if behind > 0:
                tail = f"{behind:,} bytes follow its last tensor"
                raise CheckpointError(f"{tail}: it is two files in one, or padded") from None
        raise CheckpointError(f"{DAMAGED} ({error})") from None
    header = json.loads(encoded, object_pairs_hook=no_duplicates)
    metadata = header.pop("__metadata__", None) or {}
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"it names {len(header):,} tensors, more than any model has")
    tensors = {}
    for name, entry in header.items():
        short, dtype, shape = name[:100], entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if dtype not in ITEMSIZE:
            raise CheckpointError(f"{short} is of type {dtype}: {READABLE}")
        if len(shape) > MAX_DIMENSIONS:
            raise CheckpointError(f"{short} has {len(shape):,} dimensions, more than any weight")
        tensor = StoredTensor(dtype, shape, contiguous_stride(shape), 8 + length + begin)
        if tensor.nbytes != end - begin or tensor.start + tensor.nbytes > size:
            raise CheckpointError(f"{short} lies outside of the file")
        tensors[name] = tensor
    return tensors, metadata


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise CheckpointError("its header has the same name twice")
    return entries


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


# ---- torch.save: a zip archive, since torch 1.6 --------------------------------------------------


class Storage(NamedTuple):
    """A stretch of the file that holds numbers; tensors lie in storages."""

    start: int  # byte in the file
    nbytes: int


def read_zip(file: BinaryIO, size: int) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The files in the archive are X/data.pkl and the storages X/data/KEY, not compressed."""
    check_end_record(file, size)
    members = read_members(file, size)
    pickles = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise CheckpointError("a zip archive, but not one that torch.save makes")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in members:
        raise CheckpointError("this is a TorchScript program, not a checkpoint")
    nbytes = members[pickles[0]].nbytes
    if nbytes > MAX_HEADER:
        raise CheckpointError(f"its pickle has {nbytes:,} bytes, more than any model needs")

    def content(name: str) -> bytes:
        file.seek(members[name].start)
        return file.read(min(members[name].nbytes, MAX_HEADER))

    if folder + "byteorder" in members and content(folder + "byteorder") != b"little":
        raise CheckpointError("it was written on a big-endian machine")
    data = folder + "data/"
    storages = {
        name.removeprefix(data): storage
        for name, storage in members.items()
        if name.startswith(data)
    }
    return state_dict(read_pickle(io.BytesIO(content(pickles[0]))), storages, size)


def check_end_record(file: BinaryIO, size: int) -> None:
    """Refuse an archive whose end is not as torch writes it, or whose directory is too long."""
    file.seek(max(0, size - 98))
    tail = file.read(98)  # the end record is the last 22 bytes, because torch writes no comment
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise CheckpointError("cut short, or something is appended: it does not end as a zip does")
    length = int.from_bytes(tail[-10:-6], "little")
    # Above 4 GB there is another record with 64 bits, which zipfile prefers.
    if tail[-42:-38] == b"PK\6\7":
        if tail[-98:-94] != b"PK\6\6":
            raise CheckpointError("its archive contradicts itself about where it ends")
        length = int.from_bytes(tail[-58:-50], "little")
    if length > MAX_HEADER:
        raise CheckpointError(f"its directory has {length:,} bytes, more than any model needs")


def read_members(file: BinaryIO, size: int) -> dict[str, Storage]:
    """Where each file in the archive lies. They must be plain, and must not overlap."""
    with zipfile.ZipFile(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if len(infos) > MAX_TENSORS:
        raise CheckpointError(f"its archive has {len(infos):,} files, more than any model has")
    if infos and infos[0].header_offset != 0:
        raise CheckpointError("something else is in front of its archive")
    members: dict[str, Storage] = {}
    end = 0  # of the file before
    for info in infos:
        name, short = info.filename, info.filename[:100]
        if name in members:
            raise CheckpointError(f"its archive has two files named {short}")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise CheckpointError(f"its archive has a file outside of itself, {short!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError("its archive is compressed, which torch never does")
        if info.flag_bits & 1:
            raise CheckpointError("its archive is encrypted")
        if not end <= info.header_offset <= size:
            raise CheckpointError(f"its archive's {short} overlaps another file or the end")
        members[name] = Storage(start_of_data(file, info), info.file_size)
        end = members[name].start + info.file_size
        if end > size:
            raise CheckpointError(f"its archive's {short} overlaps another file or the end")
    return members


def start_of_data(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """The byte after the local header, which must agree with the directory's entry."""
    file.seek(info.header_offset)
    local = struct.unpack("<4s5H3L2H", file.read(30))
    signature, _, flags, method, *_, compressed, uncompressed, n_name, n_extra = local
    if not any(signature):  # part of the file was never written
        raise CheckpointError(f"{DAMAGED} (zeros in place of {info.filename[:100]})")
    sizes = {info.file_size, 0xFFFFFFFF, 0}  # it may be in 64 bits, or behind the data
    if (
        signature != b"PK\3\4"
        or file.read(n_name) != info.orig_filename.encode()
        or flags & 1
        or method
        or not {compressed, uncompressed} <= sizes
    ):
        raise CheckpointError(f"its archive contradicts itself about {info.filename[:100]}")
    return info.header_offset + 30 + n_name + n_extra


# ---- torch.save before torch 1.6 -----------------------------------------------------------------


def read_legacy(file: BinaryIO, size: int) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Five pickles (a magic number, the version, the machine, the data, the storages' keys), then
    the storages, each with its length before it."""
    head = io.BytesIO(file.read(MAX_HEADER))
    if read_pickle(head) != 0x1950A86A20F9469CFC6C:
        raise CheckpointError("a pickle, but not one that torch.save makes")
    references: list[
        PersistentId
    ] = []  # they name the storages' types; a storage has only a length
    _version, machine, data, keys = (read_pickle(head, references) for _ in range(4))
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise CheckpointError("it was written on a big-endian machine")
    itemsize = {}
    for reference in references:
        match reference:
            case PersistentId(("storage", Global() as kind, str(key), *_)):
                if kind in STORAGE_DTYPES:
                    itemsize[key] = ITEMSIZE[STORAGE_DTYPES[kind]]
    storages, start = {}, head.tell()
    for key in keys:
        file.seek(start)
        length = int.from_bytes(file.read(8), "little")
        if key in storages or key not in itemsize:
            raise CheckpointError("its list of storages does not fit its tensors")
        storages[key] = Storage(start + 8, length * itemsize[key])
        start += 8 + storages[key].nbytes
        if start > size:
            raise CheckpointError(f"cut short: a storage should end at byte {start:,} of {size:,}")
    return state_dict(data, storages, size)


# ---- both of torch's formats ---------------------------------------------------------------------


def state_dict(
    data: Any, storages: dict[str, Storage], size: int
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The named tensors in a checkpoint's data, and the texts and numbers beside them.

    The tensors are bare, or under `state_dict` as Lightning saves them, or under other levels.
    """
    metadata: dict[str, str] = {}
    for _ in range(MAX_LEVELS):
        if not isinstance(data, dict):
            break
        for key, value in data.items():
            if isinstance(value, str | float) or (type(value) is int and abs(value) < 1 << 63):
                metadata[key] = str(value)[:MAX_TEXT]
        if "string_to_param" in data:  # a textual inversion; its vectors are not needed here
            return {"string_to_param": StoredTensor("F32", (0,), (1,), 0)}, metadata
        level = level_with_weights(data)
        if level is None:
            break
        data = level
    named = data if isinstance(data, dict) else {}
    values = {name: stored_tensor(name, value, storages) for name, value in named.items()}
    tensors = {name: tensor for name, tensor in values.items() if tensor}
    if not tensors:
        raise CheckpointError("a torch file, but not a checkpoint: it holds no tensors by name")
    total = sum(math.prod(tensor.shape) * ITEMSIZE[tensor.dtype] for tensor in tensors.values())
    if len(tensors) > MAX_TENSORS or total > size:
        raise CheckpointError("its tensors are larger than the file: several share one storage")
    return tensors, metadata


def level_with_weights(data: dict[str, Any]) -> dict[str, Any] | None:
    """The dict in this one that holds the weights; None if this one holds them itself.

    `state_dict` is always meant. Others count if the tensors are nowhere else.
    """
    inner = {key: value for key, value in data.items() if isinstance(value, dict) and value}
    if "state_dict" in inner:
        return inner["state_dict"]
    if any(is_tensor(value) for value in data.values()):
        return None
    distinct = {id(value): value for value in inner.values()}  # all keys may share one dict
    holders = {key for key, value in distinct.items() if any(map(is_tensor, value.values()))}
    for key in ("model", "module", "model_state_dict"):
        if key in inner and (id(inner[key]) in holders or not holders):
            return inner[key]
    if len(holders) > 1:
        keys = ", ".join(key[:100] for key, value in inner.items() if id(value) in holders)
        raise CheckpointError(f"its tensors are in several groups, not in one: {keys[:300]}")
    return distinct[holders.pop()] if holders else None


def is_tensor(value: Any) -> bool:
    return isinstance(value, Call) and getattr(value.function, "module", "") == "torch._utils"


def stored_tensor(name: str, value: Any, storages: dict[str, Storage]) -> StoredTensor | None:
    """What torch._utils._rebuild_tensor_v2 would make of its arguments, left on disk.

    None for values that are not tensors.
    """
    short = name[:100]
    match value:
        case Call(Global("torch._utils", "_rebuild_parameter"), (parameter, *_)):
            value = parameter
    match value:
        case Call(
            Global("torch._utils", "_rebuild_tensor_v2"),
            (
                PersistentId(("storage", kind, str(key), _, numel, *view)),
                offset,
                shape,
                stride,
                *_,
            ),
        ) if isinstance(kind, Global) and kind in STORAGE_DTYPES and key in storages:
            if view not in ([], [None]):
                raise CheckpointError(f"{short} is a view in a form that minisd does not know")
            if not (type(shape) is type(stride) is tuple and len(shape) == len(stride)):
                raise CheckpointError(f"{short} has an impossible shape")
            numbers = (numel, offset, *shape, *stride)
            if len(shape) > MAX_DIMENSIONS or any(type(n) is not int for n in numbers):
                raise CheckpointError(f"{short} has an impossible shape")
            if not all(0 <= n < 1 << 48 for n in numbers):
                raise CheckpointError(f"{short} has an impossible shape or place")
            dtype, (start, nbytes) = STORAGE_DTYPES[kind], storages[key]
            if numel * ITEMSIZE[dtype] != nbytes:
                wrong = f"should have {numel:,} items, but its storage has {nbytes:,} bytes"
                raise CheckpointError(f"{short} {wrong}")
            offset *= ITEMSIZE[dtype]
            tensor = StoredTensor(dtype, shape, stride, start + offset)
            if offset + tensor.nbytes > nbytes or math.prod(shape) > numel:
                raise CheckpointError(f"{short} reaches beyond its storage")
            return tensor
        case Call(Global("torch._utils", "_rebuild_tensor_v3"), (*_, Global("torch", kind))):
            raise CheckpointError(f"{short} is of type {kind[:100]}: {READABLE}")
        case Call(Global("torch._utils", _), _):
            wrong = "is not a plain tensor, or its storage is missing"
            raise CheckpointError(f"{short} {wrong}: {READABLE}")
    return None
