"""Moments of the differences between rows: matrix products, and the differences themselves where products would cancel.

Shapes: I, J = models on the two sides of a tile, N = texts, P = pairs. Rows are log-likelihoods in nats, float32 or
float64, C-contiguous and finite. Everything is summed in float64.

The moments of a pair depend on its two rows and the reference alone, to the bit. Every matrix product is of (m, TEXTS)
by (TEXTS, n), m and n multiples of ROWS, filled up with zeros; its operands lie in different memory (NumPy has another
routine for x @ x.T); nothing that depends on other models enters. OpenBLAS then sums each element in the same order
wherever it stands, in a product of any of these sizes and in any number of threads. With a library that does not, a
pair still keeps to the bounds below, but not to the bit.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

ROWS = 128  # rows of the smallest product: what is filled up on each side, and computed twice on the diagonal
MOST_ROWS = 1024  # of the largest: small ones cost up to half as much again (docs/measurements.md)
TEXTS = 1024  # texts in one product: the float64 copies of a tile stay small, and short sums round less
FINISHED = 256  # rows of a block of sums that is finished: 512 kB stay in a core's cache
DIRECT_VALUES = 2**16  # differences evaluated together: 512 kB stay in a core's cache

# A pair that cancels below this share of its terms is evaluated from its differences. Sums of products err by 3e-15 of
# their terms at worst (one text that outweighs all others), which leaves 6e-11 of a variance (the bar: 1e-10) and 2e-9
# of a standard error (1e-8).
KL_CANCELLATION = 5e-5
SE_CANCELLATION = 1e-6
# So is one whose variance is below this share of the squares of its values as they are given: to subtract the mean and
# the reference rounds each value by 2e-16 of it, 2e-11 of such a difference.
ROUNDED = 1e-10

_ROOT = 1.5**0.5

Moment = Callable[[np.ndarray], np.ndarray]  # (P, N) differences -> (P,)


def variance(rows: np.ndarray, others: np.ndarray | None = None, reference: np.ndarray | None = None) -> np.ndarray:
    """Population variance over texts of l_i - l_j for all pairs: |x_i|^2 + |x_j|^2 - 2 <x_i, x_j>, x = l - mean(l) - r.

    Of ``rows`` (I, N) and ``others`` (J, N), nats; without others among ``rows``, where only i < j is computed, (j, i)
    is its copy and (i, i) is 0. The ``reference`` r (N,), nats, cancels in every difference; without one it is 0. One
    that is near to the models leaves fewer pairs to be evaluated from their differences, which takes 50 times as long.
    (I, J) float64, nats^2 per text, within 1e-10 relative of the variance of the differences, never negative.
    """
    left, right = _Side(rows, powers=1), _Side(rows if others is None else others, powers=1)
    products = _Sums(left, right, among=others is None)
    for start in range(0, rows.shape[1], TEXTS):
        for side in (left, right):
            side.center(start, side.operands[0])
            side.subtract(side.operands[0], None if reference is None else reference[start : start + TEXTS])
        products.add((left.operands[0], right.operands[0]))
    _finish_variance(products)
    return products.result()


def variances(
    rows: np.ndarray, others: np.ndarray | None = None, reference: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Population variances over texts of d = l_i - l_j, centred, and of d^2, which is m4 - m2^2, for all pairs.

    m2 as in ``variance`` and N m4 = S4_i + S4_j - 4 <x_i^3, x_j> - 4 <x_i, x_j^3> + 6 <x_i^2, x_j^2> with S4 = sum x^4.
    Without a ``reference`` it is the mean row of the tile, because the sums cancel far less without what all models
    share; the bits of a pair then depend on its tile. (I, J) float64 each, nats^2 and nats^4 per text, the second
    within 2e-8 relative of direct evaluation, never negative.
    """
    left, right = _Side(rows, powers=3), _Side(rows if others is None else others, powers=3)
    squares, fourths = (_Sums(left, right, among=others is None) for _ in range(2))
    (x1, x2, x3), (y1, y2, y3) = left.operands, right.operands
    for start in range(0, rows.shape[1], TEXTS):
        left.center(start, x1)
        right.center(start, y1)
        if reference is None:
            shared = (x1.sum(axis=0) + y1.sum(axis=0)) / (len(left.rows) + len(right.rows))
        else:
            shared = reference[start : start + TEXTS]
        left.subtract(x1, shared)
        right.subtract(y1, shared)
        left.raise_to_powers(x1, x2, x3)
        right.raise_to_powers(y1, y2, y3)
        squares.add((x1, y1))
        # each step alike for both sides: whichever a model is on, the bits are the same
        fourths.add((x3, y1), (x1, y3))
        x2 *= _ROOT
        y2 *= -_ROOT
        fourths.add((x2, y2))
    _finish_square_variance(fourths, squares)
    _finish_variance(squares)
    return squares.result(), fourths.result()


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

    ``operands`` (powers, padded, TEXTS) are its factors in the products, the same memory for all blocks of texts.
    """

    def __init__(self, rows: np.ndarray, powers: int):
        self.rows = rows
        self.padded = -(-len(rows) // ROWS) * ROWS
        sums = np.zeros(len(rows))
        self.given = np.zeros(self.padded)  # sums over texts of the squares of the values as they are given
        for start in range(0, rows.shape[1], TEXTS):
            # the copy makes each row's sum run in the same order in every tile
            block = rows[:, start : start + TEXTS].astype(np.float64)
            sums += block.sum(axis=1)
            self.given[: len(rows)] += np.einsum("ij,ij->i", block, block)
        self.means = sums / rows.shape[1]
        self.squares = np.zeros(self.padded)  # sums over the texts so far, of the second and the fourth power
        self.fourths = np.zeros(self.padded)
        self.operands = np.zeros((powers, self.padded, TEXTS))

    def center(self, start: int, out: np.ndarray) -> None:
        """Write the texts from ``start`` on, less each row's mean, into the first rows of ``out`` (padded, TEXTS)."""
        block = self.rows[:, start : start + TEXTS]
        np.subtract(block, self.means[:, None], out=out[: len(self.rows), : block.shape[1]])
        out[: len(self.rows), block.shape[1] :] = 0.0

    def subtract(self, first: np.ndarray, shared: np.ndarray | None) -> None:
        """Subtract what is shared, (TEXTS,) or fewer at the end, from the first powers, and sum up their squares."""
        if shared is not None:
            first[: len(self.rows), : len(shared)] -= shared
        self.squares += np.einsum("ij,ij->i", first, first)

    def raise_to_powers(self, first: np.ndarray, second: np.ndarray, third: np.ndarray) -> None:
        """Fill in the second and third powers, and sum up the fourth."""
        np.square(first, out=second)
        np.multiply(first, second, out=third)
        self.fourths += np.einsum("ij,ij->i", second, second)


class _Sums:
    """Sums of products of the two sides of a tile; among the same rows only of its upper triangle."""

    def __init__(self, left: _Side, right: _Side, among: bool):
        self.left, self.right, self.among = left, right, among
        self.values = np.zeros((left.padded, right.padded))
        self._rooms = np.empty((2, min(left.padded, MOST_ROWS) * min(right.padded, MOST_ROWS)))

    def add(self, *factors: tuple[np.ndarray, np.ndarray]) -> None:
        """Add the sum of x @ y.T of one or two pairs of factors, (padded, TEXTS) each."""
        for i, j in self._blocks(MOST_ROWS):
            into = self.values[i, j]
            first, *second = (
                np.matmul(x[i], y[j].T, out=room[: into.size].reshape(into.shape))
                for (x, y), room in zip(factors, self._rooms, strict=False)
            )
            for product in second:
                first += product
            into += first

    def finish(self, block: Callable[[np.ndarray, slice, slice], np.ndarray], moment: Moment) -> None:
        """Turn sums into moments block by block, evaluate again what ``block`` says cancelled, and mirror."""
        for i, j in self._blocks(FINISHED):
            values = self.values[i, j]
            cancelled = block(values, i, j)
            cancelled = np.triu(cancelled, 1) if self.among and i == j else cancelled
            rows, others = self.left.rows, self.right.rows
            first, second = np.nonzero(cancelled[: len(rows) - i.start, : len(others) - j.start])
            values[first, second] = paired(moment, rows, others, first + i.start, second + j.start)
            if self.among and i == j:
                upper = np.triu(values, 1)
                values[...] = upper + upper.T
            elif self.among:
                self.values[j, i] = values.T

    def result(self) -> np.ndarray:
        """(I, J), without what was filled up."""
        return self.values[: len(self.left.rows), : len(self.right.rows)]

    def _blocks(self, most: int) -> Iterator[tuple[slice, slice]]:
        """Blocks of ``most`` rows on each side; among the same rows of what touches the upper triangle."""
        for i in range(0, self.left.padded, most):
            side = slice(i, min(i + most, self.left.padded))
            if self.among:
                yield from _triangle(side)
            for j in range(i + most if self.among else 0, self.right.padded, most):
                yield side, slice(j, min(j + most, self.right.padded))


def _triangle(side: slice) -> Iterator[tuple[slice, slice]]:
    """Blocks that cover the pairs of one side: its halves beside each other, and each half by itself, down to ROWS."""
    half = side.start + (side.stop - side.start) // (2 * ROWS) * ROWS
    if half == side.start:
        yield side, side
        return
    first, second = slice(side.start, half), slice(half, side.stop)
    yield first, second
    yield from _triangle(first)
    yield from _triangle(second)


def _finish_variance(sums: _Sums) -> None:
    left, right, n_texts = sums.left, sums.right, sums.left.rows.shape[1]

    def block(values: np.ndarray, i: slice, j: slice) -> np.ndarray:
        terms = left.squares[i, None] + right.squares[None, j]
        values *= -2.0
        values += terms
        terms *= KL_CANCELLATION
        np.maximum(terms, ROUNDED * (left.given[i, None] + right.given[None, j]), out=terms)
        cancelled: np.ndarray = values < terms
        values /= n_texts
        return cancelled

    sums.finish(block, variance_of)


def _finish_square_variance(sums: _Sums, of_squares: _Sums) -> None:
    """Of the fourth powers, with the products of the first, which are not finished yet."""
    left, right, n_texts = sums.left, sums.right, sums.left.rows.shape[1]

    def block(values: np.ndarray, i: slice, j: slice) -> np.ndarray:
        variance = -2.0 * of_squares.values[i, j]
        variance += left.squares[i, None] + right.squares[None, j]
        variance /= n_texts
        terms = left.fourths[i, None] + right.fourths[None, j]
        values *= -4.0
        values += terms
        values /= n_texts
        values -= variance * variance
        # terms bounds every part: the products by 16, and N m2^2 by 8 (Cauchy-Schwarz)
        terms *= SE_CANCELLATION / n_texts
        cancelled: np.ndarray = values < terms
        cancelled |= variance < ROUNDED / n_texts * (left.given[i, None] + right.given[None, j])
        return cancelled

    sums.finish(block, square_variance_of)
