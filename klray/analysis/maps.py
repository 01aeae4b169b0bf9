"""Maps of the models of a snapshot: which models share a map, and their places on it.

Shapes: K = models, N = texts. A map is distorted by whatever else is on it: layers under a lens are 3 bits/byte apart,
consecutive checkpoints 0.01. So each kind has a map of its own, double-centred over its own models.
"""

import json
from typing import Any

import numpy as np
import xarray as xr

from klray.analysis import embedding
from klray.analysis.facts import own_output
from klray.analysis.kl.centering import double_center
from klray.analysis.relatives import parents

LINEAGE_PERPLEXITY = 20.0  # as in arXiv:2505.15353 for fine-tuned models; 30 for all others
_PAPERS = "arXiv:2505.15353, arXiv:2502.16173"
_TSNE_COMPONENTS = 50  # of a map of more models than an exact decomposition takes

Maps = dict[str, tuple[np.ndarray, dict[str, Any]]]


def maps(values: xr.DataArray, mean_bytes: float, excluded: np.ndarray, perplexity: float, tsne: bool) -> Maps:
    """Places of the models on their maps, (K, 2) by PCA and by t-SNE, with attributes; NaN for who is not on it.

    map_pca, map_tsne: all own outputs, quantised ones among them, without layers under a lens.
    map_lineage_pca, map_lineage_tsne: fine-tuned models and their parents, if there are any.
    map_layers_pca, map_layers_tsne: the layers under a lens, a map for each lens, if there are any.
    t-SNE maps are left out without ``tsne``; those of layers also where a lens has more than 4,096 of them.

    Parameters
    ----------
    values : (K, N) nats, preprocessed, with the coordinates of the models, Dask with texts in one chunk
    mean_bytes : B-bar, mean UTF-8 bytes of a kept text
    excluded : (K,) bool
    perplexity : of map_tsne and map_layers_tsne
    """
    dataset = values.to_dataset(name="log_likelihood")
    own = own_output(dataset) & ~excluded
    found = _described("map", "the map coordinates", *_fitted(values, [own], mean_bytes, perplexity, tsne))
    of = parents(dataset)
    child = (of >= 0) & own
    child[child] = own[of[child]]
    if child.any():
        family = child.copy()
        family[of[child]] = True
        fitted = _fitted(values, [family], mean_bytes, LINEAGE_PERPLEXITY, tsne)
        found |= _described("map_lineage", "fine-tuned models and their parents", *fitted)
    layers = ~own_output(dataset) & ~excluded
    if layers.any():
        lenses = np.array([str(lens) for lens in dataset["lens"].values])
        names = sorted(set(lenses[layers].tolist()))
        groups = [layers & (lenses == name) for name in names]
        small = all(group.sum() <= embedding.EXACT_RANK for group in groups)
        fitted = _fitted(values, groups, mean_bytes, perplexity, tsne and small)
        found |= _described("map_layers", "the layers under a lens", *fitted, lenses=names)
    return found


def _fitted(
    values: xr.DataArray, groups: list[np.ndarray], mean_bytes: float, perplexity: float, tsne: bool
) -> tuple[np.ndarray, np.ndarray | None, list[list[float]], float]:
    """(K, 2) principal components and, with ``tsne``, t-SNE of each group by itself; shares; least perplexity used."""
    pca = np.full((values.shape[0], 2), np.nan)
    points = pca.copy() if tsne else None
    explained, used = [], perplexity
    for group in groups:
        members = np.flatnonzero(group)
        if not len(members):
            explained.append([0.0, 0.0])
            continue
        exact = len(members) <= embedding.EXACT_RANK
        rows = values.data[members]
        coordinates = embedding.map_coordinates(double_center(rows.compute() if exact else rows), mean_bytes)
        components = min(coordinates.shape) if exact else _TSNE_COMPONENTS
        scores, shares = embedding.pca(coordinates, max(2, components))
        pca[members] = scores[:, :2]
        explained.append([float(share) for share in shares[:2]])
        if points is not None:
            points[members], lowered = embedding.tsne(scores, perplexity)
            used = min(used, lowered)
    return pca, points, explained, used


def _described(
    name: str,
    what: str,
    pca: np.ndarray,
    points: np.ndarray | None,
    explained: list[list[float]],
    used: float,
    lenses: list[str] | None = None,
) -> Maps:
    shares: Any = explained[0] if lenses is None else json.dumps(dict(zip(lenses, explained, strict=True)))
    found: Maps = {
        f"{name}_pca": (
            pca,
            {
                "units": "sqrt(bit/byte)",
                "long_name": f"principal components of {what}, whose squared distance is KL",
                "explained_variance_ratio": shares,
                "references": _PAPERS,
            },
        )
    }
    if points is not None:
        attributes = {"units": "1", "long_name": f"t-SNE of {what}", "perplexity": float(used), "references": _PAPERS}
        found[f"{name}_tsne"] = points, attributes
    return found
