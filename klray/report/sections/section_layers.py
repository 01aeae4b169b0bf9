"""Layers in a report: how far each is from the one before and from the model's own output, by lens."""

from pathlib import Path

import numpy as np
import xarray as xr

from klray.analysis.facts import facts, strings
from klray.analysis.kl.layer_kl import LensSummary, compare_lenses, layer_kl
from klray.report.figures.layers_to_final import PLATE
from klray.report.sections import Section, Table, picture
from klray.words.numbers import significant

_HEADER = ("Lens", "Models", "Adjacent pairs", "Median of adjacent", "Quartiles", "First half to final (mean)")


def layers_section(snapshot: xr.Dataset, result: xr.Dataset, figures: Path) -> Section | None:
    """What the lenses say of the layers of a snapshot, without models that the result excludes; None without layers."""
    layers = facts(snapshot, "layer", -1) >= 0
    if snapshot.sizes["model"] == result.sizes["model"]:
        layers &= ~result["excluded"].values.astype(bool)
    if not layers.any():
        return None
    kl = layer_kl(snapshot.isel(model=np.flatnonzero(layers)))
    lenses = compare_lenses(kl)
    return Section(
        PLATE.name,
        PLATE.heading,
        tables=(Table(_HEADER, [_cells(lens) for lens in lenses]),),
        verdict=_verdict(kl),
        picture=picture(PLATE, kl, figures),
        notes=(
            "KL in bits/byte. Adjacent: each layer and the one before, layer 0 being the embedding's output and the "
            "last layer the model's own output; median and quartiles over the pairs of all models. First half to "
            "final: mean KL to the model's own output over layers 0 to L/2 of the L, then over models. Log-likelihoods "
            "are as they were scored, neither clipped nor without outlier texts, because the first layers lie below "
            "the clip threshold on many texts; the scale's setting of layers follows its recipe and differs by that.",
        ),
    )


def _cells(lens: LensSummary) -> tuple[str, ...]:
    return (
        lens.lens,
        f"{lens.models:,}",
        f"{lens.adjacent_pairs:,}",
        significant(lens.adjacent_median),
        " to ".join(map(significant, lens.adjacent_quartiles)),
        significant(lens.first_half_to_final),
    )


def _verdict(kl: xr.Dataset) -> str:
    """Which lens brings the first half nearer to the output, of models read with both kinds; empty without any."""
    models = list(zip(strings(kl, "repository"), strings(kl, "commit"), strict=True))
    tuned_lens = np.char.startswith(strings(kl, "lens"), "tuned")
    both = {models[row] for row in np.flatnonzero(tuned_lens)} & {models[row] for row in np.flatnonzero(~tuned_lens)}
    if not both:
        return ""
    by_name = {each.lens: each for each in compare_lenses(kl.isel(model=[each in both for each in models]))}
    logit, tuned = (by_name[name].first_half_to_final for name in ("logit", "tuned"))
    nearer = "nearer to the output" if tuned < logit else "no nearer to the output"
    return (
        f"Under the tuned lens the first half of the layers is {nearer} than under the logit lens: "
        f"{significant(tuned)} against {significant(logit)} bits/byte, over the {len(both):,} "
        f"{'model' if len(both) == 1 else 'models'} read with both."
    )
