"""What tensors a weights file holds, and where: .safetensors, .ckpt (torch's zip), and torch's
format before that.

Only names, shapes and places are read here, the numbers stay on disk; nothing in a file is ever
run. A file that is something else, broken or made to do harm is a TensorFileError, one line that
says what it is.
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

from minisd.files.kinds import what_instead
from minisd.files.pickles import Call, Global, PersistentId, PickleError, read_pickle

MAX_HEADER = 4 << 20  # bytes of a header, pickle or directory; SD 1.x has about 200 kB
MAX_TENSORS = 20_000  # SD 1.x with training averages has 1,831; its optimizer thrice that
MAX_DIMENSIONS = 8  # SD 1.x has 4
READS = "minisd reads float32, float16 and bfloat16"
BROKEN = "damaged or cut short: download it again"

ITEMSIZE = dict(F64=8, F32=4, F16=2, BF16=2, I64=8, I32=4, I16=2, I8=1, U8=1, BOOL=1)  # bytes
STORAGES = {
    Global("torch", f"{name}Storage"): dtype
    for name, dtype in [
        ("Double", "F64"),
        ("Float", "F32"),
        ("Half", "F16"),
        ("BFloat16", "BF16"),
        ("Long", "I64"),
        ("Int", "I32"),
        ("Short", "I16"),
        ("Char", "I8"),
        ("Byte", "U8"),
        ("Bool", "BOOL"),
    ]
}


class TensorFileError(ValueError):
    """The file cannot be used; the message says what it is, in one line."""

    def __init__(self, message: str):  # it may quote the file: no line breaks, no terminal codes
        super().__init__("".join(c if c.isprintable() else "?" for c in message))


class Tensor(NamedTuple):
    """A tensor that is still on disk: `start` is the byte at which its first element lies."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes from its first to its last element; for a contiguous tensor, its size."""
        if 0 in self.shape:
            return 0
        steps = sum((n - 1) * stride for n, stride in zip(self.shape, self.stride))
        return ITEMSIZE[self.dtype] * (1 + steps)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a file by name, and its metadata (.safetensors only).

    Raises TensorFileError, OSError.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a file"
        what = "a diffusers folder" if (path / "model_index.json").exists() else what
        raise TensorFileError(f"{path} is {what}: minisd reads one file, .ckpt or .safetensors")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(512)
            file.seek(0)
            if head[:4] == b"PK\3\4":
                return read_zip(file, size), {}
            if head[8:9] == b"{":  # asked first: one in 32 of these starts as a pickle does
                return read_safetensors(path, file, size)
            if head[:1] == b"\x80":
                return read_legacy(file, size), {}
            raise TensorFileError(what_instead(head))
    except (TensorFileError, PickleError) as error:
        raise TensorFileError(f"{path}: {str(error)[:500]}") from None
    except (struct.error, zipfile.BadZipFile) as error:
        raise TensorFileError(f"{path}: {BROKEN} ({error})") from None
    except (ValueError, LookupError, TypeError, OverflowError, MemoryError, RuntimeError) as error:
        raise TensorFileError(f"{path}: {BROKEN} ({type(error).__name__})") from None


# ---- .safetensors --------------------------------------------------------------------------------


def read_safetensors(
    path: Path, file: BinaryIO, size: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise TensorFileError(f"cut short: its header has {length:,} bytes, the file {size:,}")
    if length > MAX_HEADER:
        raise TensorFileError(f"its header has {length:,} bytes, more than any model needs")
    try:
        with safe_open(path, framework="numpy"):  # the reference reader checks all of the header
            pass
    except (SafetensorError, OSError) as error:
        raise TensorFileError(f"{BROKEN} ({error})") from None
    header = json.loads(file.read(length), object_pairs_hook=no_duplicates)
    metadata = header.pop("__metadata__", None) or {}
    if len(header) > MAX_TENSORS:
        raise TensorFileError(f"it names {len(header):,} tensors, more than any model has")
    tensors = {}
    for name, entry in header.items():
        short, dtype, shape = name[:100], entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if dtype not in ITEMSIZE:
            raise TensorFileError(f"{short} is of type {dtype}: {READS}")
        if len(shape) > MAX_DIMENSIONS:
            raise TensorFileError(f"{short} has {len(shape):,} dimensions, more than any weight")
        tensor = Tensor(dtype, shape, contiguous(shape), 8 + length + begin)
        if tensor.nbytes != end - begin or tensor.start + tensor.nbytes > size:
            raise TensorFileError(f"{short} lies outside of the file")
        tensors[name] = tensor
    return tensors, metadata


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise TensorFileError("its header has the same name twice")
    return found


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


# ---- torch.save ----------------------------------------------------------------------------------


class Storage(NamedTuple):
    start: int  # byte in the file
    nbytes: int


def read_zip(file: BinaryIO, size: int) -> dict[str, Tensor]:
    """torch's format since 1.6: a zip of X/data.pkl and storages X/data/KEY, not compressed."""
    file.seek(max(0, size - 98))
    tail = file.read(98)  # the end record is 22 bytes, if no comment follows
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise TensorFileError("cut short, or something is appended: it does not end as a zip does")
    directory = int.from_bytes(tail[-10:-6], "little")
    if tail[-42:-38] == b"PK\6\7":  # above 4 GB there is another in 64 bits, which zipfile prefers
        if tail[-98:-94] != b"PK\6\6":
            raise TensorFileError("its archive disagrees with itself about its end")
        directory = int.from_bytes(tail[-58:-50], "little")
    if directory > MAX_HEADER:
        raise TensorFileError(f"its directory has {directory:,} bytes, more than any model needs")

    found: dict[str, Storage] = {}
    with zipfile.ZipFile(file) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    if len(members) > MAX_TENSORS:
        raise TensorFileError(f"its archive has {len(members):,} files, more than any model has")
    if members and members[0].header_offset != 0:
        raise TensorFileError("something else is in front of its archive")
    last = 0
    for member in members:
        name, start, nbytes = member.filename, member.header_offset, member.file_size
        short = name[:100]
        if name in found:
            raise TensorFileError(f"its archive has two files named {short}")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise TensorFileError(f"its archive has a file outside of itself, {short!r}")
        if member.compress_type != zipfile.ZIP_STORED or nbytes != member.compress_size:
            raise TensorFileError("its archive is compressed, which torch never does")
        if member.flag_bits & 1:
            raise TensorFileError("its archive is encrypted")
        if start < last or start > size:
            raise TensorFileError(f"its archive's {short} overlaps another file or the end")
        file.seek(start)
        local = struct.unpack("<4s5H3L2H", file.read(30))
        signature, _, flags, method, *_, compressed, uncompressed, n_name, n_extra = local
        if signature != b"PK\3\4" or file.read(n_name) != member.orig_filename.encode():
            raise TensorFileError(f"its archive disagrees with itself about {short}")
        if flags & 1 or method or not {compressed, uncompressed} <= {nbytes, 0xFFFFFFFF, 0}:
            raise TensorFileError(f"its archive disagrees with itself about {short}")
        start += 30 + n_name + n_extra
        last = start + nbytes
        if last > size:
            raise TensorFileError(f"its archive's {short} overlaps another file or the end")
        found[name] = Storage(start, nbytes)

    pickles = [name for name in found if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise TensorFileError("a zip archive, but not one that torch.save makes")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in found:
        raise TensorFileError("this is a TorchScript program, not a checkpoint")
    if found[pickles[0]].nbytes > MAX_HEADER:
        nbytes = found[pickles[0]].nbytes
        raise TensorFileError(f"its pickle has {nbytes:,} bytes, more than any model needs")

    def content(name: str) -> bytes:
        file.seek(found[name].start)
        return file.read(min(found[name].nbytes, MAX_HEADER))

    if folder + "byteorder" in found and content(folder + "byteorder") != b"little":
        raise TensorFileError("it was written on a big-endian machine")
    data = folder + "data/"
    storages = {name.removeprefix(data): at for name, at in found.items() if name.startswith(data)}
    return state_dict(read_pickle(io.BytesIO(content(pickles[0]))), storages, size)


def read_legacy(file: BinaryIO, size: int) -> dict[str, Tensor]:
    """torch's format before 1.6: the pickles of a magic number, the version, the machine, the data
    and the storages' keys; then each storage, its length before it."""
    head = io.BytesIO(file.read(MAX_HEADER))
    if read_pickle(head) != 0x1950A86A20F9469CFC6C:
        raise TensorFileError("a pickle, but not one that torch.save makes")
    used: list[PersistentId] = []  # tells the storages' types: a storage itself has only a length
    _version, machine, data, keys = (read_pickle(head, used) for _ in range(4))
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise TensorFileError("it was written on a big-endian machine")
    itemsize = {}
    for reference in used:
        match reference:
            case PersistentId(("storage", Global() as kind, str(key), *_)) if kind in STORAGES:
                itemsize[key] = ITEMSIZE[STORAGES[kind]]
    storages, start = {}, head.tell()
    for key in keys:
        file.seek(start)
        length = int.from_bytes(file.read(8), "little")
        if key in storages or key not in itemsize:
            raise TensorFileError("its list of storages does not fit its tensors")
        storages[key] = Storage(start + 8, length * itemsize[key])
        start += 8 + storages[key].nbytes
        if start > size:
            raise TensorFileError(f"cut short: a storage should end at byte {start:,} of {size:,}")
    return state_dict(data, storages, size)


def state_dict(data: Any, storages: dict[str, Storage], size: int) -> dict[str, Tensor]:
    """The named tensors in a checkpoint's data, under `state_dict` (Lightning's way) or bare."""
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    if not isinstance(data, dict):
        raise TensorFileError("a torch file, but not a checkpoint: it holds no tensors by name")
    if "string_to_param" in data:
        raise TensorFileError("this is a textual inversion embedding, not a model")
    tensors = {name: rebuild(name, value, storages) for name, value in data.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor}
    if not tensors:
        raise TensorFileError("a torch file, but not a checkpoint: it holds no tensors by name")
    total = sum(math.prod(tensor.shape) * ITEMSIZE[tensor.dtype] for tensor in tensors.values())
    if len(tensors) > MAX_TENSORS or total > size:
        raise TensorFileError("its tensors are larger than the file: several share one storage")
    return tensors


def rebuild(name: str, value: Any, storages: dict[str, Storage]) -> Tensor | None:
    """What torch._utils._rebuild_tensor_v2 would make, still on disk; None if it is no tensor."""
    short = name[:100]
    match value:
        case Call(Global("torch._utils", "_rebuild_parameter"), (inside, *_)):
            value = inside
    match value:
        case Call(
            Global("torch._utils", "_rebuild_tensor_v2"),
            (PersistentId(("storage", kind, str(key), _, numel, *view)), offset, size, stride, *_),
        ) if isinstance(kind, Global) and kind in STORAGES and key in storages:
            if view not in ([], [None]):
                raise TensorFileError(f"{short} is a view in a form that minisd does not know")
            if not (type(size) is type(stride) is tuple and len(size) == len(stride)):
                raise TensorFileError(f"{short} has an impossible shape")
            numbers = (numel, offset, *size, *stride)
            if len(size) > MAX_DIMENSIONS or any(type(n) is not int for n in numbers):
                raise TensorFileError(f"{short} has an impossible shape")
            if not all(0 <= n < 1 << 48 for n in numbers):
                raise TensorFileError(f"{short} has an impossible shape or place")
            dtype, (start, nbytes) = STORAGES[kind], storages[key]
            if numel * ITEMSIZE[dtype] != nbytes:
                raise TensorFileError(f"{short} should have {numel:,} items, not {nbytes:,} bytes")
            offset *= ITEMSIZE[dtype]
            tensor = Tensor(dtype, size, stride, start + offset)
            if offset + tensor.nbytes > nbytes or math.prod(size) > numel:
                raise TensorFileError(f"{short} reaches beyond its storage")
            return tensor
        case Call(Global("torch._utils", _), _):
            raise TensorFileError(f"{short} is no plain tensor, or its numbers are gone: {READS}")
    return None
