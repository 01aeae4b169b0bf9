"""About a hundred hostile folders: nothing outside is read or written, no code runs, each is refused in a sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from klray.checkpoints import Cache, Hub, RepositorySpec, resolve
from klray.errors import CheckpointError
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer, tokenizer_fingerprint
from tests.hub_faults import select
from tests.tiny_models import save_checkpoint, with_other_config

WEIGHTS, PICKLE, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
SECONDS = 120.0  # in which a busy machine does what takes 1 s
Hostile = Callable[[Path], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sound"), "gpt_neox")


class Runs:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("../ran",)


def index(*named: Any, **more: Any) -> Hostile:
    """The weights in one shard, and an index that names something else, too."""

    def make(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "shard.safetensors")
        places = {"a": "shard.safetensors", **{f"b{n}": name for n, name in enumerate(named)}}
        (folder / INDEX).write_text(json.dumps({"weight_map": places, **more}))

    return make


def index_of(body: bytes) -> Hostile:
    def make(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_bytes(body)

    return make


def link(name: str, target: str) -> Hostile:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def pipe(name: str) -> Hostile:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def both(*steps: Hostile) -> Hostile:
    def make(folder: Path) -> None:
        for step in steps:
            step(folder)

    return make


def pickled(write: Callable[[Path], Any]) -> Hostile:
    def make(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        write(folder / PICKLE)

    return make


def tarred(path: Path) -> None:
    body = path.with_name("pickle")
    body.write_bytes(pickle.dumps(Runs()))
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.add(body, name)
    body.unlink()


def script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)


def zipped(name: str, body: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, body)
            archive.writestr("archive/version", "3\n")

    return write


def polyglot(path: Path) -> None:
    """A pickle in front, a zip file behind."""
    zipped("archive/data.pkl", pickle.dumps({}))(path)
    path.write_bytes(pickle.dumps(Runs()) + path.read_bytes())


def header(body: Any, length: int | None = None, tail: int = 64) -> Hostile:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    whole = (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(tail)
    return lambda folder: (folder / WEIGHTS).write_bytes(whole)


def span(start: Any, stop: Any, dtype: str = "F32", shape: Any = (4,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def holds(name: str, body: bytes | str) -> Hostile:
    return lambda folder: (folder / name).write_bytes(body.encode() if isinstance(body, str) else body)


def config(**changes: Any) -> Hostile:
    return lambda folder: with_other_config(folder, **changes)


def code(folder: Path) -> None:
    """Python files under every name that a library might import or run."""
    for name in ("modeling_x", "configuration_x", "tokenization_x", "modeling_gpt_neox", "__init__", "sitecustomize"):
        (folder / f"{name}.py").write_text("import os\nos.mkdir('../ran')\n")


OUTSIDE = [
    "../other/model.safetensors",
    "/etc/passwd",
    "/dev/zero",
    "../../../../../../etc/passwd",
    "a/../../x.safetensors",
]
OUTSIDE += ["./shard.safetensors", "a//shard.safetensors", "", ".", "..", "~/x.safetensors\x00", "x\n.safetensors"]
OUTSIDE += ["a\\..\\x.safetensors", "x.bin", "x.py", "config.json", "\ud800.safetensors", "x" * 300 + ".safetensors"]
OUTSIDE += ["shard.safetensors/x.safetensors", "a/" * 600 + "x.safetensors"]
FOLDERS: dict[str, Hostile] = {f"index names {name[:40]!r}": index(name) for name in OUTSIDE}
FOLDERS |= {f"index names {value!r}": index(value) for value in (7, None, ["a"], {"a": 1}, 1.5, True)}
FOLDERS |= {
    f"index of {body[:12]!r}": index_of(body)
    for body in (b"", b"{", b"[]", b"7", b"{}", b'{"weight_map": 7}', b'{"weight_map": {}}', b'{"weight_map": ["a"]}')
}
FOLDERS |= {f"index of {n:,} brackets": index_of(b"[" * n) for n in (1000, 10**6)}
FOLDERS |= {
    "index too large": index_of(b" " * (33 << 20)),
    "index of a missing file": index("gone.safetensors"),
    "index is a pipe": both(index(), pipe(INDEX)),
    "shard is a pipe": both(index("p.safetensors"), pipe("p.safetensors")),
    "shard is a folder": both(index("d.safetensors"), lambda folder: (folder / "d.safetensors").mkdir()),
    "shard in a linked folder": both(index("out/model.safetensors"), link("out", "../other")),
    "circle of links": both(index("c.safetensors"), link("c.safetensors", "c.safetensors")),
    "weights elsewhere by config": config(transformers_weights="../other/model.safetensors"),
    "weights beside by config": both(holds("b.safetensors", b""), config(transformers_weights="b.safetensors")),
}
FOLDERS |= {
    f"{name} leads to {target}": link(name, target)
    for name in (WEIGHTS, "config.json", "tokenizer.json", "vocab.json", "tokenizer_config.json")
    for target in ("../other/model.safetensors", "/dev/zero", "/etc/hostname")
}
FOLDERS |= {
    "shard leads out": both(index("l.safetensors"), link("l.safetensors", "../other/model.safetensors")),
    "shard leads to a device": both(index("l.safetensors"), link("l.safetensors", "/dev/zero")),
    "config is a pipe": pipe("config.json"),
    "weights are a pipe": pipe(WEIGHTS),
    "tokenizer is a pipe": pipe("tokenizer.json"),
}
FOLDERS |= {
    f"pickle: {name}": pickled(write)
    for name, write in {
        "plain": lambda path: path.write_bytes(pickle.dumps(Runs())),
        "protocol 0": lambda path: path.write_bytes(pickle.dumps(Runs(), 0)),
        "torch.save": lambda path: torch.save({"a": Runs()}, path),
        "before 1.6": lambda path: torch.save({"a": Runs()}, path, _use_new_zipfile_serialization=False),
        "nested": lambda path: torch.save({"a": {"b": [Runs()]}}, path),
        "pickle in a tensor's place": lambda path: torch.save({"a": pickle.dumps(Runs())}, path),
        "tar": tarred,
        "TorchScript": script,
        "zip of a pickle": zipped("archive/data.pkl", pickle.dumps(Runs())),
        "zip with a path out": zipped("../../ran", b"x"),
        "polyglot": polyglot,
        "a list": lambda path: torch.save([torch.zeros(2)], path),
        "a tensor": lambda path: torch.save(torch.zeros(2), path),
        "numbers for names": lambda path: torch.save({1: torch.zeros(2)}, path),
        "no tensors": lambda path: torch.save({"a": 1}, path),
        "text": lambda path: path.write_text("no pickle"),
        "empty": lambda path: path.write_bytes(b""),
    }.items()
}
FOLDERS |= {
    "header of terabytes": header(b"{}", 1 << 42),
    "header of all bits": header(b"{}", (1 << 64) - 1),
    "header cut": header(b"{", 40, 0),
    "header no JSON": header(b"not json at all"),
    "header a list": header([1, 2]),
    "header deep": header(b"[" * 10**5),
    "tensors of terabytes": header({"a": span(0, 1 << 42, shape=(1 << 40,))}),
    "tensors overlap": header({"a": span(0, 16), "b": span(8, 24)}),
    "tensors with gaps": header({"a": span(0, 16), "b": span(32, 48)}),
    "tensors negative": header({"a": span(-16, 0)}),
    "tensors backwards": header({"a": span(16, 0)}),
    "offsets are words": header({"a": span("0", "x")}),
    "offsets are too many": header({"a": {**span(0, 16), "data_offsets": [0, 16, 32]}}),
    "shape of 10^18": header({"a": span(0, 64, shape=(10**9, 10**9))}),
    "shape negative": header({"a": span(0, 64, shape=(-16,))}),
    "dtype unknown": header({"a": span(0, 64, dtype="Q7")}),
    "file cut": lambda folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2),
    "file longer": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"x"),
}
FOLDERS |= {
    "own code": both(code, config(model_type="x", auto_map={"AutoConfig": "configuration_x.X"})),
    "own code of somebody else": config(model_type="x", auto_map={"AutoConfig": "someone/else--configuration_x.X"}),
    "own tokenizer": both(
        code,
        lambda folder: (folder / "tokenizer.json").unlink(),
        holds(
            "tokenizer_config.json",
            '{"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}}',
        ),
    ),
    "adapter": holds("adapter_config.json", '{"base_model_name_or_path": "/etc"}'),
    "config of brackets": holds("config.json", "[" * 10**5),
    "config of a number": holds("config.json", "7"),
    "config with an unknown type": config(model_type="\x1b[2J"),
    "config without a type": config(model_type=None),
    "tokenizer of brackets": holds("tokenizer.json", "[" * 10**5),
    "tokenizer of nothing": holds("tokenizer.json", "{}"),
    "tokenizer_config of a list": holds("tokenizer_config.json", "[]"),
}


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to be made hostile, beside what is none of its business."""
    shutil.copytree(sound, tmp_path / "place/model")
    shutil.copytree(sound, tmp_path / "place/other")
    monkeypatch.chdir(tmp_path / "place/model")
    yield tmp_path / "place"


def outside(place: Path) -> dict[str, bytes]:
    """All that is not the hostile folder itself."""
    found = {str(path.relative_to(place)): path for path in place.rglob("*") if "model" not in path.parts[-2:-1]}
    return {name: path.read_bytes() if path.is_file() else b"" for name, path in found.items() if "model/" not in name}


def taken(folder: Path, cache: Path) -> None:
    """All that scoring does with a folder before its forward passes."""
    checkpoints, unavailable = resolve(Hub("http://127.0.0.1:9"), select(RepositorySpec(str(folder))))
    if unavailable:
        raise CheckpointError(unavailable[0].message, unavailable[0].reason)
    with Cache(cache, 10**9) as fetched:
        directory = fetched.fetch(Hub("http://127.0.0.1:9"), checkpoints[0])
    tokenizer_fingerprint(directory)
    load(directory)
    load_tokenizer(directory)


@pytest.mark.parametrize(
    "hostile", FOLDERS.values(), ids=[name.encode("ascii", "replace").decode() for name in FOLDERS]
)
def test_a_hostile_folder_is_refused_in_a_sentence(hostile: Hostile, place: Path, tmp_path: Path) -> None:
    hostile(place / "model")
    before = outside(place)
    start = time.monotonic()
    tracemalloc.start()
    with pytest.raises(CheckpointError) as refused:
        taken(place / "model", tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - start < SECONDS
    assert peak < 200e6
    assert outside(place) == before
    message = refused.value.message
    assert message.isprintable() and ": " in message and "unexpected" not in message


def test_what_looks_odd_and_is_sound_is_taken(place: Path, tmp_path: Path) -> None:
    """Names, subfolders, links within, a snapshot of huggingface_hub's cache, files that nobody names."""
    folder = place / "model"
    tensors = load_file(folder / WEIGHTS)
    (folder / "parts").mkdir()
    places = {
        name: ("parts/one.safetensors", "two of two.safetensors")[number % 2] for number, name in enumerate(tensors)
    }
    for file in set(places.values()):
        save_file(
            {name: tensors[name] for name in tensors if places[name] == file}, folder / file, metadata={"format": "pt"}
        )
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    code(folder)
    (folder / "model-00001-of-00009.safetensors").write_bytes(b"left over")
    os.mkfifo(folder / "pipe")
    taken(folder, tmp_path / "cache")
    snapshot = place / "models--lab--x/snapshots" / ("a" * 40)
    (place / "models--lab--x/blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((place / "other").iterdir())):
        path.rename(place / f"models--lab--x/blobs/{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    taken(snapshot, tmp_path / "cache")
    assert not (place / "ran").exists()
