"""The scale and the exponents on several domains of the text set, side by side."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from klray.analysis.runs_table import RunRow, run_table
from klray.analysis.scale.measuring import ScaleRow, scale_rows
from klray.words.numbers import significant, with_error
from klray.words.tables import text_table

_NONE = "–"

SETTINGS_MEAN = (
    "Median KL in bits/byte ± its standard error by bootstrap over pairs, on the texts of each domain, each with a "
    "recipe of its own."
)
EXPONENTS_MEAN = "Diffusion exponent of KL: mean over the last half of the windows ± their standard deviation."


@dataclass(frozen=True)
class Comparison:
    """Settings and runs of two or more domains."""

    domains: tuple[str, ...]
    settings: dict[str, tuple[ScaleRow, ...]]  # a row for each domain, of settings that have pairs in all
    runs: dict[str, tuple[RunRow | None, ...]]  # a row for each domain, None where it has no such run

    def ratio(self, setting: str, domain: str) -> float:
        """Median of the setting in that domain over the one in the first domain; NaN where one is missing."""
        rows = self.settings[setting]
        first = rows[0].median
        return rows[self.domains.index(domain)].median / first if first > 0 else math.nan

    def setting_table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows: medians with their ratio to the first domain."""
        first, *others = self.domains
        rows = [
            (
                setting,
                f"{found[0].n:,}",
                *(with_error(row.median, row.median_standard_error) for row in found),
                *(significant(self.ratio(setting, each)) for each in others),
            )
            for setting, found in self.settings.items()
        ]
        return ("setting", "n", *self.domains, *(f"{each} / {first}" for each in others)), rows

    def exponent_table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows: the exponent of each run that has one in any domain."""
        rows = [
            (run, *(_NONE if row is None else with_error(row.exponent, row.exponent_spread) for row in found))
            for run, found in self.runs.items()
            if any(row is not None and math.isfinite(row.exponent) for row in found)
        ]
        return ("run: c_q", *self.domains), rows

    def table(self) -> str:
        """Both as plain text."""
        parts = [text_table(*self.setting_table(), text_columns=1), SETTINGS_MEAN]
        if self.exponent_table()[1]:
            parts += ["", text_table(*self.exponent_table(), text_columns=1), EXPONENTS_MEAN]
        return "\n".join(parts)


def compare_domains(scales: Mapping[str, xr.Dataset], trajectories: Mapping[str, xr.Dataset]) -> Comparison:
    """Put side by side what ``measure_scale`` and, for as many as have it, ``analyze`` gave on each domain's texts."""
    domains = tuple(scales)
    rows = {domain: {row.setting: row for row in scale_rows(scale)} for domain, scale in scales.items()}
    first = rows[domains[0]]
    settings = [name for name in first if all(name in rows[domain] and rows[domain][name].n for domain in domains)]
    tables = [
        {row.run: row for row in run_table(trajectories[domain])} if domain in trajectories else {}
        for domain in domains
    ]
    runs = dict.fromkeys(name for table in tables for name in table)
    return Comparison(
        domains,
        {name: tuple(rows[domain][name] for domain in domains) for name in settings},
        {name: tuple(table.get(name) for table in tables) for name in runs},
    )
