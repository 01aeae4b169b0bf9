"""Where a KL falls on the scale: which settings it is like."""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from klray.analysis.facts import recorded
from klray.analysis.scale.measuring import scale_rows, setting_kl
from klray.analysis.scale.published_settings import PUBLISHED_SPACING, SETTINGS, SOURCE, setting_named
from klray.errors import KlrayError
from klray.words.numbers import counted, significant

NEAR = math.log(1.25)  # settings that are no more than a quarter farther off than the nearest are named beside it
FAR = math.log(1.5)  # farther from every setting, a number is like none of them
QUANTILE_PAIRS = 5  # fewer pairs say nothing about a share


@dataclass(frozen=True)
class Neighbour:
    """One setting as seen from a number; ``low`` and ``high``, bits/byte, are its median twice or a published range."""

    setting: str
    phrase: str  # what it is, after "like"
    low: float
    high: float
    log_ratio: float  # ln of the number over the nearer of the two; 0 within the range, -inf for a number of 0
    quantile: float | None = None  # share of the pairs with a smaller KL, ties by half; None with published values
    n: int = 0  # pairs of the setting; 0 with published values


@dataclass(frozen=True, repr=False)
class Placement:
    """Where a KL, in bits/byte, falls. ``neighbours`` are all settings, the nearest in log KL first."""

    kl: float
    neighbours: tuple[Neighbour, ...]
    source: str

    @property
    def nearest(self) -> Neighbour:
        """The setting whose KL is nearest in ratio."""
        return self.neighbours[0]

    def __repr__(self) -> str:
        return f"{significant(self.kl)} bits/byte: {self._likeness()} [{self.source}]"

    def _likeness(self) -> str:
        if self.kl == 0:
            return f"no difference at all; the smallest setting is {_words(self.nearest)}"
        least = abs(self.nearest.log_ratio)
        if least > FAR:
            far = "times more than" if self.nearest.log_ratio > 0 else "times less than"
            return f"{significant(math.exp(least), 2)} {far} {_words(self.nearest)}, the nearest setting"
        near = [each for each in self.neighbours[:3] if abs(each.log_ratio) <= least + NEAR]
        return "like " + ", or ".join(_words(each) for each in near)


def place(kl: float, scale: xr.Dataset | None = None) -> Placement:
    """Where a KL divergence falls among the settings of the scale.

    >>> place(1.0)
    1.00 bits/byte: like taking another model of the same architecture (0.95) [arXiv:2505.15353]

    ``kl`` is in bits per byte, 0 or more. ``scale`` is a result of ``klray scale``
    (``klray.open_result(url, "scale")``): its medians count, and the quantile of ``kl`` among each setting's pairs;
    without it, the published values of arXiv:2505.15353. KlrayError where ``kl`` is negative, infinite or no number,
    or ``scale`` is no such result or has no pairs.
    """
    try:
        kl = float(kl)
    except (TypeError, ValueError) as error:
        raise KlrayError(f"kl={kl!r} is no number: pass a KL divergence in bits per byte") from error
    if not math.isfinite(kl) or kl < 0:
        raise KlrayError(f"kl={kl} cannot be placed: a KL divergence is a finite number of 0 or more, in bits per byte")
    if scale is None:
        found = [
            Neighbour(each.name, each.words(), each.low, each.high, _log_ratio(kl, each.low, each.high))
            for each in SETTINGS
            if not math.isnan(each.low)
        ]
        return Placement(kl, _sorted(found), SOURCE)
    if not isinstance(scale, xr.Dataset):
        raise KlrayError(
            f'scale={scale!r} is no result of klray scale: open one with klray.open_result(url, "scale"), or leave it '
            "out for the published values"
        )
    missing = [name for name in ("kl", "pair_setting", "median", "n") if name not in scale]
    if missing:
        raise KlrayError(
            f"scale= needs a result of klray scale, this lacks {', '.join(missing)}: open one with "
            'klray.open_result(url, "scale"), or leave it out for the published values'
        )
    spacing = recorded(scale, "choice", {}).get("spacing", PUBLISHED_SPACING)
    found = []
    for row in scale_rows(scale):
        if row.n and row.median > 0:
            pairs = setting_kl(scale, row.setting)
            share = float(np.searchsorted(pairs, kl, "left") + np.searchsorted(pairs, kl, "right")) / (2 * row.n)
            words, far = setting_named(row.setting).words(spacing), _log_ratio(kl, row.median, row.median)
            found.append(Neighbour(row.setting, words, row.median, row.median, far, share, row.n))
    if not found:
        raise KlrayError(
            "scale= has no setting with pairs: score more models, or leave it out for the published values"
        )
    return Placement(kl, _sorted(found), f"snapshot {scale.attrs.get('snapshot', 'unnamed')}")


def _log_ratio(kl: float, low: float, high: float) -> float:
    if kl == 0:
        return -math.inf
    return math.log(kl) - math.log(min(max(kl, low), high))


def _sorted(found: list[Neighbour]) -> tuple[Neighbour, ...]:
    return tuple(sorted(found, key=lambda each: (abs(each.log_ratio), each.low)))


def _words(neighbour: Neighbour) -> str:
    value = f"{neighbour.low:.3g}" if neighbour.low == neighbour.high else f"{neighbour.low:g} to {neighbour.high:g}"
    share = ""
    if neighbour.quantile is not None and neighbour.n >= QUANTILE_PAIRS:
        share = f", above {neighbour.quantile:.0%} of {counted(neighbour.n, 'pair')}"
    return f"{neighbour.phrase} ({value}{share})"
