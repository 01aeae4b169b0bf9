"""Why a checkpoint could not be read or run: each cause by its file and its cure, whatever a library said of it."""

import importlib.util
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from klray.checkpoints.files import CONFIG, SMALL_FILES, weights_of
from klray.checkpoints.gguf import is_gguf, read_gguf
from klray.checkpoints.local_folder import model_config, offered_by
from klray.checkpoints.soundness import CONFIG_BYTES, fault_of
from klray.errors import CheckpointError, KlrayError, Reason
from klray.words.outside import contents, one_line, parsed, printable

_LIBRARY = re.compile(
    r"pip install (?:-U |--upgrade )?[`'\"]?([A-Za-z][\w.-]+)(?![\w+])|requires the ([\w.-]+) library"
)
# Packages whose name on PyPI is not that of their module.
_MODULES = {"protobuf": "google.protobuf", "mamba-ssm": "mamba_ssm", "mistral-common": "mistral_common"}
_NOT_KNOWN = re.compile(
    r"(?i)no attribute|not recogni[sz]e|unrecogni[sz]ed|unknown|not supported|not a valid|invalid|one of"
)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; a CPU's allocator raises a plain RuntimeError, known by its words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's words, 300 characters at most."""
    return printable(next(iter(str(error).strip().splitlines()), ""), 300)


@contextmanager
def explained(folder: Path, what: str = "model", doing: str = "loaded") -> Iterator[None]:
    """Turn whatever a library raises into a CheckpointError that names the cause, or else folder and architecture."""
    try:
        yield
    except KlrayError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of libraries in Rust
            raise
        if is_out_of_memory(error):
            raise CheckpointError(_unexplained(folder, what, doing, error), "out_of_memory") from error
        reason: Reason = "load_failed"
        found = unsound(folder) or _missing_library(folder, what, error) or _unknown(folder, error)
        if not found and isinstance(error, pickle.UnpicklingError):
            reason = "no_safe_weights"
            found = (
                f"{folder} has weights that hold more than tensors, and reading them could run code: refused; "
                f"convert them to safetensors where you trust them ({first_line(error)})"
            )
        elif not found and "Unrecognized configuration class" in str(error):
            reason = "not_causal"
            found = f"{folder}: {_architecture(folder)} is no causal language model to transformers: choose one that is"
        raise CheckpointError(found or _unexplained(folder, what, doing, error), reason) from error


def unsound(folder: Path) -> str:
    """Which file of a checkpoint's folder is not what its name says, and what to do; "" when none is found."""
    if is_gguf(folder):
        return _first_fault(folder.parent, [folder.name])
    try:
        offered = offered_by(folder)
        names = [name for name in offered.root if any(fnmatchcase(name, pattern) for pattern in SMALL_FILES)]
        weights = weights_of(offered)
        names += [*weights.files, weights.index]
    except (KlrayError, OSError):
        names = [CONFIG]
    return _first_fault(folder, sorted(filter(None, names)))


def _first_fault(folder: Path, names: Sequence[str]) -> str:
    for name in names:
        try:
            if why := fault_of(folder / name):
                return f"{folder / name} {why}"
        except OSError as error:
            return f"{folder / name} cannot be read ({error}): check the folder's permissions and the disk"
    return ""


def _missing_library(folder: Path, what: str, error: BaseException) -> str:
    """Which library is not installed, by the name under which it can be."""
    named = [first or second for first, second in _LIBRARY.findall(str(error))]
    if isinstance(error, ImportError) and error.name:
        named.append(error.name.partition(".")[0])
    if what == "tokenizer" and (format_library := _tokenizer_library(folder)):
        named.insert(0, format_library)
    missing = [each.replace("_", "-") for each in named if not _is_here(_MODULES.get(each, each.replace("-", "_")))]
    if not missing:
        return ""
    return f"{folder}: its {what} needs {missing[0]}, which is not installed: pip install {missing[0]}"


def _tokenizer_library(folder: Path) -> str:
    """What reads a folder's vocabulary where there is no tokenizer.json, which needs none."""
    if is_gguf(folder) or (folder / "tokenizer.json").is_file():
        return ""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".model", ".spm", ".tiktoken") and path.is_file():
            with path.open("rb") as stream:
                is_tiktoken = path.suffix == ".tiktoken" or _TIKTOKEN.match(stream.read(1024))
            return "tiktoken" if is_tiktoken else "sentencepiece"
    return ""


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _unknown(folder: Path, error: BaseException) -> str:
    """What a config asks for that transformers does not know, or that klray does not do."""
    config = _json(folder / CONFIG)
    known = f"transformers {version('transformers')}"
    words = str(error)
    if "custom code" in words or "trust_remote_code" in words:
        own = [config.get("auto_map"), _json(folder / "tokenizer_config.json").get("auto_map")]
        classes = printable(", ".join(sorted({value for _, value in _strings(own)})))
        return (
            f"{folder} is loaded by code of its own ({classes}), which klray never runs: choose a model that {known} "
            "loads without it"
        )
    if "Validation" in type(error).__name__:
        why = printable(one_line(words), 300)
        return f"{folder / CONFIG} describes no model that {known} can make ({why}): take another"
    for place, value in _strings(config):
        named = _NOT_KNOWN.search(words) and any(f"{quote}{value}{quote}" in words for quote in "'`\"")
        if named or (isinstance(error, KeyError) and error.args == (value,)):
            why = printable(one_line(words))
            return (
                f"{folder / CONFIG} says {place} is {value!r}, which {known} does not know ({why}): "
                "install a version that does, or take the config from another revision"
            )
    return ""


def _strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """The strings in a config with the places where they stand, such as rope_scaling.rope_type."""
    if isinstance(value, str) and len(value) > 1:
        yield place, value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _strings(each, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, place)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = parsed(contents(path, CONFIG_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _unexplained(folder: Path, what: str, doing: str, error: BaseException) -> str:
    cure = "check that its files are complete and that transformers {} knows its architecture without remote code"
    if doing != "loaded":
        cure = "its config and its weights do not fit together under transformers {}: take both from one checkpoint"
    return (
        f"{folder}: its {what} ({_architecture(folder)}) cannot be {doing}: {type(error).__name__}: "
        f"{printable(one_line(str(error).strip()), 300)}; {cure.format(version('transformers'))}"
    )


def _architecture(folder: Path) -> str:
    try:
        if is_gguf(folder):
            return printable(read_gguf(folder).architecture)
        config = model_config(folder)
        return printable(str((config.get("architectures") or [config.get("model_type", "no config.json")])[0]))
    except (ValueError, LookupError, TypeError, OSError):
        return "config.json cannot be read"
