"""Maps of models: coordinates whose squared distance is KL, their principal components, and t-SNE.

Shapes: K = models, N = texts. Source: arXiv:2502.16173 and arXiv:2505.15353.
"""

from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from klray.analysis.kl.centering import Values
from klray.errors import KlrayError, lacks
from klray.units import kl_per_variance

EXACT_RANK = 4096  # largest side of a Gram matrix to be decomposed whole: 134 MB, half a minute on 2 cores
_OVERSAMPLING = 8  # directions iterated beyond those asked for: convergence goes by the gap behind them
_MAX_PASSES = 50
_TOLERANCE = 1e-9  # relative change of a singular value that ends the iteration
_MIN_TSNE_MODELS = 4
# scikit-learn (1.9) divides by the spread, whose square it has in float32: where that is 0, the process is gone
_TSNE_LEAST = 1e-9


class PrincipalComponents(NamedTuple):
    """Scores (K, n) in the unit of the coordinates, and the share of the variance that each explains, (n,)."""

    scores: np.ndarray
    explained: np.ndarray


class TsneMap(NamedTuple):
    """Points (K, 2), dimensionless, NaN with too few models; and the perplexity that was used."""

    points: np.ndarray
    perplexity: float


def map_coordinates(double_centered: Values, mean_bytes: float) -> Values:
    """Coordinates q / sqrt(2 N B-bar ln 2): their squared Euclidean distances are KL in bits/byte, arXiv:2505.15353.

    Parameters
    ----------
    double_centered : (K, N) nats, NumPy, Dask or xarray
    mean_bytes : float
        B-bar, mean UTF-8 bytes of a text.

    Returns
    -------
    (K, N) of the same kind, in sqrt(bits/byte).
    """
    values: Any = double_centered
    scaled: Values = values * np.sqrt(kl_per_variance(mean_bytes) / values.shape[1])
    return scaled


def pca(coordinates: Any, n: int = 2) -> PrincipalComponents:
    """First ``n`` principal components of (K, N) coordinates, NumPy or Dask; the largest score of each is positive.

    Exact, by the Gram matrix of the smaller side, up to 4,096 models or texts; beyond, orthogonal iteration from a
    fixed start until the singular values settle to 1e-9, one pass over the rows each. Components beyond the rank are 0.
    """
    centered = coordinates - coordinates.mean(axis=0)
    k, n_texts = centered.shape
    if k <= min(n_texts, EXACT_RANK):
        gram = np.asarray(centered @ centered.T)
        values, vectors = _largest(gram, n)
        total, scores = float(np.trace(gram)), vectors * np.sqrt(values)
    elif n_texts <= EXACT_RANK:
        gram = np.asarray(centered.T @ centered)
        values, vectors = _largest(gram, n)
        total, scores = float(np.trace(gram)), np.asarray(centered @ vectors)
    else:
        values, vectors = _iterated(da.asarray(centered), n)
        total, scores = float((centered * centered).sum()), np.asarray(centered @ vectors)
    padding = n - len(values)
    scores, values = np.pad(scores, ((0, 0), (0, padding))), np.pad(values, (0, padding))
    largest = scores[np.argmax(np.abs(scores), axis=0), np.arange(n)]
    scores = np.where(largest < 0, -scores, scores)
    return PrincipalComponents(scores, values / total if total > 0 else values)


def tsne(coordinates: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> TsneMap:
    """t-SNE of (K, d) coordinates into the plane: init = pca, learning rate auto, as in arXiv:2505.15353.

    Perplexity is lowered to (K - 1) / 3 where it is larger. Up to 4,096 models the same input and seed give the same
    map: one thread sums in one order, and as many models take it seconds. Models that are all at one place stay there.

    Raises
    ------
    KlrayError
        scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE  # noqa: PLC0415 - an extra: a third of an analyst's installation
    except ModuleNotFoundError as error:
        raise KlrayError(lacks(error)) from error
    n_models = len(coordinates)
    used = min(float(perplexity), (n_models - 1) / 3)
    if n_models < _MIN_TSNE_MODELS:
        return TsneMap(np.full((n_models, 2), np.nan), used)
    spread = float(np.ptp(coordinates, axis=0).max(initial=0.0))
    if spread == 0.0:
        return TsneMap(np.zeros((n_models, 2)), used)
    if not _TSNE_LEAST < spread < 1 / _TSNE_LEAST:  # the map knows no scale
        coordinates = (coordinates - coordinates.mean(axis=0)) / spread
    model = TSNE(perplexity=used, init="pca", learning_rate="auto", random_state=seed)
    with threadpool_limits(1 if n_models <= EXACT_RANK else None):
        points = model.fit_transform(coordinates)
    return TsneMap(np.asarray(points, dtype=np.float64), used)


def _largest(gram: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest eigenvalues of a Gram matrix, those below rounding set to 0, and their vectors in columns."""
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:n], vectors[:, ::-1][:, :n]
    floor = max(float(values[0]), 0.0) * len(gram) * np.finfo(np.float64).eps
    return np.where(values > floor, values, 0.0), vectors


def _iterated(centered: da.Array, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest eigenvalues of centered.T @ centered and their vectors (N, n), by orthogonal iteration."""
    start = np.random.default_rng(0).normal(size=(centered.shape[1], n + _OVERSAMPLING))
    basis = np.linalg.qr(start)[0]
    settled = np.zeros(n)
    for _ in range(_MAX_PASSES):
        image = (centered.T @ (centered @ basis)).compute()
        values, rotation = _largest(basis.T @ image, n)
        vectors = basis @ rotation
        if np.all(np.abs(values - settled) <= 2 * _TOLERANCE * values):
            break
        settled = values
        basis = np.linalg.qr(image)[0]
    return values, vectors
