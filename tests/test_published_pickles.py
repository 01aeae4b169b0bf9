"""Pickles of strangers: arrays and numbers come out as they went in, and nothing in any of them runs."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klray.errors import KlrayError
from klray.store.adopted import pickles
from klray.store.adopted.pickles import Array, read_pickle
from tests.examples import examples

OLD = b"cnumpy.core.multiarray\n"
NEW = b"cnumpy._core.multiarray\n"


def plain(value: Any) -> Any:
    if isinstance(value, Array):
        return value.values
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def read(body: bytes, folder: Path) -> Any:
    path = folder / "file.pkl"
    path.write_bytes(body)
    return read_pickle(path)


ARRAYS = [
    np.arange(6.0),
    np.arange(6, dtype="<f4"),
    np.arange(6, dtype=">f8"),
    np.arange(6, dtype=np.float16),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6.0).reshape(2, 3).T,
    np.array(3.5),
    np.array([], dtype=np.int64),
    np.array([True, False]),
    np.arange(20.0)[::3],
]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_numbers_come_back(protocol: int, tmp_path: Path) -> None:
    shared = np.arange(3.0)
    whole = {"a": ARRAYS, "b": [1, -(2**40), 2**70, 0.5, None, True, "ä", np.float64(2.5), np.int32(7)], 3: (1, "x")}
    whole["c"] = [shared, shared, {}, [], ()]
    found = plain(read(pickle.dumps(whole, protocol), tmp_path))
    for before, after in zip(ARRAYS, found["a"], strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
    assert found["b"] == whole["b"] and found[3] == (1, "x")
    np.testing.assert_array_equal(found["c"][1], shared)


def as_of_numpy_1(body: bytes) -> bytes:
    """The module's name as NumPy wrote it before version 2."""
    name = b"numpy._core.multiarray"
    assert name in body
    short = struct.pack("<B", len(name)) + name
    old = b"numpy.core.multiarray"
    return body.replace(b"\x8c" + short, b"\x8c" + struct.pack("<B", len(old)) + old).replace(b"c" + name, b"c" + old)


@pytest.mark.parametrize("protocol", [2, 3])
def test_pickles_of_an_older_numpy_come_back(protocol: int, tmp_path: Path) -> None:
    """The published file was written by NumPy 1."""
    body = as_of_numpy_1(pickle.dumps({"a/b": np.arange(4.0), "c": np.float64(1)}, protocol))
    np.testing.assert_array_equal(plain(read(body, tmp_path))["a/b"], np.arange(4.0))


class Runs:
    """Runs a command when it is unpickled, by what its kind says."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def global_of(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words)) + words.encode()


MARK = "mark-of-what-ran"
TOUCH = f"touch {MARK}"
EVAL = f"open({MARK!r}, 'w').close()"
DEFINE = f"__import__('pathlib').Path({MARK!r}).touch()"
OBJECTS = global_of("numpy.core.multiarray", "_reconstruct") + global_of("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
NUMBER_TYPE = global_of("numpy", "dtype") + text("f8") + b"\x89\x88\x87R"
OBJECT_TYPE = global_of("numpy", "dtype") + text("O8") + b"\x89\x88\x87R"
TRICKS = {
    # what is called
    "reduce-os-system": pickle.dumps(Runs(os.system, TOUCH)),
    "reduce-eval": pickle.dumps(Runs(eval, EVAL)),
    "reduce-exec-in-a-list": pickle.dumps({"a": [np.arange(2.0), Runs(exec, EVAL)]}),
    "reduce-subprocess": pickle.dumps(Runs(subprocess.check_call, ["touch", MARK])),
    "stack-global": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(TOUCH) + b"\x85R.",
    "stack-global-dotted": b"\x80\x04" + text("numpy") + text("core.os.system") + b"\x93" + text(TOUCH) + b"\x85R.",
    "global-of-numpy": global_of("numpy.testing._private.utils", "runstring") + text(EVAL) + b"}\x86R.",
    "numpy-load-of-a-pickle": global_of("numpy", "load") + text("other.npy") + b"\x85R.",
    "numpy-f2py-eval": global_of("numpy.f2py.capi_maps", "load_f2cmap_file") + text("x") + b"\x85R.",
    "inst": b"(" + text(TOUCH) + b"ios\nsystem\n.",
    "obj": b"(" + global_of("os", "system") + text(TOUCH) + b"o.",
    "newobj": b"\x80\x02" + global_of("os", "system") + text(TOUCH) + b"\x85\x81.",
    "newobj-ex": b"\x80\x04" + global_of("os", "system") + text(TOUCH) + b"\x85}\x92.",
    "getattr-chain": global_of("builtins", "getattr") + global_of("os", "path") + text("os") + b"\x86R.",
    # what is done to what is there
    "build-changes-a-class": global_of("numpy", "ndarray") + b"}" + text("__reduce__") + b"Nsb.",
    "build-of-a-dictionary": b"}}b.",
    "build-twice": OBJECTS + (b"(K\x01K\x00\x85" + NUMBER_TYPE + b"\x89C\x00tb") * 2 + b".",
    "extension-registry": b"\x80\x02\x82\x01.",
    "persistent-id": b"Ppickle\n.",
    "persistent-id-binary": text("pickle") + b"Q.",
    "out-of-band-buffer": b"\x80\x05\x97.",
    # arrays that are none
    "scalar-of-objects": OLD + b"scalar\n" + OBJECT_TYPE + pickle.dumps(Runs(os.system, TOUCH))[:40] + b"\x86R.",
    "array-of-objects": pickle.dumps(np.array([Runs(os.system, TOUCH)], dtype=object)),
    "array-of-records": pickle.dumps(np.zeros(2, dtype=[("a", "f8"), ("b", "O")])),
    "array-of-text": pickle.dumps(np.array(["a"])),
    "array-of-times": pickle.dumps(np.array(["2020-01-01"], "datetime64[D]")),
    "a-function": pickle.dumps(os.system),
    "a-set": pickle.dumps({1, 2}),
    "a-frozenset": pickle.dumps(frozenset({1})),
    "a-complex": pickle.dumps(1j),
    "an-ordered-dictionary": pickle.dumps(__import__("collections").OrderedDict(a=1)),
    "a-codec-that-unfolds": global_of("_codecs", "decode") + text("x") + text("zlib") + b"\x86R.",
    "deep-key": b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
}
BOMBS = {
    "memo": b"\x80\x02N" + b"r" + struct.pack("<I", 2**31 - 1) + b".",
    "memo-text": b"Np99999999999999\n.",
    "shape": OBJECTS + b"(K\x01J" + struct.pack("<i", 2**31 - 1) + b"\x85" + NUMBER_TYPE + b"\x89C\x08abcdefghtb.",
    "shape-empty": OBJECTS
    + b"(K\x01(J"
    + struct.pack("<i", 2**31 - 1)
    + b"K\x00t"
    + NUMBER_TYPE
    + b"\x89C\x08abcdefghtb.",
    "bytes-that-are-not-there": b"\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "text-that-is-not-there": b"\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "frame-that-is-not-there": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "lists-in-lists": b"]" * 200_000 + b".",
    "marks": b"(" * 3_000_000 + b".",
    "cut": pickle.dumps({"a": np.arange(1000.0)})[:-500],
    "empty": b"",
    "zeros": bytes(1000),
    "html": b"<html>404</html>",
}
MEGABYTES = 600  # above what the process has when it begins


@pytest.mark.parametrize("name", TRICKS)
def test_nothing_is_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KlrayError, match="klray runs nothing of a pickle"):
        read(TRICKS[name], tmp_path)
    assert not (tmp_path / MARK).exists()


def test_the_tricks_are_tricks(tmp_path: Path) -> None:
    """Of those that run something, Python's own unpickler does."""
    ran = [name for name in list(TRICKS)[:14] if _runs(TRICKS[name], tmp_path)]
    assert {"reduce-os-system", "reduce-eval", "stack-global", "inst", "obj"} <= set(ran) and len(ran) >= 7


def _runs(body: bytes, folder: Path) -> bool:
    (folder / MARK).unlink(missing_ok=True)
    (folder / "trick.pkl").write_bytes(body)
    program = "import pickle; pickle.load(open('trick.pkl', 'rb'))"
    subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True)
    return (folder / MARK).exists()


@pytest.mark.slow
def test_bombs_are_refused_within_bounds(tmp_path: Path) -> None:
    """In a process with little memory."""
    for name, body in BOMBS.items():
        (tmp_path / f"{name}.pkl").write_bytes(body)
    program = f"""
import resource
from pathlib import Path
from klray.errors import KlrayError
from klray.store.adopted.pickles import read_pickle
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + {MEGABYTES} * 2**20,) * 2)
for path in sorted(Path(".").glob("*.pkl")):
    try:
        found = read_pickle(path)
    except KlrayError as error:
        print(path.stem, str(error)[:100])
    else:
        print(path.stem, "gave", type(found).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said.keys() == BOMBS.keys()
    # an entry far away in the memo is an entry: it is the number of them that costs
    assert {name for name, words in said.items() if words.startswith("gave")} <= {"memo", "memo-text"}


def test_there_is_an_end_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    assert len(read(b"(" + b"N" * 997 + b"t.", tmp_path)) == 997
    with pytest.raises(KlrayError, match="more than 1,000 steps"):
        read(b"(" + b"N" * 998 + b"t.", tmp_path)


@given(st.data())
@examples(100)
def test_a_byte_changed_gives_a_value_or_a_sentence(data: st.DataObject) -> None:
    """Whatever a file holds: no other error, and nothing that is no plain value."""
    body = bytearray(pickle.dumps({"a": np.arange(4.0), "b": [1.5, None, "x"]}, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"klray-pickles-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    try:
        read(bytes(body), folder)
    except KlrayError as error:
        assert str(error).isprintable()
