"""Read the data in a pickle without running anything in it.

A pickle is a program for a small stack machine. Python's own machine imports and calls whatever the
program names. The machine here cannot: a global stays a name, and a call stays a record of what
would have been called. It knows only the opcodes that checkpoints contain, and refuses all others.
The standard library's pickletools decodes the opcodes.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

MAX_OPCODES = 250_000  # SD 1.x with training averages and the optimizer's state has about 160,000
MAX_GLOBALS = 1000  # SD 1.x has about ten


class PickleError(ValueError):
    """The pickle is refused, damaged or cut short; the message says which."""


class Global(NamedTuple):
    """A name that the pickle asks to import."""

    module: str
    name: str


class Call(NamedTuple):
    """A call that the pickle asks to make."""

    function: Any
    args: Any


class PersistentId(NamedTuple):
    """A reference to something outside of the pickle. In torch's files it is a storage."""

    value: Any


def read_pickle(stream: BinaryIO, persistent: list[PersistentId] | None = None) -> Any:
    """The pickle at the stream's position, as plain containers, Global, Call and PersistentId.

    Leaves the stream right after the pickle, and appends each PersistentId to `persistent`. The
    containers may share parts, so code that walks through all of them may never end. Raises
    PickleError.
    """
    machine = Machine([] if persistent is None else persistent)
    try:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise PickleError(f"its pickle has more than {MAX_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                return machine.stack.pop()
            if opcode.name not in OPCODES:
                name = opcode.name
                raise PickleError(f"its pickle has the opcode {name}, which no checkpoint contains")
            OPCODES[opcode.name](machine, arg)
    except PickleError:
        raise
    except (ValueError, LookupError, TypeError, struct.error, RecursionError, MemoryError) as error:
        raise PickleError("its pickle is malformed or cut short") from error
    raise PickleError("its pickle is malformed or cut short")


# ---- the machine ---------------------------------------------------------------------------------


class Machine:
    def __init__(self, persistent: list[PersistentId]):
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.n_globals = 0
        self.persistent = persistent

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_last(self, n: int) -> list[Any]:
        """The top n values, the top one last."""
        return [self.stack.pop() for _ in range(n)][::-1]

    def memoize(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    def extend(self, values: list[Any]) -> None:
        """Append to the list on top of the stack. A recorded call in its place stays as it is."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        """Put keys and values, in turn, into the dict on top of the stack.

        Keys that are not strings (a callback's class) are left out: checkpoints do not need them.
        """
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update((key, value) for key, value in pairs if isinstance(key, str))

    def name_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError
        if is_dangerous(module, name):
            request = f"it asks to run {module}.{name}"[:200]
            raise PickleError(f"{request} (minisd did not run any of it)")
        self.n_globals += 1
        if self.n_globals > MAX_GLOBALS:
            raise PickleError(f"its pickle names more than {MAX_GLOBALS:,} classes")
        self.push(Global(module, name))

    def record_call(self, function: Any, args: Any) -> None:
        """A dict of a kind that state dicts have starts empty: SETITEMS fills it."""
        self.push({} if function in MAPPINGS else Call(function, args))

    def discard_state(self) -> None:
        """BUILD gives an object its state; there are no objects here."""
        self.pop()
        self.stack[-1]  # an empty stack is an error

    def record_reference(self) -> None:
        self.push(PersistentId(self.pop()))
        self.persistent.append(self.stack[-1])


MAPPINGS = (Global("collections", "OrderedDict"), Global("collections", "defaultdict"))

LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)

OPCODES: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": lambda machine, arg: None,
    "FRAME": lambda machine, arg: None,
    # values
    **dict.fromkeys(LITERALS, Machine.push),
    "NONE": lambda machine, arg: machine.push(None),
    "NEWTRUE": lambda machine, arg: machine.push(True),
    "NEWFALSE": lambda machine, arg: machine.push(False),
    "EMPTY_DICT": lambda machine, arg: machine.push({}),
    "EMPTY_LIST": lambda machine, arg: machine.push([]),
    "EMPTY_SET": lambda machine, arg: machine.push([]),
    "EMPTY_TUPLE": lambda machine, arg: machine.push(()),
    "POP": lambda machine, arg: machine.pop(),
    # containers
    "MARK": lambda machine, arg: machine.marks.append(len(machine.stack)),
    "TUPLE1": lambda machine, arg: machine.push(tuple(machine.pop_last(1))),
    "TUPLE2": lambda machine, arg: machine.push(tuple(machine.pop_last(2))),
    "TUPLE3": lambda machine, arg: machine.push(tuple(machine.pop_last(3))),
    "TUPLE": lambda machine, arg: machine.push(tuple(machine.pop_to_mark())),
    "FROZENSET": lambda machine, arg: machine.push(machine.pop_to_mark()),
    "APPEND": lambda machine, arg: machine.extend(machine.pop_last(1)),
    "APPENDS": lambda machine, arg: machine.extend(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, arg: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, arg: machine.update(machine.pop_last(2)),
    "SETITEMS": lambda machine, arg: machine.update(machine.pop_to_mark()),
    # the memo, by which a value can occur more than once
    "BINPUT": lambda machine, arg: machine.memoize(arg),
    "LONG_BINPUT": lambda machine, arg: machine.memoize(arg),
    "MEMOIZE": lambda machine, arg: machine.memoize(len(machine.memo)),
    "BINGET": lambda machine, arg: machine.push(machine.memo[arg]),
    "LONG_BINGET": lambda machine, arg: machine.push(machine.memo[arg]),
    # what Python's machine would import or call
    "GLOBAL": lambda machine, arg: machine.name_global(*arg.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, arg: machine.name_global(*machine.pop_last(2)),
    "REDUCE": lambda machine, arg: machine.record_call(*machine.pop_last(2)),
    "NEWOBJ": lambda machine, arg: machine.record_call(*machine.pop_last(2)),
    "BUILD": lambda machine, arg: machine.discard_state(),
    "BINPERSID": lambda machine, arg: machine.record_reference(),
}


# ---- names that only an attack needs -------------------------------------------------------------

# A global is never imported, so these could do no harm. But a file that names one is an attack, and
# its owner should know.
HARMLESS_BUILTINS = set(
    """set frozenset dict list tuple int float complex bool str bytes bytearray object slice
    range long unicode xrange type Ellipsis NotImplemented property staticmethod
    classmethod""".split()  # noqa: SIM905
)  # long, unicode and xrange: protocol 2 has Python 2's names
# Names in modules that are dangerous otherwise.
HARMLESS = set(
    """types.SimpleNamespace types.GenericAlias types.MappingProxyType types.NoneType
    functools.partial operator.itemgetter torch.serialization._get_layout
    torch.cuda.amp.grad_scaler.GradScaler inspect._empty io.BytesIO _io.BytesIO io.StringIO
    _io.StringIO""".split()  # noqa: SIM905
)
DANGEROUS = set(
    """os posix nt sys subprocess runpy shutil socket importlib ctypes pty webbrowser pip code
    codeop timeit pdb bdb multiprocessing operator functools pickle _pickle marshal types inspect
    http urllib requests ftplib smtplib asyncio threading _thread signal platform tempfile io _io
    builtins __builtin__ cProfile profile trace doctest pydoc pkgutil site venv ensurepip idlelib
    distutils setuptools numpy.testing numpy.f2py numpy.load numpy.fromfile numpy.memmap numpy.lib
    numpy.ctypeslib numpy.distutils torch.hub torch.jit torch.package torch.load
    torch.serialization torch.storage._load_from_bytes torch.utils torch.distributed torch.fx
    torch.ops torch.classes torch._dynamo torch._inductor torch.cuda""".split()  # noqa: SIM905
)


def is_dangerous(module: str, name: str) -> bool:
    if module in ("builtins", "__builtin__"):
        return name not in HARMLESS_BUILTINS
    if f"{module}.{name}" in HARMLESS:
        return False
    path = f"{module}.{name}".split(".")
    if any(".".join(path[:n]) in DANGEROUS for n in range(1, min(len(path), 8) + 1)):
        return True
    # A module's own imports can be named too, as in `collections _sys.modules`.
    return any(part.lstrip("_") in DANGEROUS for part in name.split("."))
