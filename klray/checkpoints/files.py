"""Which files of a repository are needed to load it: config, tokenizer, and weights in one safe format."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from klray.checkpoints.checkpoint import RemoteFile
from klray.checkpoints.gguf import is_part
from klray.checkpoints.soundness import instead
from klray.errors import CheckpointError, Reason
from klray.words.numbers import counted, listed
from klray.words.outside import parsed, printable

CONFIG = "config.json"

SMALL_FILES = (
    CONFIG,
    "generation_config.json",
    "adapter_config.json",  # where there is one, transformers may load an adapter on top: refused
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "tokenizer*.model",
    "sentencepiece*.model",
    "spiece.model",
    "*.spm",
    "*.tiktoken",
    "chat_template.*",
)

# What a tokenizer cannot be without.
VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "*.spm", "tekken*")

# In the order of preference: safetensors hold nothing but tensors; a .bin is a pickle, which is read with
# weights_only=True and so cannot run code. One file wins over shards, as in transformers.
WEIGHT_FORMATS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
INDEX_BYTES = 1 << 25  # of models with a million tensors; the largest on the hub have some 10 MB
_SHARD = re.compile(r"\d+-of-(\d+)")
_NAMED = 5  # files in a message
_PATH_BYTES, _NAME_BYTES = 1000, 255  # what file systems take

OTHER_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".h5",
    ".msgpack",
    ".gguf",
    ".ggml",
    ".ckpt",
    ".pt",
    ".pth",
    ".pkl",
    ".onnx",
    ".npz",
    ".ot",
)


class OutsideError(CheckpointError):
    """An index names for weights what is no file below its own folder."""

    def __init__(self, message: str, reason: Reason = "no_safe_weights"):
        super().__init__(message, reason)


@dataclass(frozen=True)
class Listed:
    """What a repository at a commit, or a folder, offers; ``label`` names it in messages.

    ``find`` gives a file by its path, wherever it lies, None when it is not there; ``read`` the content of a small one.
    Both raise CheckpointError.
    """

    label: str
    root: Collection[str]  # names of the files that lie in no subfolder
    find: Callable[[str], RemoteFile | None]
    read: Callable[[RemoteFile], bytes]
    gguf: Collection[str] = ()  # paths of GGUF files, wherever they lie


@dataclass(frozen=True)
class Weights:
    """Paths of the files that hold a checkpoint's weights, sorted, and of the index that names them, "" without one."""

    files: tuple[str, ...]
    index: str = ""


def loadable_files(offered: Listed) -> tuple[RemoteFile, ...]:
    """Return the files to fetch, sorted by path: config and tokenizer at the root, and the weights.

    Raises CheckpointError: as ``weights_of``; ``load_failed`` without a config.json.
    """
    if CONFIG not in offered.root or offered.find(CONFIG) is None:
        raise CheckpointError(
            f"{offered.label} has no {CONFIG} among the {counted(len(offered.root), 'file')} at its root, so its "
            "architecture is unknown: choose a repository or revision that holds a transformers model",
            "load_failed",
        )
    weights = weights_of(offered)
    return described_by(offered, {*weights.files, weights.index} - {""})


def gguf_files(offered: Listed, path: str) -> tuple[RemoteFile, ...]:
    """Return the files to fetch for one GGUF file, sorted by path: it, and a tokenizer beside it, at the root.

    Raises CheckpointError (load_failed): it is a part of a model in several files.
    """
    if is_part(path):
        raise CheckpointError(
            f"{printable(path)} of {offered.label} is one of several files that hold a model together, and klray reads "
            "models in one GGUF file: merge them with llama-gguf-split --merge, or choose another file",
            "load_failed",
        )
    own = any(fnmatchcase(name, pattern) for name in offered.root for pattern in VOCABULARIES)
    if own and "/" not in path:
        return described_by(offered, {path})
    file = offered.find(path)
    return (file,) if file else ()


def described_by(offered: Listed, more: Collection[str] = ()) -> tuple[RemoteFile, ...]:
    """Config and tokenizer at the root, and ``more``, sorted by path."""
    small = {name for name in offered.root if any(fnmatchcase(name, pattern) for pattern in SMALL_FILES)}
    found = [offered.find(path) for path in sorted(small | set(more))]
    return tuple(file for file in found if file is not None)


def weights_of(offered: Listed) -> Weights:
    """The weights, in one format only: safetensors before ``pytorch_model*.bin``, one file before shards.

    Shards are what the index names, wherever they lie and whatever they are called; what it does not name is of no
    consequence. A format of which a part is missing is passed over.

    Raises CheckpointError: ``no_safe_weights`` when no format is whole, or an index names what is no file below its
    folder; ``load_failed`` when an index cannot be read.
    """
    missing = ""
    for single, index in WEIGHT_FORMATS:
        if single in offered.root and offered.find(single):
            return Weights((single,))
        stem, _, suffix = single.partition(".")
        if index in offered.root and (file := offered.find(index)):
            shards = _shards(offered, file, f".{suffix}")
            gone = [path for path in shards if offered.find(path) is None]
            if not gone:
                return Weights(tuple(shards), index)
            missing += (
                f"; {len(shards) - len(gone)} of {len(shards)} shards that {index} names, without "
                f"{listed([printable(path) for path in gone], _NAMED)}"
            )
        elif parts := [name for name in offered.root if _is_shard(name, stem, suffix)]:
            missing += f"; {len(parts)} shards, but no {index}, which says what each of them holds"
    others = sorted(printable(name) for name in offered.root if name.endswith(OTHER_WEIGHTS))
    found = listed(others, _NAMED) if others else "no weights at all"
    raise CheckpointError(
        f"{offered.label} has no complete weights in a safe format (model*.safetensors or pytorch_model*.bin); found: "
        f"{found}{missing}. Choose a revision that has them, or convert the repository to safetensors",
        "no_safe_weights",
    )


def is_plain(path: str) -> bool:
    """Whether ``path`` leads to a file below the folder that it is joined to, by names that can be printed.

    >>> is_plain("shards/model-1.safetensors"), is_plain("../model.safetensors"), is_plain("/etc/passwd")
    (True, False, False)
    """
    parts = path.split("/")
    return (
        path.isprintable()
        and "\\" not in path
        and not {"", ".", ".."} & set(parts)
        and len(path.encode()) <= _PATH_BYTES
        and all(len(part.encode()) <= _NAME_BYTES for part in parts)
    )


def _is_shard(name: str, stem: str, suffix: str) -> bool:
    return name.startswith(stem) and name.endswith(suffix) and _SHARD.search(name) is not None


def _shards(offered: Listed, index: RemoteFile, suffix: str) -> list[str]:
    """The files that an index names, sorted, each once."""
    where = f"{index.path} of {offered.label}"
    if index.size_bytes > INDEX_BYTES:
        raise CheckpointError(
            f"{where} has {index.size_bytes:,} bytes, and klray reads no index above {INDEX_BYTES:,}: choose another "
            "revision, or save the model again with larger shards",
            "load_failed",
        )
    body = offered.read(index)
    if why := instead(body):
        raise CheckpointError(f"{where} {why}", "load_failed")
    try:
        named = parsed(body.decode())["weight_map"].values()
        shards = sorted(set(named))
        if not shards or not all(isinstance(path, str) for path in shards):
            raise ValueError("its weight_map names no files")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is no index of shards, JSON with a weight_map of tensors to files "
            f"({type(error).__name__}: {printable(str(error))}): fetch it again, or choose another revision",
            "load_failed",
        ) from error
    folders = {str(parent) for path in shards for parent in PurePosixPath(path).parents}
    for path in shards:
        if not is_plain(path) or not path.endswith(suffix) or path in folders:
            raise OutsideError(
                f"{where} names {printable(path)!r} for weights: it may only name {suffix} files below its own folder. "
                "Do not use this checkpoint before you know why"
            )
    return shards
