"""The name of a model in memory: a hash of what it holds, which stands for the commit of its column."""

import hashlib
import json
from typing import Any

import torch

from klray.errors import CheckpointError


def weights_sha256(model: Any) -> str:
    """SHA-256 (64 hex digits) over the name, dtype, shape and bytes of every parameter and saved buffer, by name.

    Equal for equal numbers, on whatever device they are; tied parameters count under each of their names. A tensor at a
    time is brought to the CPU. Raises as :func:`check_whole`.
    """
    check_whole(model)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if not isinstance(tensor, torch.Tensor):  # a module may save other things, such as None
            continue
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dtype_of(model: Any) -> str:
    """Dtype of a model's parameters as a column names it, such as float32; of several, all, joined by +."""
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    return "+".join(sorted(dtypes))


def check_whole(model: Any) -> None:
    """Raise CheckpointError (load_failed) for a model whose parameters are not in this process, as under FSDP or
    DeepSpeed ZeRO-3; asks no other one.
    """
    # The first FSDP's parameters look whole while it computes, and its state_dict waits for the other processes.
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise _spread("a module")
    for name, tensor in model.named_parameters():
        if hasattr(tensor, "ds_id") or hasattr(tensor, "placements") or tensor.is_meta:
            raise _spread(f"parameter {name}")


def _spread(what: str) -> CheckpointError:
    return CheckpointError(
        f"{what} is not here whole: it is spread over processes (FSDP, DeepSpeed ZeRO-3) or away; score the "
        "checkpoints that this run saves, with klray score models.repo=FOLDER",
        "load_failed",
    )
