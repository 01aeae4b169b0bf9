"""What a checkpoint's folder holds, as it is stored, and what is said where it cannot be read."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file

from klray.checkpoints import model_config
from klray.checkpoints.files import weights_of
from klray.checkpoints.local_folder import offered_by
from klray.errors import CheckpointError, Reason
from klray.words.outside import printable

_ZIP = b"PK\x03\x04"


def stored_tensors(directory: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint's folder by name, as they are stored, mapped from the files; CheckpointError."""
    folder = Path(directory)
    with explained(folder):
        return read_tensors(weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder that hold its weights, whole or in shards.

    Raises CheckpointError: there are none that can be read without running code (no_safe_weights), or an adapter's
    alone (load_failed).
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json): merge it into its base model and save the whole model",
            "load_failed",
        )
    return [folder / path for path in weights_of(offered_by(folder)).files]


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """Stored tensors by name, mapped from the files where their format allows: read when used."""
    stored: dict[str, torch.Tensor] = {}
    for file in files:
        stored |= load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
    return stored


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """Tensors that torch.save wrote; before PyTorch 1.6 that was no zip file, which alone can be mapped."""
    with file.open("rb") as stream:
        zipped = stream.read(len(_ZIP)) == _ZIP
    found = torch.load(file, map_location="cpu", mmap=zipped, weights_only=True)
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise pickle.UnpicklingError(f"{file.name} is no dictionary of tensors by name")
    return found


def is_coded(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds codes of numbers, which are known only together with scales: 8 bits of float and fewer."""
    return tensor.is_floating_point() and tensor.element_size() < 2


def refuse_coded(stored: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise CheckpointError (load_failed) for codes among the tensors of a checkpoint that is not said to have any."""
    if coded := [name for name, tensor in stored.items() if is_coded(tensor)]:
        dtype = str(stored[coded[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{folder} holds {len(coded)} tensors in {dtype}, {coded[0]} among them, and its config.json has no "
            "quantization_config that says how they are scaled: take the config that they were published with, or the "
            "unquantised original",
            "load_failed",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; a CPU's allocator raises a plain RuntimeError, known by its words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def explained(folder: Path, what: str = "model") -> Iterator[None]:
    """Turn whatever transformers raises into a CheckpointError that names the folder and its architecture."""
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{folder} has weights that hold more than tensors, and reading them could run code: refused; "
            f"convert them to safetensors where you trust them ({first_line(error)})",
            "no_safe_weights",
        ) from error
    except Exception as error:
        reason: Reason = "out_of_memory" if is_out_of_memory(error) else "load_failed"
        raise CheckpointError(
            f"{folder}: its {what} ({_architecture(folder)}) cannot be loaded: {type(error).__name__}: "
            f"{first_line(error)}; check that its files are complete and that transformers {version('transformers')} "
            "knows its architecture without remote code",
            reason,
        ) from error


def _architecture(folder: Path) -> str:
    try:
        config = model_config(folder)
        return printable(str((config.get("architectures") or [config.get("model_type", "no config.json")])[0]))
    except (ValueError, LookupError, TypeError, OSError):
        return "config.json cannot be read"


def first_line(error: BaseException) -> str:
    """The first line of an error's words, 300 characters at most."""
    return next(iter(str(error).strip().splitlines()), "")[:300]
