"""The models of a snapshot as the scale looks at them: plain ones, quantised ones, layers under a lens.

Shapes: K = models of the snapshot.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from klray.analysis.facts import facts, own_output, quantised, strings, usual_dtype
from klray.analysis.relatives import finals, unquantised
from klray.analysis.runs import Run, runs

_TOLD = ("repository", "revision", "commit", "base_model", "base_revision", "relation")
_VARIANTS = ("architecture", "dtype", "quantization", "stored_quantization", "lens")


@dataclass(frozen=True)
class Models:
    """Facts of all models, (K,) each, and which of them are compared as what."""

    labels: dict[str, np.ndarray]  # (K,) str by coordinate of the snapshot, "" where it does not say
    layers: np.ndarray  # (K,) int64, -1 for a model's own output
    excluded: np.ndarray  # (K,) bool
    dtype: str  # in which plain models are compared: the one that most of them have
    plain: np.ndarray  # (K,) bool: own output, neither quantised nor excluded, of the one dtype: nothing counts twice
    selves: np.ndarray  # (K,) int64, position of each quantised model's unquantised self, -1 where there is none
    runs: list[Run]  # plain checkpoints of each pretraining run; what was made from another model is none
    # Final plain checkpoint by repository, which "fine-tuning", "intra-type", "random" compare; quantised copies of
    # another model, such as GGUF files, are not among them
    finals: dict[str, int]
    copies: np.ndarray  # (C,) int64, positions of these copies

    @classmethod
    def of(cls, dataset: xr.Dataset, excluded: np.ndarray | None = None) -> "Models":
        """The models of a snapshot, of which those ``excluded`` (K,) are left out of every pair."""
        excluded = (
            np.zeros(dataset.sizes["model"], dtype=bool) if excluded is None else np.asarray(excluded, dtype=bool)
        )
        labels = {name: strings(dataset, name) for name in (*_TOLD, *_VARIANTS)}
        plain = own_output(dataset) & ~quantised(dataset) & ~excluded
        dtype = usual_dtype(labels["dtype"], plain)
        plain &= labels["dtype"] == dtype
        copies = plain & (labels["relation"] == "quantized")
        pretrained = plain & (labels["base_model"] == "") & (strings(dataset, "parents") == "")
        pretraining = (run.at(pretrained[run.models]) for run in runs(dataset, excluded))
        return cls(
            labels=labels,
            layers=facts(dataset, "layer", -1),
            excluded=excluded,
            dtype=dtype,
            plain=plain,
            selves=unquantised(dataset, excluded),
            runs=sorted((run for run in pretraining if len(run.models)), key=lambda run: run.models.min()),
            finals=finals(dataset, plain & ~copies),
            copies=np.flatnonzero(copies),
        )
