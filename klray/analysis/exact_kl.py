"""What the exact KL of next-token distributions says beside the estimate from log-likelihoods, of two models.

Shapes: N = texts. Source of the estimate: arXiv:2505.15353, section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from klray.analysis.kl.all_pairs import kl_divergence, kl_standard_error
from klray.errors import KlrayError
from klray.units import bits_per_byte
from klray.words.numbers import significant, with_error


@dataclass(frozen=True, eq=False)
class TokenKL:
    """Two models' next-token distributions on N texts, each compared at every token but the first of a text."""

    forward: np.ndarray  # (N,) float64 nats: sum over a text's tokens of KL(first || second)
    reverse: np.ndarray  # (N,) float64 nats: the same of KL(second || first)
    agreed: np.ndarray  # (N,) tokens at which both have the same most probable next token
    log_likelihood: np.ndarray  # (2, N) float64 nats: of the first and of the second, as ``klray.log_likelihood``
    n_tokens: np.ndarray  # (N,) tokens compared
    n_bytes: np.ndarray  # (N,) UTF-8 bytes

    def summary(self) -> dict[str, float]:
        """Each number of ``MEANINGS``, NaN where it takes more texts."""
        tokens, agreement = self.n_tokens.astype(float), self.agreed.astype(float)
        found: dict[str, float] = {}
        both = 0.5 * (self.forward + self.reverse)
        for name, nats in (("forward", self.forward), ("reverse", self.reverse), ("exact", both)):
            value, error = _ratio(nats, self.n_bytes.astype(float))
            found |= {name: bits_per_byte(value, 1.0), f"{name}_standard_error": bits_per_byte(error, 1.0)}
            value, error = _ratio(nats, tokens)
            found |= {f"{name}_per_token": value, f"{name}_per_token_standard_error": error}
        found["agreement"], found["agreement_standard_error"] = _ratio(agreement, tokens)
        rows = {"estimate": self.log_likelihood, **self._without_length()}
        for name, row in rows.items():
            found[name] = float(kl_divergence(row, self.n_bytes)[0, 1])
            found[f"{name}_standard_error"] = float(kl_standard_error(row, self.n_bytes)[0, 1])
        return {name: found[name] for name in MEANINGS}

    def _without_length(self) -> Mapping[str, np.ndarray]:
        """Rows whose difference lacks what a line through tokens, or bytes, per text explains."""
        difference = self.log_likelihood[0] - self.log_likelihood[1]
        lengths = {"estimate_without_tokens": self.n_tokens, "estimate_without_bytes": self.n_bytes}
        return {name: np.stack([_residual(difference, each), np.zeros(len(each))]) for name, each in lengths.items()}

    def __repr__(self) -> str:
        found = self.summary()
        return (
            f"<TokenKL of {len(self.n_tokens):,} texts: exact {found['forward']:.3g} and {found['reverse']:.3g}, "
            f"estimate {found['estimate']:.3g} bits/byte, top-1 agreement {found['agreement']:.1%}>"
        )


_BITS, _NATS = "bit/byte", "nat/token"
# Name: unit and meaning. Standard errors are over texts, by the delta method.
_VALUES = {
    "forward": (_BITS, "exact KL(first || second) of the next token"),
    "reverse": (_BITS, "exact KL(second || first) of the next token"),
    "exact": (_BITS, "mean of both directions"),
    "forward_per_token": (_NATS, "exact KL(first || second) of the next token"),
    "reverse_per_token": (_NATS, "exact KL(second || first) of the next token"),
    "exact_per_token": (_NATS, "mean of both directions"),
    "agreement": ("1", "share of tokens at which both have the same most probable next token"),
    "estimate": (_BITS, "Var(l_i - l_j) / (2 B ln 2), the estimate of arXiv:2505.15353"),
    "estimate_without_tokens": (_BITS, "the same of what a line through tokens per text leaves; none of the paper's"),
    "estimate_without_bytes": (_BITS, "the same of what a line through bytes per text leaves; none of the paper's"),
}
MEANINGS: Mapping[str, tuple[str, str]] = {
    key: each
    for name, (unit, meaning) in _VALUES.items()
    for key, each in (
        (name, (unit, meaning)),
        (f"{name}_standard_error", (unit, f"standard error over texts: {meaning}")),
    )
}


def text_bytes(texts: list[str]) -> np.ndarray:
    """(N,) UTF-8 bytes; KlrayError without a text."""
    if not texts:
        raise KlrayError("there are no texts: give two or more, on which the models are compared")
    return np.array([len(text.encode()) for text in texts], dtype=np.int64)


def _ratio(parts: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Sum over texts of the parts over that of the sizes, and its standard error over texts, by the delta method."""
    total = sizes.sum()
    if total == 0:
        return float("nan"), float("nan")
    value = parts.sum() / total
    n = len(parts)
    error = np.sqrt(n / (n - 1) * np.square(parts - value * sizes).sum()) / total if n > 1 else np.nan
    return float(value), float(error)


def _residual(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N,) what least squares by a line through ``lengths`` leaves of ``values``, mean included."""
    centred, length = values - values.mean(), lengths - lengths.mean()
    spread = float(length @ length)
    slope = float(length @ centred) / spread if spread else 0.0
    residual: np.ndarray = centred - slope * length
    return residual


HEADER = ("setting", "n", "exact", "nats/token", "top-1", "estimate", "estimate / exact", "less tokens", "less bytes")
MEANS = (
    "Exact: KL of the next-token distributions in bits/byte, mean of both directions, and in nats per token. Estimate: "
    "Var(l_i - l_j) / (2 B ln 2) of the same texts as they were scored. Medians over the n pairs, ± the median of "
    "their standard errors over texts; of ratios also the range. Less tokens, less bytes: the ratio once a line "
    "through tokens, or bytes, per text is taken away; this is none of the paper's."
)


def check_result(result: xr.Dataset, name: str) -> None:
    """KlrayError unless this is a result of klray compare."""
    if lacking := [each for each in (*MEANINGS, "text_forward", "key") if each not in result]:
        raise KlrayError(f"compare.name={name}: that result is none of klray compare, it lacks {lacking[0]}; name one")


def as_table(result: xr.Dataset) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows, a row for each setting."""
    settings = [str(each) for each in result["setting"].values]
    rows = []
    for setting in dict.fromkeys(settings):
        of = result.isel(pair=[each == setting for each in settings])
        middle = {name: float(np.median(of[name].values)) for name in MEANINGS}
        ratios = (_ratios(of, f"estimate{name}") for name in ("", "_without_tokens", "_without_bytes"))
        rows.append(
            (
                setting,
                f"{of.sizes['pair']:,}",
                with_error(middle["exact"], middle["exact_standard_error"]),
                significant(middle["exact_per_token"]),
                f"{middle['agreement']:.1%}",
                with_error(middle["estimate"], middle["estimate_standard_error"]),
                *ratios,
            )
        )
    return HEADER, rows


def _ratios(result: xr.Dataset, name: str) -> str:
    exact = result["exact"].values
    found = result[name].values[exact > 0] / exact[exact > 0]
    if not len(found):
        return "–"
    least, middle, most = (significant(float(each), 2) for each in np.quantile(found, [0, 0.5, 1]))
    return middle if len(found) == 1 else f"{middle} ({least} to {most})"
