"""How many workers share one GPU where nobody says: several where models are too small to keep it busy.

Such a GPU waits for the CPU that launches its kernels, and for loading between checkpoints. What sharing gains is
not measured yet; the numbers below are chosen so that no worker runs short of memory, since a batch that is halved
has other last bits.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from klray.checkpoints import Checkpoint
from klray.likelihood.choices import NONE
from klray.sweep.limits import BATCH, BYTES_PER_BATCH_TOKEN
from klray.sweep.settings import ScoringSettings

SMALL_PARAMETERS: Final = 200e6  # of the largest checkpoint: 14m to 160m of the Pythia family
MOST: Final = 4  # workers of one GPU
CONTEXT_BYTES: Final = 1e9  # of GPU memory: CUDA, kernels and what PyTorch keeps
COPIES: Final = 2  # of the weights, in 32 bits
USED: Final = 0.9  # of the GPU's memory
HOST_BYTES: Final = 8e9  # of the node's memory, for each worker
# Bytes of GPUs by Ray's names; of a name that stands for several the smallest.
MEMORY: Final[Mapping[str, float]] = {
    **{"A100": 40e9, "A100-40G": 40e9, "A100-80G": 80e9, "H100": 80e9, "H200": 141e9, "H20": 96e9, "GH200": 96e9},
    **{"B200": 180e9, "B300": 270e9, "L40S": 45e9, "L40": 45e9, "A40": 45e9, "L4": 22e9, "A10G": 22e9, "T4": 15e9},
}


def workers_of_a_gpu(
    todo: Sequence[Checkpoint],
    settings: ScoringSettings,
    nodes: Sequence[Mapping[str, float]],
    workers: int | None = None,
) -> int:
    """How many share each GPU of ``nodes``, given by Ray's names of resources; 1 unless all that has to be known is.

    ``workers``: so many are asked for; they are not put on fewer GPUs than there are.
    """
    largest = max((each.parameters or each.bytes // 2 for each in todo), default=0)
    with_gpus = [node for node in nodes if node.get("GPU", 0.0) >= 1]
    if not with_gpus or largest > SMALL_PARAMETERS or settings.lens != NONE:
        return 1
    batch = (settings.tokens_per_batch or BATCH) * BYTES_PER_BATCH_TOKEN
    needs = CONTEXT_BYTES + COPIES * 4 * largest + batch
    gpus = sum(int(node["GPU"]) for node in with_gpus)
    room = [MOST, -(-min(workers or len(todo), len(todo)) // gpus)]
    for node in with_gpus:
        here = int(node["GPU"])
        room += [
            int(USED * _memory(node) // needs),
            int(node.get("CPU", 0.0) // (settings.threads * here)),
            int(node.get("memory", 0.0) // (HOST_BYTES * here)),
        ]
    return max(1, min(room))


def _memory(node: Mapping[str, float]) -> float:
    """Of each GPU of a node; 0 if its kind is not known."""
    kinds = [name.removeprefix("accelerator_type:") for name in node if name.startswith("accelerator_type:")]
    return min((MEMORY.get(kind, 0.0) for kind in kinds), default=0.0)
