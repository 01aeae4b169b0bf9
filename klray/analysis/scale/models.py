"""The models of a snapshot as the scale looks at them: plain ones, quantised ones, layers under a lens.

Shapes: K = models of the snapshot.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import xarray as xr

_LABELS = ("repository", "revision", "commit", "family", "run", "size", "base_model", "base_revision", "parents")
_VARIANTS = ("relation", "architecture", "dtype", "quantization", "lens")
_NUMBERS = ("step", "seed", "layer")


@dataclass(frozen=True)
class Models:
    """Facts of all models, (K,) each, and which of them are excluded.

    Attributes
    ----------
    labels : str -> (K,) str
        Coordinates of the snapshot, "" where it does not say.
    numbers : str -> (K,) int64
        ``step``, ``seed`` and ``layer``, -1 where there is none.
    excluded : (K,) bool
    dtype : str
        The dtype in which plain models are compared: the one that most of them have.
    """

    labels: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]
    excluded: np.ndarray
    dtype: str

    @classmethod
    def of(cls, dataset: xr.Dataset, excluded: np.ndarray | None = None) -> Models:
        """The models of a snapshot, of which those ``excluded`` (K,) are left out of every pair."""
        n_models = dataset.sizes["model"]
        labels = {
            name: np.array(
                [str(value) for value in dataset[name].values] if name in dataset.coords else [""] * n_models
            )
            for name in (*_LABELS, *_VARIANTS)
        }
        numbers = {
            name: dataset[name].values.astype(np.int64) if name in dataset.coords else np.full(n_models, -1)
            for name in _NUMBERS
        }
        excluded = np.zeros(n_models, dtype=bool) if excluded is None else np.asarray(excluded, dtype=bool)
        unchanged = _none(labels["quantization"]) & _none(labels["lens"]) & (numbers["layer"] < 0)
        dtypes = Counter(labels["dtype"][unchanged & ~excluded].tolist())
        return cls(labels, numbers, excluded, dtypes.most_common(1)[0][0] if dtypes else "")

    @property
    def unquantized(self) -> np.ndarray:
        """(K,) bool: a model's own output, not quantised, in any dtype, and not excluded."""
        whole = _none(self.labels["quantization"]) & _none(self.labels["lens"]) & (self.numbers["layer"] < 0)
        return whole & ~self.excluded

    @property
    def plain(self) -> np.ndarray:
        """(K,) bool: ``unquantized`` and of the one dtype, so that no checkpoint is counted twice."""
        return self.unquantized & (self.labels["dtype"] == self.dtype)

    def runs(self) -> dict[str, np.ndarray]:
        """Positions of the plain checkpoints of each pretraining run in the order of their steps.

        Of several at one step the last stands. What was made from another model is no pretraining run.
        """
        found: dict[str, dict[int, int]] = {}
        pretrained = (self.labels["base_model"] == "") & (self.labels["parents"] == "")
        stepped = (self.labels["run"] != "") & (self.numbers["step"] >= 0)
        for place in np.flatnonzero(self.plain & pretrained & stepped).tolist():
            found.setdefault(str(self.labels["run"][place]), {})[int(self.numbers["step"][place])] = place
        return {run: np.array([places[step] for step in sorted(places)]) for run, places in found.items()}

    def finals(self) -> dict[str, int]:
        """Where each repository's final plain checkpoint is: ``main``, else its highest step, else its last row.

        These are the distinct models that "fine-tuning", "intra-type" and "random" are about.
        """
        found: dict[str, tuple[bool, int, int]] = {}
        for place in np.flatnonzero(self.plain).tolist():
            repository = str(self.labels["repository"][place])
            rank = (bool(self.labels["revision"][place] == "main"), int(self.numbers["step"][place]), place)
            found[repository] = max(rank, found.get(repository, rank))
        return {repository: place for repository, (_, _, place) in found.items()}


def _none(values: np.ndarray) -> np.ndarray:
    return np.isin(values, ("", "none"))
