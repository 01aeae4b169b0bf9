"""How far the medians of a scale agree with the published ones, in sentences."""

import math

import xarray as xr

from klray.analysis.scale.measuring import ScaleRow, scale_rows
from klray.analysis.scale.published_settings import SOURCE, range_words
from klray.words.numbers import significant

FACTOR = 2.0  # what counts as agreement

WHAT_IT_MEANS = (
    f"The published values ({SOURCE}) are of the authors' models and of 10,000 texts from the Pile. Unless this store "
    "scored the same models on the same texts, a median that agrees confirms nothing by itself and one that does not "
    f"contradicts nothing; agreement here is a ratio within a factor of {FACTOR:g}:"
)


def agreements(result: xr.Dataset) -> list[str]:
    """A sentence for each setting that has pairs and a published value: the ratio, and whether it is within `FACTOR`.

    A published range agrees with every median inside it; outside, the ratio is to its nearer end.
    """
    return [_sentence(row) for row in scale_rows(result) if row.n and not math.isnan(row.published_low)]


def _sentence(row: ScaleRow) -> str:
    low, high, median = row.published_low, row.published_high, row.median
    published = range_words(low, high, " to ")
    if low < high and low <= median <= high:
        return f"{row.setting}: the median of {significant(median)} is inside the published {published}."
    nearer = low if median < low else high
    ratio = median / nearer
    end = "" if low == high else f"{'lower' if nearer == low else 'upper'} end of the "
    verdict = "agrees" if 1 / FACTOR <= ratio <= FACTOR else "does not agree"
    times = f"{significant(ratio, 2)} times the {end}published {published}"
    return f"{row.setting}: the median of {significant(median)} is {times}: {verdict}."
