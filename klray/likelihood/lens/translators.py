"""The affine maps of a tuned lens: apply, fingerprint, save, load; also those that the tuned-lens package published.

h + A h + b for the hidden state h of each layer but the last (arXiv 2303.08112, parametrised as in its package so that
zeros are the logit lens). Shape suffixes: L layers, D width of the hidden states.
"""

import hashlib
import json
import pickle
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from klray.checkpoints.causes import first_line
from klray.checkpoints.local_folder import CONFIG_BYTES
from klray.errors import CheckpointError, KlrayError
from klray.words.numbers import counted
from klray.words.outside import contents, parsed

FACTS = "lens.json"
WEIGHTS = "lens.safetensors"
FORMAT = 1
# Of the tuned-lens package: a config and the state of a ModuleList of Linear layers, "0.weight", "0.bias", "1.weight".
PUBLISHED_CONFIG = "config.json"
PUBLISHED_WEIGHTS = "params.pt"
PUBLISHED_KIND = "linear_tuned_lens"
_BEGUN = ".lens-"  # begins the name of a file that is being written


@dataclass(frozen=True, eq=False)
class Translators:
    """The maps of L layers, fp32: A and b of each, layer 0 being the embedding output.

    ``facts`` say what it was trained on and how: JSON values, not part of the fingerprint.
    """

    matrices_LDD: torch.Tensor
    biases_LD: torch.Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def zeros(cls, n_layers: int, width: int) -> "Translators":
        """Maps that change nothing: with them a tuned lens is the logit lens."""
        return cls(torch.zeros(n_layers, width, width), torch.zeros(n_layers, width))

    @property
    def n_layers(self) -> int:
        """L: the layers that are moved; the last layer's output is not."""
        return len(self.matrices_LDD)

    @property
    def width(self) -> int:
        """D, width of the hidden states."""
        return self.matrices_LDD.shape[-1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the numbers, 64 hex digits: their shape, then matrices and biases as little-endian float32."""
        digest = hashlib.sha256(json.dumps([self.n_layers, self.width]).encode())
        for tensor in (self.matrices_LDD, self.biases_LD):
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype="<f4").tobytes())
        return digest.hexdigest()

    def check(self, model: str, n_layers: int, width: int) -> None:
        """Raise CheckpointError (load_failed) unless the model has ``n_layers`` layers of ``width``."""
        if (n_layers, width) != (self.n_layers, self.width):
            raise CheckpointError(
                f"the tuned lens is for {counted(self.n_layers, 'layer')} of width {self.width:,}, {model} has "
                f"{n_layers} of width {width:,}: train a lens for it with klray lens, or use scoring.lens=logit",
                "load_failed",
            )

    def apply(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden h -> h + A h + b for hidden states (..., D) of one layer, in fp32, given back in their dtype."""
        wide = hidden.to(self.matrices_LDD.device).float()
        moved = torch.nn.functional.linear(wide, self.matrices_LDD[layer], self.biases_LD[layer])
        return (wide + moved).to(hidden.dtype)

    def to(self, device: torch.device | str) -> "Translators":
        """The same maps on a device."""
        return Translators(self.matrices_LDD.to(device), self.biases_LD.to(device), self.facts)

    def save(self, folder: str | Path) -> None:
        """Write ``lens.safetensors`` and ``lens.json`` (fingerprint and facts) into a folder, made if it is not there.

        Each is written under another name first, ``lens.json`` last: it says that the folder is whole. What a process
        that was stopped left is no lens, and `is_unfinished`. Raises KlrayError if another lens is there already:
        columns may name it; and if the place takes no files, or is full.
        """
        place = Path(folder)
        if (place / FACTS).exists():
            if (there := load_translators(place).fingerprint) != self.fingerprint:
                raise KlrayError(f"{place} holds another tuned lens (tuned-{there[:8]}): choose another folder")
            return
        begun = place / f"{_BEGUN}{uuid.uuid4().hex}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            self._write(place, begun)
        except (OSError, SafetensorError) as error:
            begun.unlink(missing_ok=True)
            raise KlrayError(
                f"{place}: the lens cannot be written ({error}): make room there, or choose another"
            ) from error

    def _write(self, place: Path, begun: Path) -> None:
        tensors = {"matrices": self.matrices_LDD, "biases": self.biases_LD}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, begun)
        begun.replace(place / WEIGHTS)
        shape = {"layers": self.n_layers, "width": self.width}
        facts = {"format": FORMAT, **shape, "fingerprint": self.fingerprint, "facts": self.facts}
        begun.write_text(json.dumps(facts, indent=1), "utf-8")
        begun.replace(place / FACTS)


def is_unfinished(folder: str | Path) -> bool:
    """Whether there is nothing in a folder but what ``Translators.save`` had written when it was stopped."""
    names = {each.name for each in Path(folder).iterdir()}
    return FACTS not in names and all(name == WEIGHTS or name.startswith(_BEGUN) for name in names)


# What reading other bytes than a lens raises: torch's own reader of pickles runs out of them, or of its stack.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(SafetensorError, pickle.UnpicklingError),
)


def load_translators(folder: str | Path) -> Translators:
    """A tuned lens from a folder: one of klray's, or a published one of the tuned-lens package.

    The latter is read with ``weights_only``: it cannot run code. Raises KlrayError if no lens is there, it is damaged,
    or it is of an unknown kind.
    """
    place = Path(folder)
    files = {name for name in (FACTS, WEIGHTS, PUBLISHED_CONFIG, PUBLISHED_WEIGHTS) if (place / name).is_file()}
    try:
        if {FACTS, WEIGHTS} <= files:
            return _load_own(place)
        if {PUBLISHED_CONFIG, PUBLISHED_WEIGHTS} <= files:
            return _load_published(place)
    except KlrayError:
        raise
    except _UNREADABLE as error:
        found = f"{type(error).__name__}: {first_line(error)}"
        raise KlrayError(f"the tuned lens in {place} cannot be read ({found}): fetch or train it again") from error
    raise KlrayError(
        f"{place} holds no tuned lens: neither {FACTS} and {WEIGHTS} (klray lens) nor {PUBLISHED_CONFIG} and "
        f"{PUBLISHED_WEIGHTS} (the tuned-lens package), only {', '.join(sorted(files)) or 'none of these'}; "
        "name the folder of a lens, or use scoring.lens=logit"
    )


def _load_own(place: Path) -> Translators:
    facts = parsed(contents(place / FACTS, CONFIG_BYTES))
    if facts["format"] != FORMAT:
        raise KlrayError(f"{place / FACTS} is of format {facts['format']}, this klray reads {FORMAT}: update klray")
    if not isinstance(facts["facts"], dict):
        raise ValueError("its facts are no JSON object")
    tensors = load_file(place / WEIGHTS)
    found = Translators(tensors["matrices"].float(), tensors["biases"].float(), facts["facts"])
    if found.fingerprint != facts["fingerprint"]:
        raise KlrayError(
            f"the tuned lens in {place} is damaged: its numbers have fingerprint {found.fingerprint[:8]}, "
            f"{FACTS} says {facts['fingerprint'][:8]}; train it again"
        )
    return found


def _load_published(place: Path) -> Translators:
    config = parsed(contents(place / PUBLISHED_CONFIG, CONFIG_BYTES))
    kind = config.get("lens_type", PUBLISHED_KIND)
    if kind != PUBLISHED_KIND:
        raise KlrayError(f"the lens in {place} is of type {kind!r}, klray reads {PUBLISHED_KIND}: use another lens")
    n_layers, width = int(config["num_hidden_layers"]), int(config["d_model"])
    state = torch.load(place / PUBLISHED_WEIGHTS, map_location="cpu", weights_only=True)
    expected = {f"{layer}.weight" for layer in range(n_layers)}
    expected |= {f"{layer}.bias" for layer in range(n_layers)} if config.get("bias", True) else set()
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)
        raise KlrayError(
            f"the lens in {place} does not hold {n_layers} layers as its config says: {', '.join(odd[:4])} "
            f"{'are' if len(odd) > 1 else 'is'} missing or not known; it may be of another version of tuned-lens"
        )
    matrices = torch.stack([state[f"{layer}.weight"].float() for layer in range(n_layers)])
    nothing = torch.zeros(width)
    biases = torch.stack([state.get(f"{layer}.bias", nothing).float() for layer in range(n_layers)])
    if matrices.shape != (n_layers, width, width) or biases.shape != (n_layers, width):
        raise KlrayError(
            f"the lens in {place} has matrices of shape {tuple(matrices.shape[1:])}, its config says width {width:,}"
        )
    base = {"repository": "base_model_name_or_path", "revision": "base_model_revision"}
    return Translators(
        matrices, biases, {**{name: config.get(key) or "" for name, key in base.items()}, "published": True}
    )
