"""How much a KL depends on which texts it is of, and how many texts a wanted standard error takes.

Shapes: P = pairs, N = texts, D = parts of the texts, S = settings.
"""

import math
from typing import NamedTuple

import numpy as np
import xarray as xr

from klray.analysis.kl.chosen_pairs import ROWS_BYTES, paired_rows
from klray.errors import KlrayError
from klray.units import kl_per_variance
from klray.words.numbers import significant
from klray.words.tables import text_table

DRAWS = 10  # of random parts of each size, two at a time that share no text
SMALLEST = 16  # texts of a part
PAIRS = 2000  # of more pairs as many, evenly chosen
SHARES = (0.1, 0.05)  # of a KL, wanted as its standard error
TYPICAL = (1.4, 3.5)  # SE sqrt(N) / KL: of normal differences sqrt(2), of heavy tails more (docs/study.md)

PART_HEADER = ("part of the texts", "texts", "r", "r of ln KL", "off by", "KL / KL of all")
SETTING_HEADER = ("setting", "SE / KL", *(f"texts for {share:.0%}" for share in SHARES))


def texts_needed(kl: float, standard_error: float, deviation: float) -> int:
    """How many texts give a KL that standard error: N = (deviation KL / SE)^2, from SE = deviation KL / sqrt(N).

    >>> texts_needed(0.05, 0.005, 2.0)
    400
    """
    wanted = (deviation * kl / standard_error) ** 2 if min(kl, standard_error, deviation) > 0 else math.nan
    if not (math.isfinite(wanted) and math.isfinite(standard_error)):
        raise KlrayError(
            f"a KL of {kl:g} with a standard error of {standard_error:g} was asked for: both must be above 0 and finite"
        )
    return max(1, math.ceil(wanted))


def precision(n_texts: int, scale: xr.Dataset | None, kl: float | None, standard_error: float | None) -> str:
    """How exact a KL is on so many texts, and how many a wanted ``standard_error`` of a ``kl`` takes (bits/byte).

    By the settings of ``scale``, a result of ``measure_scale``, or by TYPICAL.
    """
    if (kl is None) != (standard_error is None):
        raise KlrayError(
            f"plan.kl={kl} with plan.standard_error={standard_error}: set both, for the texts that it takes, or none"
        )
    known = scale["relative_deviation"].values if scale is not None and "relative_deviation" in scale else np.array([])
    known = known[np.isfinite(known) & (known > 0)]
    low, high = (float(known.min()), float(known.max())) if known.size else TYPICAL
    by = "the settings of this store's scale" if known.size else "what is usual; klray scale measures it"
    root = math.sqrt(n_texts)
    said = f"a KL has a standard error of {low / root:.1%} to {high / root:.1%} of it ({by})"
    if kl is None or standard_error is None:
        return said
    least, most = (texts_needed(kl, standard_error, each) for each in (low, high))
    return f"{said}; {kl:g} ± {standard_error:g} takes {least:,} to {most:,} texts"


def deviations(kl: np.ndarray, standard_error: np.ndarray, n_texts: int) -> float:
    """Median over pairs (P,) of SE sqrt(N) / KL, which no longer depends on N; NaN without a pair of KL above 0."""
    known = kl > 0
    return float(np.median(standard_error[known] / kl[known])) * math.sqrt(n_texts) if known.any() else math.nan


def text_sensitivity(
    values: xr.DataArray, pairs: np.ndarray, settings: np.ndarray, seed: int = 0, rows_bytes: int = ROWS_BYTES
) -> dict[str, xr.DataArray]:
    """KL of the pairs on parts of the texts: random halves, quarters, and so on, and each domain.

    ``values`` are (K, N) nats as ``Recipe.apply`` gives them, ``pairs`` (P, 2) positions, ``settings`` (P,) names. A KL
    is that of ``pair_divergence``, with the mean bytes of the part. By part there are: texts; Pearson's r, over pairs,
    of the KL on the part with that on as many other texts (of a domain: on all others), and the same of ln KL; the
    median of ``|KL / KL of all texts - 1|``, and that of the ratio. Random parts: medians over DRAWS. By pair: KL on
    two halves. Nothing where there are fewer than three pairs with a KL above 0, or too few texts for two parts.
    """
    n_texts = values.sizes["text"]
    if n_texts < 2 * SMALLEST:
        return {}
    if len(pairs) > PAIRS:
        chosen = np.linspace(0, len(pairs) - 1, PAIRS).astype(int)
        pairs, settings = pairs[chosen], settings[chosen]
    parts, weights = _parts(n_texts, _domains(values), seed)
    kl, every = _on_parts(values, pairs, weights, rows_bytes)
    known = every > 0
    if known.sum() < 3:
        return {}
    kl, every = kl[known], every[known]
    found: list[tuple[int, float, float, float, float]] = []
    names = list(dict.fromkeys(parts))
    for part in names:
        at = np.flatnonzero([each == part for each in parts])
        sides = kl[:, at].reshape(len(kl), -1, 2)
        ratio = (sides if part.random else sides[:, :, :1]) / every[:, None, None]
        draws = [sides[:, draw] for draw in range(sides.shape[1])]
        r = float(np.median([_r(*each.T) for each in draws]))
        log_r = float(np.median([_r(*np.log(each[(each > 0).all(axis=1)]).T) for each in draws]))
        off = float(np.median(abs(ratio - 1)))
        found.append((int(weights[at[0]].sum()), r, log_r, off, float(np.median(ratio))))
    text = np.dtypes.StringDType()
    bits = {"units": "bit/byte"}
    of_part = {
        "part_texts": "texts of the part",
        "part_correlation": "Pearson's r, over pairs, of KL on the part and on other texts",
        "part_log_correlation": "the same of ln KL",
        "part_deviation": "median of |KL on the part / KL on all texts - 1|",
        "part_ratio": "median of KL on the part / KL on all texts",
    }
    columns = dict(zip(of_part, zip(*found, strict=True), strict=True))
    labels = np.array([each.name for each in names], dtype=text)
    return {
        **{
            name: xr.DataArray(np.array(columns[name]), {"part": labels}, attrs={"long_name": meaning})
            for name, meaning in of_part.items()
        },
        "half_kl": xr.DataArray(
            kl[:, :2], dims=("half_pair", "half"), attrs={**bits, "long_name": "KL on two halves of the texts"}
        ),
        "half_setting": xr.DataArray(settings[known].astype(text), dims="half_pair"),
    }


def _domains(values: xr.DataArray) -> np.ndarray:
    found = values.coords.get("domain")
    return np.array([] if found is None else [str(each) for each in found.values])


class _Part(NamedTuple):
    name: str
    random: bool


def _parts(n_texts: int, domains: np.ndarray, seed: int) -> tuple[list[_Part], np.ndarray]:
    """Each part, and (parts, N) 1 for its texts.

    Two after one another share no text; the second of a domain is all others.
    """
    generator = np.random.default_rng(seed)
    parts, rows = [], []
    for power in range(1, n_texts.bit_length()):
        size = n_texts >> power
        if size < SMALLEST:
            break
        for _ in range(DRAWS):
            order = generator.permutation(n_texts)
            parts += [_Part(f"1/{2**power}", True)] * 2
            rows += [np.bincount(order[start : start + size], minlength=n_texts) for start in (0, size)]
    for domain in sorted(set(domains.tolist()) - {""}):
        within = domains == domain
        if min(within.sum(), (~within).sum()) >= SMALLEST:
            parts += [_Part(domain, False)] * 2
            rows += [within, ~within]
    return parts, np.array(rows, dtype=np.float64)


def _on_parts(
    values: xr.DataArray, pairs: np.ndarray, weights: np.ndarray, rows_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """KL of each pair on each part (P, parts) and on all texts (P,), bits/byte."""
    n_bytes = values["text_bytes"].values.astype(np.float64)
    count = weights.sum(axis=1)
    unit = np.array([kl_per_variance(each) for each in weights @ n_bytes / count])
    kl, every = np.empty((len(pairs), len(weights))), np.empty(len(pairs))
    for chosen, first, second in paired_rows(values, pairs, rows_bytes):
        difference = first.astype(np.float64) - second
        difference -= difference.mean(axis=1, keepdims=True)
        mean, square = (each @ weights.T / count for each in (difference, difference**2))
        kl[chosen] = np.maximum(square - mean**2, 0) * unit
        every[chosen] = (difference**2).mean(axis=1) * kl_per_variance(n_bytes.mean())
    return kl, every


def _r(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if len(one) > 2 and one.std() > 0 and other.std() > 0 else math.nan


def part_rows(result: xr.Dataset) -> list[tuple[str, ...]]:
    """Cells under PART_HEADER of a result of ``measure_scale``; none where it has no such parts."""
    if "part" not in result.coords:
        return []
    of = ("texts", "correlation", "log_correlation", "deviation", "ratio")
    columns = [result[f"part_{name}"].values for name in of]
    return [
        (str(name), f"{texts:,}", f"{r:.3f}", f"{log_r:.3f}", f"{off:.0%}", significant(float(ratio)))
        for name, texts, r, log_r, off, ratio in zip(result["part"].values, *columns, strict=True)
    ]


def setting_rows(result: xr.Dataset) -> list[tuple[str, ...]]:
    """Cells under SETTING_HEADER, for settings with a KL above 0."""
    if "relative_deviation" not in result:
        return []
    n_texts = int(result.attrs["texts"])
    found = zip(result["setting"].values, result["relative_deviation"].values, strict=True)
    return [
        (str(name), f"{of / math.sqrt(n_texts):.1%}", *(f"{texts_needed(1.0, share, of):,}" for share in SHARES))
        for name, of in found
        if math.isfinite(of) and of > 0
    ]


def format_sensitivity(result: xr.Dataset) -> str:
    """The first table, and the ends of the second in a sentence; "" where the result has neither."""
    parts, settings = part_rows(result), setting_rows(result)
    found = []
    if parts:
        found += [text_table(PART_HEADER, parts, text_columns=1), part_note(result)]
    if settings:
        by_texts = sorted(settings, key=lambda row: int(row[2].replace(",", "")))
        (least, _, *few), (most, _, *many) = by_texts[0], by_texts[-1]
        ends = [f"{low} to {high} texts for {share:.0%}" for low, high, share in zip(few, many, SHARES, strict=True)]
        found.append(f"Standard error of a KL, from {least} to {most}: {', '.join(ends)} of it.")
    return "\n".join(found)


def part_note(result: xr.Dataset) -> str:
    """What the numbers of the first table mean."""
    return (
        f"KL of {result.sizes['half_pair']:,} pairs of the settings. r: over pairs, of the KL on the part with that on "
        "as many other texts, of a domain with that on all others. Off by: median of |KL / KL of all texts - 1|. "
        f"Random parts: medians over {DRAWS} draws."
    )


def setting_note(result: xr.Dataset) -> str:
    """What the numbers of the second table mean."""
    return (
        f"SE / KL: median over pairs, on the {int(result.attrs['texts']):,} texts that count. It falls with the square "
        "root of the number of texts, so that so many give 10 and 5 %."
    )
