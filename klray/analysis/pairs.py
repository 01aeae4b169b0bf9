"""Which pairs of models an analysis computes: all, or those that are looked at.

Shapes: K = models, n = neighbours. KL and standard errors are in bits per byte.
"""

import logging
from typing import Any

import numpy as np
import xarray as xr

from klray.analysis.continuing import known_pairs
from klray.analysis.defaults import ALL_PAIRS_MOST, PAIRS
from klray.analysis.kl.all_pairs import Begun, kl_with_standard_error
from klray.analysis.kl.chosen_pairs import pair_divergence
from klray.analysis.kl.neighbours import nearest
from klray.analysis.kl.tiling import CHUNK, Tiling
from klray.analysis.relatives import parents, unquantised
from klray.errors import KlrayError

logger = logging.getLogger("klray")

Columns = dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]

MATRICES = ("kl", "kl_standard_error")
_KL = {"units": "bit/byte", "references": "arXiv:2505.15353"}


def chosen(asked: str | None, n_models: int) -> str:
    """One of PAIRS: what was asked for, else all pairs of up to ALL_PAIRS_MOST models, and of more the neighbours."""
    if asked is not None and asked not in PAIRS:
        raise KlrayError(f"analysis.pairs={asked}: choose one of {', '.join(PAIRS)}, or leave it unset")
    if asked is None and n_models > ALL_PAIRS_MOST:
        words = "%s models are more than %s: neighbours and the pairs of runs are kept; analysis.pairs=all keeps all"
        logger.warning(words, f"{n_models:,}", f"{ALL_PAIRS_MOST:,}")
        return "neighbours"
    return asked or "all"


def matrices(
    values: xr.DataArray,
    text_bytes: np.ndarray,
    reference: np.ndarray,
    plan: Tiling,
    previous: xr.Dataset | None,
    begun: Begun | None = None,
) -> xr.Dataset:
    """Kl and kl_standard_error (model, other), lazily; those of the first models are those of ``previous``.

    Tiles that ``begun`` has are read there.
    """
    both = kl_with_standard_error(
        values,
        text_bytes,
        reference=reference,
        tile=plan.tile,
        previous=(known_pairs(previous, "kl"), known_pairs(previous, "kl_standard_error")),
        room=plan.room,
        begun=begun,
    )
    return xr.Dataset({str(each.name): each.chunk(min(plan.tile, CHUNK)) for each in both})


def neighbours(
    values: xr.DataArray, text_bytes: np.ndarray, reference: np.ndarray, plan: Tiling, excluded: np.ndarray, n: int
) -> Columns:
    """The n nearest of each model that is not ``excluded`` (K,), of which none is one (model, rank)."""
    if n < 1:
        raise KlrayError(f"analysis.neighbours={n} was asked for: set it to 1 or more")
    included = np.flatnonzero(~excluded)
    rows = values.isel(model=included)
    found = nearest(rows, text_bytes, n, reference=reference, tile=plan.tile, room=plan.room)
    at = np.where(found.position >= 0, included[found.position], -1)
    dims, shape = ("model", "rank"), (len(excluded), n)
    position, kl, error = np.full(shape, -1, dtype=np.int64), np.full(shape, np.nan), np.full(shape, np.nan)
    position[included], kl[included], error[included] = at, found.kl, found.standard_error
    return {
        "neighbour": (
            dims,
            position,
            {"units": "1", "long_name": "position of the nearest models, nearest first; -1 when there is none"},
        ),
        "neighbour_kl": (dims, kl, {**_KL, "long_name": "KL divergence to the nearest models"}),
        "neighbour_kl_standard_error": (dims, error, {**_KL, "long_name": "standard error of neighbour_kl over texts"}),
    }


def relatives(values: xr.DataArray, excluded: np.ndarray, rows_bytes: int) -> Columns:
    """Of each quantised model the KL to its unquantised self, of each fine-tuned one that to its parent (model)."""
    of = unquantised(values.to_dataset(name="log_likelihood"), excluded)
    of = np.where(of >= 0, of, parents(values.to_dataset(name="log_likelihood")))
    of[excluded] = -1
    of[(of >= 0) & excluded[of]] = -1
    models = np.flatnonzero(of >= 0)
    kl, error = np.full((2, len(of)), np.nan)
    kl[models], error[models] = pair_divergence(values, np.stack([models, of[models]], axis=1), rows_bytes)
    whose = "the unquantised self of a quantised model, or the parent of a fine-tuned one"
    return {
        "relative": (("model",), of, {"units": "1", "long_name": f"position of {whose}; -1 when there is none"}),
        "relative_kl": (("model",), kl, {**_KL, "long_name": f"KL divergence to {whose}"}),
        "relative_kl_standard_error": (("model",), error, {**_KL, "long_name": "standard error of relative_kl"}),
    }


def relative_divergence(result: xr.Dataset, models: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL and standard error of models and the relatives that a result knows of, (P,) each, by positions."""
    if "relative_kl" in result:
        known = result["relative"].values[models] == of
        names = ("relative_kl", "relative_kl_standard_error")
        kl, error = (np.where(known, result[name].values[models], np.nan) for name in names)
        return kl, error
    pairs = {"model": xr.DataArray(models, dims="pair"), "other": xr.DataArray(of, dims="pair")}
    kl, error = (result[name].isel(pairs).values for name in ("kl", "kl_standard_error"))
    return kl, error
