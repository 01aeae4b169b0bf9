"""What a checkpoint's folder holds, as it is stored."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from klray.checkpoints.causes import explained
from klray.checkpoints.files import weights_of
from klray.checkpoints.gguf import TYPES, GgufFile, is_gguf, read_gguf
from klray.checkpoints.local_folder import model_config, offered_by
from klray.checkpoints.pickles import read_pickled
from klray.errors import CheckpointError
from klray.words.numbers import counted

_OF_GGUF = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_tensors(directory: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint's folder, or of a GGUF file, by name, as they are stored, mapped from the files.

    Raises CheckpointError.
    """
    folder = Path(directory)
    with explained(folder):
        return read_tensors(weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder that hold its weights, whole or in shards; a GGUF file is its own.

    Raises CheckpointError: there are none that can be read without running code (no_safe_weights), or an adapter's
    alone (load_failed).
    """
    if is_gguf(folder):
        return [folder]
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json): merge it into its base model and save the whole model",
            "load_failed",
        )
    weights = weights_of(offered_by(folder))
    elsewhere = model_config(folder).get("transformers_weights")
    if elsewhere not in (None, weights.index or weights.files[0]):
        raise CheckpointError(
            f"{folder}/config.json says that its weights are in {elsewhere} (transformers_weights), where klray does "
            f"not look: take that line out if they are in {weights.files[0]}, or rename what it names to that",
            "load_failed",
        )
    return [folder / path for path in weights.files]


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """Stored tensors by name, mapped from the files where their format allows: read when used.

    Raises CheckpointError (load_failed) for a name under which two files hold different tensors.
    """
    stored: dict[str, torch.Tensor] = {}
    homes: dict[str, Path] = {}
    for file in files:
        read = _read(file)
        for name in sorted(read.keys() & stored.keys()):
            if not _are_same(read[name], stored[name]):
                raise CheckpointError(
                    f"{file.parent} holds {name} twice, in {homes[name].name} and in {file.name}, and they are not "
                    "equal: which of them is the model's is not said; take all shards from one checkpoint",
                    "load_failed",
                )
        stored |= read
        homes |= dict.fromkeys(read, file)
    return stored


def _read(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    return gguf_tensors(read_gguf(file)) if is_gguf(file) else read_pickled(file)


def gguf_tensors(file: GgufFile) -> dict[str, torch.Tensor]:
    """Tensors of a GGUF file: floats as numbers, quantised ones as the bytes of their blocks, uint8."""
    body = torch.from_file(str(file.path), shared=False, size=file.path.stat().st_size, dtype=torch.uint8)
    found = {}
    for each in file.tensors:
        flat = body[each.start : each.start + each.size_bytes]
        dtype = _OF_GGUF.get(TYPES[each.kind][0])
        found[each.name] = flat.view(dtype).reshape(each.shape) if dtype else flat.reshape(*each.shape[:-1], -1)
    return found


def _are_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and bytes."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def is_coded(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds codes of numbers, which are known only together with scales: 8 bits of float and fewer."""
    return tensor.is_floating_point() and tensor.element_size() < 2


def refuse_coded(stored: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise CheckpointError (load_failed) for codes among the tensors of a checkpoint that is not said to have any."""
    if coded := [name for name, tensor in stored.items() if is_coded(tensor)]:
        dtype = str(stored[coded[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{folder} holds {counted(len(coded), 'tensor')} in {dtype}, {coded[0]} among them, and its config.json "
            "has no quantization_config of a known method that says how they are scaled: take the config that they "
            "were published with, or the unquantised original",
            "load_failed",
        )
