"""Pickles of log-likelihoods, read without running anything.

A pickle is a program for a small machine that can call any function of any module. The machine here has no functions: a
name in a pickle stays a word. The few words that NumPy writes to bring back arrays and numbers are told by their
spelling, and are done here, within the bytes of the file. Everything else ends the reading.
"""

import mmap
import pickletools
import re
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from klray.errors import KlrayError
from klray.store.fields import shown

MOST_BYTES = 2**32  # of a file
MOST_STEPS = 2**24  # of the machine: 10,000,000 numbers as a list; each takes 100 bytes of memory at most
MOST_DIMS = 2
CURE = "save the values as NPZ, JSON or Parquet, or a dictionary of arrays"

_NUMBERS = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1)")
_MODULES = r"numpy\.(?:_core|core)\."
_WORDS = {  # what NumPy and Python write for arrays, numbers and bytes
    "reconstruct": re.compile(_MODULES + r"multiarray _reconstruct"),
    "frombuffer": re.compile(_MODULES + r"numeric _frombuffer"),
    "scalar": re.compile(_MODULES + r"multiarray scalar"),
    "ndarray": re.compile(r"numpy ndarray"),
    "dtype": re.compile(r"numpy dtype"),
    "encode": re.compile(r"_codecs encode"),
    "bytes": re.compile(r"(__builtin__|builtins) bytes"),  # without an argument: none
}


class Array:
    """An array of a pickle; ``values`` is None until its state was read."""

    values: np.ndarray | None = None


class _Type:
    """A NumPy number type of a pickle: its letter and size, and its byte order once that was read."""

    def __init__(self, name: str):
        self.name, self.order = name, "|"


class _Word(str):
    """One of ``_WORDS``."""


class _Mark:
    """The beginning of some values on the stack."""


def read_pickle(path: Path) -> Any:
    """What the pickle in a file holds: dict, list, tuple, str, numbers, None, bytes, and `Array`.

    Keys of dictionaries are strings or whole numbers. Raises KlrayError: it holds anything else, is none, or is larger
    than what klray reads.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise KlrayError(f"{path.name} has {size:,} bytes, and klray reads pickles of up to {MOST_BYTES:,}; {CURE}")
    machine = _Machine(path.name)
    if not size:
        raise machine.refused("is empty")
    # Mapped: what claims to be longer than the file costs nothing.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        try:
            operations = pickletools.genops(cast(IO[bytes], stream))  # it gives bytes and lines, as files do
            for number, (operation, argument, _) in enumerate(operations):
                if number >= MOST_STEPS:
                    raise machine.refused(f"has more than {MOST_STEPS:,} steps")
                machine.step(operation.name, argument)
        except (ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            if isinstance(error, KlrayError):
                raise
            raise machine.refused(f"is no pickle that can be read ({shown(str(error))})") from error
    return machine.stack[0]


class _Machine:
    """The stack and the memo of a pickle, without a way out of them."""

    def __init__(self, name: str):
        self.name = name
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def refused(self, what: str) -> KlrayError:
        return KlrayError(f"{self.name} {what}: klray runs nothing of a pickle; {CURE}")

    def step(self, name: str, argument: Any) -> None:
        """Do one operation."""
        stack = self.stack
        if name in _PUSHED:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _PASSED:
            pass
        elif name == "STOP":
            if len(stack) != 1:
                raise ValueError("values are left on its stack")
        elif name == "MARK":
            stack.append(_Mark)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("POP", "DUP"):
            top = stack.pop()
            stack += [top, top] if name == "DUP" else []
        elif name == "POP_MARK":
            self._since_mark()
        elif name in ("TUPLE", "LIST", "DICT"):
            found = self._since_mark()
            stack.append(tuple(found) if name == "TUPLE" else found if name == "LIST" else self._fill({}, found))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
        elif name in ("APPEND", "APPENDS"):
            found = [stack.pop()] if name == "APPEND" else self._since_mark()
            self._top(list).extend(found)
        elif name in ("SETITEM", "SETITEMS"):
            found = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._since_mark()
            self._fill(self._top(dict), found)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._word(str(argument) if name == "GLOBAL" else " ".join(map(str, [stack.pop(), stack.pop()][::-1])))
        elif name == "REDUCE":
            arguments, word = stack.pop(), stack.pop()
            stack.append(self._made(word, arguments))
        elif name == "BUILD":
            state = stack.pop()
            self._build(stack[-1], state)
        else:
            raise self.refused(f"makes what no array needs ({name})")

    def _since_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _Mark:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise ValueError("a mark is missing")

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise self.refused(f"adds to a {type(self.stack[-1]).__name__} as to a {kind.__name__}")
        return self.stack[-1]

    def _fill(self, into: dict[Any, Any], pairs: list[Any]) -> dict[Any, Any]:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in (str, int):  # the hash of a tuple in a tuple, a million deep, would end the process
                raise self.refused(f"has a {type(key).__name__} as a key")
            into[key] = value
        return into

    def _word(self, spelled: str) -> None:
        kind = next((kind for kind, pattern in _WORDS.items() if pattern.fullmatch(spelled)), "")
        if not kind:
            raise self.refused(f"calls {shown(spelled.replace(' ', '.'))}")
        self.stack.append(_Word(kind))

    def _made(self, word: Any, arguments: Any) -> Any:
        """What a word would give, called with these arguments."""
        given = arguments if type(arguments) is tuple else ()
        kind = str(word) if type(word) is _Word else ""
        if kind == "reconstruct" and len(given) == 3 and type(given[0]) is _Word and given[0] == "ndarray":
            return Array()
        if kind == "dtype" and given and type(given[0]) is str and _NUMBERS.fullmatch(given[0]):
            return _Type(given[0].lstrip("<>|="))
        if kind == "encode" and len(given) == 2 and type(given[0]) is str and given[1] in ("latin1", "latin-1"):
            return given[0].encode("latin-1")
        if kind == "bytes" and arguments == ():
            return b""
        if kind == "frombuffer" and len(given) == 4:
            data, dtype, shape, order = given
            return self._array(data, dtype, shape, order == "F")
        if kind == "scalar" and len(given) == 2:
            values = self._array(given[1], given[0], (), False).values
            assert values is not None
            return values.item()
        raise self.refused(f"calls what is no array of numbers ({kind or type(word).__name__})")

    def _build(self, made: Any, state: Any) -> None:
        """Give what was made its state."""
        if type(made) is _Type and type(state) is tuple and len(state) >= 2 and state[1] in ("<", ">", "|", "="):
            made.order = state[1]
        elif type(made) is Array and type(state) is tuple and len(state) == 5 and made.values is None:
            _, shape, dtype, fortran, data = state
            made.values = self._array(data, dtype, shape, bool(fortran)).values
        else:
            raise self.refused(f"changes a {type(made).__name__}")

    def _array(self, data: Any, dtype: Any, shape: Any, fortran: bool) -> Array:
        """The array of these bytes."""
        data = data.encode("latin-1") if type(data) is str else data  # as Python 2 wrote them
        if type(dtype) is not _Type or type(data) not in (bytes, bytearray):
            raise self.refused("has an array of what are no numbers")
        if type(shape) is not tuple or len(shape) > MOST_DIMS or not all(type(n) is int and n >= 0 for n in shape):
            raise self.refused("has an array of more than two dimensions")
        kind = np.dtype(dtype.order + dtype.name)
        needed = kind.itemsize
        for n in shape:
            needed *= n
        if needed != len(data):
            raise self.refused(f"has an array that claims {needed:,} bytes, and {len(data):,} are there")
        made = Array()
        made.values = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
        return made


_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_PASSED = {"PROTO", "FRAME"}
