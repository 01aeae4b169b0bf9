"""Moments of the differences between rows: matrix products, and the differences themselves where products would cancel.

Shapes: I, J = models on the two sides of a tile, N = texts, P = pairs. Rows are log-likelihoods in nats, float32 or
float64, C-contiguous and finite. Everything is summed in float64.

The variance of a pair depends on its two rows alone, to the bit. Every matrix product has one shape, (ROWS, TEXTS) by
(TEXTS, ROWS), filled up with zeros; its operands lie in different memory (NumPy has another routine for x @ x.T);
nothing that depends on other models enters. OpenBLAS then sums each element in the same order wherever it stands, in
any number of threads. With a library that does not, the variance of a pair still keeps to KL_CANCELLATION's bound, but
not to the bit. The fourth moments subtract the tile's mean row, which cancels in differences, and keep to
SE_CANCELLATION's bound.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

ROWS = 128  # models on each side of one matrix product: larger ones waste more on the diagonal
TEXTS = 1024  # texts in one product: the float64 copies of a tile stay small, and short sums round less
DIRECT_VALUES = 2**16  # differences evaluated together: 512 kB stay in a core's cache

# A pair that cancels below this share of its terms is evaluated from its differences. Sums of products err by 3e-15 of
# their terms at worst (one text that outweighs all others), which leaves 6e-11 of a variance (the bar: 1e-10) and 2e-9
# of a standard error (1e-8).
KL_CANCELLATION = 5e-5
SE_CANCELLATION = 1e-6

Moment = Callable[[np.ndarray], np.ndarray]  # (P, N) differences -> (P,)


def variance(rows: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Population variance over texts of l_i - l_j for all pairs: |q_i|^2 + |q_j|^2 - 2 <q_i, q_j>, q = l - mean(l).

    Of ``rows`` (I, N) and ``others`` (J, N), nats; without others among ``rows``, where only i < j is computed, (j, i)
    is its copy and (i, i) is 0. (I, J) float64, nats^2 per text, within 1e-10 relative of the variance of the
    differences, never negative.
    """
    left, right = _Side(rows, powers=1), _Side(rows if others is None else others, powers=1)
    among = others is None
    x, y = left.operand, right.operand
    products = np.zeros((left.padded, right.padded))
    for start in range(0, rows.shape[1], TEXTS):
        left.center_into(x, start)
        right.center_into(y, start)
        left.squares += np.einsum("ij,ij->i", x, x)
        right.squares += np.einsum("ij,ij->i", y, y)
        for i, j in _blocks(left, right, among):
            products[i, j] += x[i] @ y[j].T

    def finish(block: np.ndarray, i: slice, j: slice) -> np.ndarray:
        terms = left.squares[i, None] + right.squares[None, j]
        block *= -2.0
        block += terms
        cancelled: np.ndarray = block < KL_CANCELLATION * terms
        block /= rows.shape[1]
        return cancelled

    return _finished(products, left, right, among, finish, variance_of)


def square_variance(rows: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Population variance over texts of d^2, d = l_i - l_j centred, for all pairs: m4 - m2^2.

    m2 as in ``variance`` and N m4 = S4_i + S4_j - 4 <x_i^3, x_j> - 4 <x_i, x_j^3> + 6 <x_i^2, x_j^2> with S4 = sum x^4.
    x = q - (mean row of the tile): any vector common to both rows cancels in d, and without what all models share the
    sums cancel far less. (I, J) float64, nats^4 per text, within 2e-8 relative of direct evaluation, never negative.
    """
    n_texts = rows.shape[1]
    left, right = _Side(rows, powers=3), _Side(rows if others is None else others, powers=3)
    among = others is None
    cross2, cross4 = np.zeros((left.padded, right.padded)), np.zeros((left.padded, right.padded))
    x, y = left.operand, right.operand
    x3, x1, x2 = x[:, :TEXTS], x[:, TEXTS : 2 * TEXTS], x[:, 2 * TEXTS :]
    y1, y3, y2 = y[:, :TEXTS], y[:, TEXTS : 2 * TEXTS], y[:, 2 * TEXTS :]
    for start in range(0, n_texts, TEXTS):
        left.center_into(x1, start)
        right.center_into(y1, start)
        shared = (x1.sum(axis=0) + y1.sum(axis=0)) / (len(left.rows) + len(right.rows))
        left.fill_powers(x1, x2, x3, shared)
        right.fill_powers(y1, y2, y3, shared)
        for i, j in _blocks(left, right, among):
            cross2[i, j] += x1[i] @ y1[j].T
        x1 *= 4.0
        x3 *= 4.0
        x2 *= -6.0
        for i, j in _blocks(left, right, among):
            cross4[i, j] += x[i] @ y[j].T  # 4 <x^3, y> + 4 <x, y^3> - 6 <x^2, y^2> in one product

    def finish(block: np.ndarray, i: slice, j: slice) -> np.ndarray:
        m2 = (left.squares[i, None] + right.squares[None, j] - 2.0 * cross2[i, j]) / n_texts
        terms = left.fourths[i, None] + right.fourths[None, j]
        np.subtract(terms, block, out=block)
        block /= n_texts
        block -= m2 * m2
        # terms bounds every part: the products by 16, and N m2^2 by 8 (Cauchy-Schwarz)
        return block < (SE_CANCELLATION / n_texts) * terms

    return _finished(cross4, left, right, among, finish, square_variance_of)


def variance_of(differences: np.ndarray) -> np.ndarray:
    """(P, N) differences, nats -> (P,) their population variance over texts, nats^2."""
    n_texts = differences.shape[1]
    means = differences.sum(axis=1) / n_texts
    squares = np.einsum("ij,ij->i", differences, differences) / n_texts
    result = squares - means * means
    # a mean that hides the variance: two models that differ by little more than a constant
    hidden = result < 1e-3 * squares
    if hidden.any():
        centered = differences[hidden] - means[hidden, None]
        result[hidden] = np.einsum("ij,ij->i", centered, centered) / n_texts
    return np.asarray(result)


def square_variance_of(differences: np.ndarray) -> np.ndarray:
    """(P, N) differences, nats, overwritten -> (P,) population variance of their centred squares, m4 - m2^2, nats^4."""
    n_texts = differences.shape[1]
    differences -= differences.sum(axis=1, keepdims=True) / n_texts
    squares = np.square(differences, out=differences)
    squares -= squares.sum(axis=1, keepdims=True) / n_texts
    return np.asarray(np.einsum("ij,ij->i", squares, squares) / n_texts)


def paired(moment: Moment, rows: np.ndarray, others: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """``moment`` of the differences others[j] - rows[i], pair by pair: (P,) positions each, i sorted -> (P,) float64.

    From the values as given: rows centred beforehand would bring their own rounding into differences of 1e-3 nats.
    """
    result = np.empty(len(i))
    step = max(1, DIRECT_VALUES // rows.shape[1])
    first_rows, starts = np.unique(i, return_index=True)
    for row, (start, stop) in zip(first_rows, pairwise([*starts, len(i)]), strict=True):
        subtrahend = rows[row].astype(np.float64, copy=False)
        for begin in range(start, stop, step):
            pairs = slice(begin, min(begin + step, stop))
            differences = others[j[pairs]].astype(np.float64, copy=False)
            differences -= subtrahend
            result[pairs] = moment(differences)
    return result


class _Side:
    """One side of a tile: (I, N) rows, centred in float64 TEXTS at a time, filled up with zeros to a multiple of ROWS.

    ``operand`` (padded, powers TEXTS) is its factor in the matrix products, the same memory for every block of texts.
    """

    def __init__(self, rows: np.ndarray, powers: int):
        self.rows = rows
        self.padded = -(-len(rows) // ROWS) * ROWS
        sums = np.zeros(len(rows))
        for start in range(0, rows.shape[1], TEXTS):
            # the copy makes each row's sum run in the same order in every tile
            sums += rows[:, start : start + TEXTS].astype(np.float64).sum(axis=1)
        self.means = sums / rows.shape[1]
        self.squares = np.zeros(self.padded)  # sums over the texts so far, of the second and the fourth power
        self.fourths = np.zeros(self.padded)
        self.operand = np.zeros((self.padded, powers * TEXTS))

    def center_into(self, out: np.ndarray, start: int) -> None:
        """Write the centred texts from ``start`` on into the first rows of ``out`` (padded, TEXTS)."""
        block = self.rows[:, start : start + TEXTS]
        np.subtract(block, self.means[:, None], out=out[: len(self.rows), : block.shape[1]])
        out[: len(self.rows), block.shape[1] :] = 0.0

    def fill_powers(self, first: np.ndarray, second: np.ndarray, third: np.ndarray, shared: np.ndarray) -> None:
        """Subtract ``shared`` (TEXTS,) from the first powers, fill in the second and third, and sum up."""
        first[: len(self.rows)] -= shared
        np.square(first, out=second)
        np.multiply(first, second, out=third)
        self.squares += np.einsum("ij,ij->i", first, first)
        self.fourths += np.einsum("ij,ij->i", second, second)


def _blocks(left: _Side, right: _Side, among: bool) -> Iterator[tuple[slice, slice]]:
    """Blocks of (ROWS, ROWS); among the same rows only those that touch the upper triangle."""
    for i in range(0, left.padded, ROWS):
        for j in range(i if among else 0, right.padded, ROWS):
            yield slice(i, i + ROWS), slice(j, j + ROWS)


def _finished(
    products: np.ndarray,
    left: _Side,
    right: _Side,
    among: bool,
    finish: Callable[[np.ndarray, slice, slice], np.ndarray],
    moment: Moment,
) -> np.ndarray:
    """Turn sums of products into moments block by block, re-evaluate what cancelled, and mirror among the same rows."""
    for i, j in _blocks(left, right, among):
        block = products[i, j]
        cancelled = finish(block, i, j)
        cancelled = np.triu(cancelled, 1) if among and i == j else cancelled
        first, second = np.nonzero(cancelled[: len(left.rows) - i.start, : len(right.rows) - j.start])
        block[first, second] = paired(moment, left.rows, right.rows, first + i.start, second + j.start)
        if among and i == j:
            upper = np.triu(block, 1)
            block[...] = upper + upper.T
        elif among:
            products[j, i] = block.T
    return np.ascontiguousarray(products[: len(left.rows), : len(right.rows)])
