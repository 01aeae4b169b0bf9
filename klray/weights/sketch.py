"""A linear sketch of a checkpoint's parameters: m numbers that keep squared distances.

Shapes: m = buckets; a tensor of n entries, flattened, is cut into blocks of m entries, the last one shorter.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from klray.errors import KlrayError
from klray.weights.parameters import fingerprint, parameters

SKETCH_VERSION = 1  # raise when the same parameters give other buckets

_AT_ONCE = 65_536  # entries: 256 KiB of float32 stay in a core's second cache through all steps
_GAMMA, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_PLACES = np.arange(32, dtype=np.int32)[:, None]  # of a sign's bit in its word
_SIGN = np.int32(-(2**31))  # the sign bit of a float32


@dataclass(frozen=True)
class Sketch:
    """Buckets (m,) float32, and a ``label`` that is equal for sketches that can be compared."""

    buckets: npt.NDArray[np.float32]
    label: str


def sketch(stored: Mapping[str, torch.Tensor], size: int = 65_536) -> Sketch:
    """Sketch of the parameters among ``stored`` tensors, as they are stored, tensor by tensor.

    Entry i of block b of a tensor is added, with a random sign, to bucket (i + r_b) mod m, where r_b is drawn for the
    block: S is linear, so that S(a) - S(b) = S(a - b). Every entry has a sign bit of its own and every block a shift
    of its own, by SplitMix64 of a counter that starts at the SHA-256 of the tensor's name: the same on every machine.

    With d = a - b and signs and shifts that are independent, E ||S(d)||^2 = ||d||^2: the products of two entries with
    different signs vanish in the mean. Of those that are left in the variance, a pair in one block never shares a
    bucket and a pair in two blocks does with probability 1/m, so that

        Var ||S(d)||^2 = 2 sum over pairs i != j of P(i and j share a bucket) d_i^2 d_j^2  <=  (2 / m) ||d||^4

    whatever d is: large columns, equal blocks and low rank among it. The standard deviation of a squared distance is
    at most ``relative_error(m)`` = sqrt(2 / m), 0.55 % at m = 65,536; one tensor of at most m
    entries has no error at all.

    Sums are float64; the buckets are given back as float32, half the size: the rounding, 6e-8 of a bucket, is 6e-5 of
    the distance of two checkpoints that are a thousandth of their norm apart, and does not grow with m.

    Raises KlrayError for a size that is not a multiple of 64, or weights that are stored as integers.
    """
    if size < 64 or size % 64:
        raise KlrayError(f"scoring.sketch={size}: buckets come in multiples of 64, such as 65536; 0 is no sketch")
    named = parameters(stored)
    buckets = np.zeros(size)
    for name, tensor in named.items():
        _add(buckets, name, tensor)
    return Sketch(buckets.astype(np.float32), f"{size}-v{SKETCH_VERSION}-{fingerprint(named)[:16]}")


def _add(buckets: npt.NDArray[np.float64], name: str, tensor: torch.Tensor) -> None:
    """Add one tensor to its buckets."""
    size = len(buckets)
    digest = hashlib.sha256(f"klray weight sketch {SKETCH_VERSION} {name}".encode()).digest()
    sign_seed, shift_seed = np.frombuffer(digest[:16], "<u8")
    n_blocks = -(-tensor.numel() // size)
    # The upper 32 bits times m, shifted: even to m / 2^32.
    shifts = ((_split_mix(shift_seed, 0, n_blocks) >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)
    for start, values in _signed(tensor, sign_seed, max(size, _AT_ONCE // size * size)):
        for first in range(0, len(values), size):
            block = values[first : first + size]
            shift = int(shifts[(start + first) // size])
            tail = min(size - shift, len(block))
            buckets[shift : shift + tail] += block[:tail]
            buckets[: len(block) - tail] += block[tail:]


def _signed(tensor: torch.Tensor, seed: np.uint64, at_once: int) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of a tensor with their signs, float32 (float64 where it is stored so), and where each begins."""
    flat = tensor.detach().reshape(-1)
    wide = flat.dtype == torch.float64
    for start in range(0, len(flat), at_once):
        part = flat[start : start + at_once].cpu()
        values = (part if wide else part.float()).numpy()  # 16 bits and fewer are float32 without rounding
        n_words = -(-len(values) // 32)
        words = _split_mix(seed, start // 64, -(-n_words // 2)).astype("<u8").view("<i4")[:n_words]
        signs = np.left_shift(words[None, :], _PLACES)
        signs &= _SIGN
        bits = signs.reshape(-1)[: len(values)]
        if wide:
            yield start, (values.view(np.int64) ^ (bits.astype(np.int64) << 32)).view(np.float64)
        else:
            yield start, np.bitwise_xor(values.view(np.int32), bits, out=bits).view(np.float32)


def _split_mix(seed: np.uint64, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Outputs ``first`` to ``first + count`` of SplitMix64 (Steele, Lea and Flood, 2014) from ``seed``."""
    z = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    z *= _GAMMA
    z += seed
    z ^= z >> np.uint64(30)
    z *= _MIX_1
    z ^= z >> np.uint64(27)
    z *= _MIX_2
    z ^= z >> np.uint64(31)
    return z
