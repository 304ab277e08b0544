"""Read the data in a pickle and run nothing of it.

A pickle is a program for a small stack machine, and Python's own machine will import and call
whatever the program names. This one has no way to: a global stays a name, a call stays a note of
what would have been called. Opcodes that torch.save never writes are refused. The opcodes
themselves are decoded by the standard library's pickletools.
"""

import pickletools
import struct
from typing import Any, BinaryIO, NamedTuple

MAX_OPCODES = 250_000  # SD 1.x with training averages and the optimizer's state has about 160,000
MAX_GLOBALS = 1000  # it has about ten


class PickleError(ValueError):
    """Not a plain, whole pickle; the message says why."""


class Global(NamedTuple):
    """A name that the pickle wanted imported."""

    module: str
    name: str


class Call(NamedTuple):
    """A call that the pickle wanted made."""

    function: Any
    args: Any


class PersistentId(NamedTuple):
    """A reference to something stored beside the pickle: in torch's files, a storage."""

    value: Any


# Modules that reach outside, which no checkpoint has business with. They'd stay a note like any
# other global, but a file that names one is an attack, and its owner should hear that.
HARMLESS_BUILTINS = set(
    """set frozenset dict list tuple int float complex bool str bytes bytearray object slice
    range""".split()  # noqa: SIM905
)
REACHING_OUT = set(
    """os posix nt sys subprocess runpy shutil socket importlib ctypes pty webbrowser pip code
    codeop timeit pdb bdb multiprocessing operator functools pickle _pickle marshal types inspect
    http urllib requests ftplib smtplib asyncio threading _thread signal platform tempfile io _io
    builtins __builtin__ cProfile profile trace doctest pydoc pkgutil site venv ensurepip idlelib
    distutils setuptools numpy.testing numpy.f2py numpy.load numpy.fromfile numpy.memmap numpy.lib
    numpy.ctypeslib numpy.distutils torch.hub torch.jit torch.package torch.load
    torch.serialization torch.storage._load_from_bytes torch.utils torch.distributed torch.fx
    torch.ops torch.classes torch._dynamo torch._inductor torch.cuda""".split()  # noqa: SIM905
)


def reaches_out(found: Global) -> bool:
    if found.module in ("builtins", "__builtin__"):
        return found.name not in HARMLESS_BUILTINS
    path = f"{found.module}.{found.name}".split(".")
    if any(".".join(path[:n]) in REACHING_OUT for n in range(1, min(len(path), 8) + 1)):
        return True
    # A module's own imports can be named too, as in `collections _sys.modules`.
    return any(part.lstrip("_") in REACHING_OUT for part in found.name.split("."))


def read_pickle(stream: BinaryIO, persistent: list[PersistentId] | None = None) -> Any:
    """The pickle at the stream's position, as plain containers, Global, Call and PersistentId.

    Leaves the stream right behind the pickle, and adds each PersistentId to `persistent`. The
    containers may share parts, so that a walk through them can take forever. Raises PickleError
    for what is not a plain, whole pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    n_globals = 0

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def call(function: Any, args: Any) -> Any:
        if function == Global("collections", "OrderedDict"):
            return {}
        return Call(function, args)

    def store(target: Any, pairs: list[Any]) -> None:
        # Keys that are not strings (a callback's class) are nothing a checkpoint needs.
        pairs = zip(pairs[::2], pairs[1::2], strict=True)
        if isinstance(target, dict):
            target.update((key, value) for key, value in pairs if isinstance(key, str))

    try:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            op = opcode.name
            if count > MAX_OPCODES:
                raise PickleError(f"its pickle has more than {MAX_OPCODES:,} opcodes")
            if op in ("PROTO", "FRAME"):
                pass
            elif op == "STOP":
                return stack.pop()
            elif op == "NONE":
                stack.append(None)
            elif op in ("NEWTRUE", "NEWFALSE"):
                stack.append(op == "NEWTRUE")
            elif op in LITERALS:
                stack.append(arg)
            elif op == "MARK":
                marks.append(len(stack))
            elif op in EMPTY:
                stack.append(EMPTY[op]())
            elif op == "TUPLE":
                stack.append(tuple(since_mark()))
            elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
                n = int(op[-1])
                if len(stack) < n:
                    raise IndexError
                stack[-n:] = [tuple(stack[-n:])]
            elif op == "FROZENSET":
                stack.append(since_mark())
            elif op in ("APPEND", "APPENDS", "ADDITEMS"):
                items = [stack.pop()] if op == "APPEND" else since_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            elif op in ("SETITEM", "SETITEMS"):
                pairs = [stack.pop(-2), stack.pop()] if op == "SETITEM" else since_mark()
                store(stack[-1], pairs)
            elif op in ("BINPUT", "LONG_BINPUT"):
                memo[arg] = stack[-1]
            elif op == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif op in ("BINGET", "LONG_BINGET"):
                stack.append(memo[arg])
            elif op in ("GLOBAL", "STACK_GLOBAL"):
                module, name = arg.split(" ", 1) if op == "GLOBAL" else (stack.pop(-2), stack.pop())
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise TypeError
                stack.append(found := Global(module, name))
                if reaches_out(found):
                    asks = f"it asks to run {found.module}.{found.name}"[:200]
                    raise PickleError(f"{asks} (nothing of it was run)")
                n_globals += 1
                if n_globals > MAX_GLOBALS:
                    raise PickleError(f"its pickle names more than {MAX_GLOBALS:,} classes")
            elif op in ("REDUCE", "NEWOBJ"):
                args = stack.pop()
                stack.append(call(stack.pop(), args))
            elif op == "BUILD":
                stack.pop()  # the state that would have been given to an object
                stack[-1]
            elif op == "BINPERSID":
                stack.append(PersistentId(stack.pop()))
                if persistent is not None:
                    persistent.append(stack[-1])
            elif op == "POP":
                stack.pop()
            else:
                raise PickleError(f"its pickle has the opcode {op}, which checkpoints do without")
    except PickleError:
        raise
    except (ValueError, LookupError, TypeError, struct.error, RecursionError, MemoryError) as error:
        raise PickleError("its pickle is malformed or cut short") from error
    raise PickleError("its pickle is malformed or cut short")


LITERALS = set(
    """BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8""".split()  # noqa: SIM905
)
EMPTY: dict[str, Any] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
