"""Which files of a repository are needed to load it: config, tokenizer, and weights in one safe format."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from klray.checkpoints.checkpoint import RemoteFile
from klray.errors import CheckpointError

CONFIG = "config.json"

SMALL_FILES = (
    CONFIG,
    "generation_config.json",
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

# In the order of preference: safetensors hold nothing but tensors; a .bin is a pickle, which is read with
# weights_only=True and so cannot run code. One file wins over shards, as in transformers.
WEIGHT_FORMATS = (
    ("model.safetensors", re.compile(r"model-(\d+)-of-(\d+)\.safetensors"), "model.safetensors.index.json"),
    ("pytorch_model.bin", re.compile(r"pytorch_model-(\d+)-of-(\d+)\.bin"), "pytorch_model.bin.index.json"),
)

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


def loadable_files(files: Iterable[RemoteFile], label: str) -> tuple[RemoteFile, ...]:
    """Return the files to fetch out of those at the root of a repository, sorted by path.

    Weights come in one format only: safetensors (one file, or all shards) before ``pytorch_model*.bin``.

    Raises CheckpointError: ``no_safe_weights`` when there are none in these formats, or when shards or their index are
    missing; ``load_failed`` without a config.json. ``label`` names the checkpoint in the message.
    """
    by_path = {file.path: file for file in files if "/" not in file.path}
    if CONFIG not in by_path:
        raise CheckpointError(
            f"{label} has no {CONFIG} among the {len(by_path)} files at its root, so its architecture is unknown: "
            "choose a repository or revision that holds a transformers model",
            "load_failed",
        )
    wanted = _weight_paths(set(by_path), label)
    wanted |= {path for path in by_path if any(fnmatchcase(path, pattern) for pattern in SMALL_FILES)}
    return tuple(by_path[path] for path in sorted(wanted))


def _weight_paths(paths: set[str], label: str) -> set[str]:
    missing = ""
    for single, shard, index in WEIGHT_FORMATS:
        if single in paths:
            return {single}
        parts = {path: match for path in paths if (match := shard.fullmatch(path))}
        if not parts:
            continue
        counts = {int(match.group(2)) for match in parts.values()}
        numbers = {int(match.group(1)) for match in parts.values()}
        if len(counts) == 1 and numbers == set(range(1, max(counts) + 1)):
            if index in paths:
                return {*parts, index}
            missing += f"; all {len(parts)} shards, but no {index}, which says what each of them holds"
        else:
            stem, _, suffix = single.partition(".")
            missing += f"; {len(parts)} of {max(counts)} shards {stem}-*.{suffix}"
    others = sorted(path for path in paths if path.endswith(OTHER_WEIGHTS))
    found = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "") if others else "no weights at all"
    raise CheckpointError(
        f"{label} has no complete weights in a safe format (model*.safetensors or pytorch_model*.bin); found: "
        f"{found}{missing}. Choose a revision that has them, or convert the repository to safetensors",
        "no_safe_weights",
    )
