"""The analysis "scale": from a snapshot to KL in every setting, in one Dataset, and its rows as a table.

Shapes: P = pairs over all settings (a pair that is in two settings is there twice), S = settings.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import xarray as xr

from klray.analysis.defaults import RESAMPLES
from klray.analysis.facts import labels, origin, recorded
from klray.analysis.kl.chosen_pairs import ROWS_BYTES, pair_divergence
from klray.analysis.recipe import Recipe, excluded_by
from klray.analysis.scale.as_published import EXCLUDED, MEANING, published_pairs, published_parts
from klray.analysis.scale.choosing_pairs import DEFAULT_CHOICE, Choice, setting_pairs
from klray.analysis.scale.compared_models import Models
from klray.analysis.scale.generations import lineages
from klray.analysis.scale.published_settings import PUBLISHED_SPACING, SETTINGS, SOURCE, range_words, setting_named
from klray.analysis.scale.text_sensitivity import deviations, text_sensitivity
from klray.errors import KlrayError
from klray.words.numbers import counted, significant, with_error
from klray.words.tables import text_table

MUCH_CLIPPED = 0.2  # of a setting's values; a recipe clips 2 % of all models' own outputs
SCALE_HEADER = ("setting", "n", "median (± SE)", "quartiles", "range", "SE of a pair", "published")
_TEN = tuple(setting.name for setting in SETTINGS)
_NUMBERS = {
    "median": "median KL",
    "lower_quartile": "lower quartile of KL",
    "upper_quartile": "upper quartile of KL",
    "smallest": "smallest KL",
    "largest": "largest KL",
    "pair_standard_error": "median of the pairs' standard errors over texts",
    "median_standard_error": "standard error of the median by bootstrap over pairs",
    "published_low": "published median, or low end of the published range",
    "published_high": "published median, or high end of the published range",
}


@dataclass(frozen=True)
class ScaleRow:
    """One setting in a result, as `_NUMBERS` says; KL in bits/byte, NaN without a pair or where none is published."""

    setting: str
    n: int
    median: float
    lower_quartile: float
    upper_quartile: float
    smallest: float
    largest: float
    pair_standard_error: float
    median_standard_error: float
    published_low: float
    published_high: float


def measure_scale(
    dataset: xr.Dataset,
    recipe: Recipe | None,
    choice: Choice = DEFAULT_CHOICE,
    resamples: int = RESAMPLES,
    rows_bytes: int = ROWS_BYTES,
) -> xr.Dataset:
    """KL and standard error of every setting's pairs in a snapshot, preprocessed by ``recipe``.

    With ``choice.published`` pairs and recipes are those of ``as_published``, and ``recipe`` is None.

    The seed of ``choice`` is also that of the bootstrap, which has ``resamples``; at most ``rows_bytes`` of rows are
    in memory at a time. The Dataset has by pair: kl, kl_standard_error (bits/byte), pair_setting, first and second
    (labels of the models); by setting (the ten, then those counted apart that have pairs): n and the numbers of
    ``ScaleRow``; how much KL depends on the texts (``text_sensitivity``), where all pairs have one recipe; in the
    attributes the recipe, the choice, and what was kept apart: merges, adapters, quantised models, children without
    their parent. KlrayError: the recipe is for other texts, or values are not finite.
    """
    excluded = EXCLUDED if recipe is None else recipe.excluded
    models = Models.of(dataset, excluded_by(dataset, excluded))
    if recipe is None:
        every, parts = published_pairs(models, choice), published_parts(dataset, models, choice)
        recipe = next((each for _, _, each in parts if each is not None), None)
    else:
        every, parts = setting_pairs(models, choice), [(recipe.apply(dataset), None, recipe)]
    found = {name: pairs for name, pairs in every.items() if name in _TEN or len(pairs)}
    pairs = np.concatenate(list(found.values()))
    of = np.repeat(np.arange(len(found)), [len(each) for each in found.values()])
    names_of_pairs = np.array(list(found))[of] if len(of) else np.empty(0, dtype=str)
    kl, standard_error, open_ = np.empty(len(pairs)), np.empty(len(pairs)), np.ones(len(pairs), dtype=bool)
    for values, settings_of_part, _ in parts:
        here = open_ & (np.isin(names_of_pairs, settings_of_part) if settings_of_part else True)
        kl[here], standard_error[here] = pair_divergence(values, pairs[here], rows_bytes)
        open_ &= ~here
    rows = [
        _row(name, kl[of == place], standard_error[of == place], resamples, choice) for place, name in enumerate(found)
    ]
    # settings of one recipe alone have one set of texts
    counted, sensitivity = parts[0][0].sizes["text"], {}
    if len(parts) == 1:
        sensitivity = text_sensitivity(parts[0][0], *_distinct(pairs, names_of_pairs), choice.seed, rows_bytes)
        spread = [deviations(kl[of == place], standard_error[of == place], counted) for place in range(len(found))]
        meaning = "median over pairs of SE sqrt(N) / KL: the standard error of a KL on N texts is so much, by sqrt(N)"
        sensitivity["relative_deviation"] = xr.DataArray(spread, dims="setting", attrs={"long_name": meaning})
        share = _clipped(parts[0][0], recipe, pairs)
        shares = [
            float(np.mean(share[pairs[of == place]])) if len(of) and (of == place).any() else 0.0
            for place in range(len(found))
        ]
        meaning = "share of the values of the setting's pairs that the recipe clips"
        sensitivity["clipped"] = xr.DataArray(shares, dims="setting", attrs={"long_name": meaning})
    names = labels(dataset).astype(np.dtypes.StringDType())
    settings = np.array(list(found), dtype=np.dtypes.StringDType())
    bits = {"units": "bit/byte", "references": SOURCE}
    family = lineages(models)
    return xr.Dataset(
        {
            "kl": ("pair", kl, {**bits, "long_name": "Kullback-Leibler divergence of the pair"}),
            "kl_standard_error": ("pair", standard_error, {**bits, "long_name": "its standard error over texts"}),
            "pair_setting": ("pair", settings[of], {"long_name": "setting that the pair belongs to"}),
            "first": ("pair", names[pairs[:, 0]], {"long_name": "model, the child of a fine-tuning pair"}),
            "second": ("pair", names[pairs[:, 1]], {"long_name": "other model"}),
            "n": ("setting", np.array([row.n for row in rows]), {"long_name": "pairs"}),
            **{
                name: ("setting", np.array([getattr(row, name) for row in rows]), {**bits, "long_name": meaning})
                for name, meaning in _NUMBERS.items()
            },
            **sensitivity,
        },
        coords={"setting": settings},
        attrs=origin(dataset)
        | {
            "title": "Scale of KL divergence between language models",
            "recipe": recipe.to_json() if recipe else "",
            "mean_bytes": recipe.mean_bytes if recipe else float(dataset["text_bytes"].values.mean()),
            "texts": counted,
            "dtype": models.dtype,
            "choice": json.dumps(asdict(choice)),
            "resamples": resamples,
            "generations": json.dumps({name: n for name, n in family.generation.items() if n}),
            "kept_apart": json.dumps(family.apart),
            "absent_parents": json.dumps(family.absent),
            "references": SOURCE,
        },
    )


def _clipped(values: xr.DataArray, recipe: Recipe | None, pairs: np.ndarray) -> np.ndarray:
    """(K,) share of the values of each model of the pairs that are clipped: at the threshold, or below it before."""
    share = np.zeros(values.sizes["model"])
    models = np.unique(pairs)
    if recipe is not None and len(models):
        share[models] = np.asarray((values.isel(model=models) <= recipe.clip_threshold).mean("text"))
    return share


def _distinct(pairs: np.ndarray, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once, in whichever order it was asked for, with the first of its settings."""
    distinct, first = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)
    return distinct, names[first]


def _row(name: str, kl: np.ndarray, standard_error: np.ndarray, resamples: int, choice: Choice) -> ScaleRow:
    low, high = setting_named(name).published(choice.spacing)
    quartiles = np.quantile(kl, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist() if len(kl) else [math.nan] * 5
    of_kl = ("smallest", "lower_quartile", "median", "upper_quartile", "largest")
    return ScaleRow(
        setting=name,
        n=len(kl),
        **dict(zip(of_kl, quartiles, strict=True)),
        pair_standard_error=float(np.median(standard_error)) if len(kl) else math.nan,
        median_standard_error=bootstrap_standard_error(kl, resamples, choice.seed),
        published_low=low,
        published_high=high,
    )


def scale_rows(result: xr.Dataset) -> list[ScaleRow]:
    """The settings of a result of ``measure_scale``."""
    names = [str(name) for name in result["setting"].values]
    columns = {name: result[name].values.tolist() for name in ("n", *_NUMBERS)}
    return [ScaleRow(name, **{key: column[i] for key, column in columns.items()}) for i, name in enumerate(names)]


def setting_kl(result: xr.Dataset, setting: str) -> np.ndarray:
    """(P,) KL in bits/byte of a setting's pairs, sorted."""
    return np.sort(result["kl"].values[np.array([str(name) for name in result["pair_setting"].values]) == setting])


def format_scale(result: xr.Dataset) -> str:
    """The settings as a table, next to the published values, with a line for what was kept apart."""
    rows = [scale_cells(row) for row in scale_rows(result)]
    return text_table(SCALE_HEADER, rows, text_columns=1) + "\n" + "\n".join(notes(result))


def notes(result: xr.Dataset) -> Sequence[str]:
    """What the numbers of a result mean, and what is not among them, in sentences."""
    apart = {name: n for name, n in recorded(result, "kept_apart").items() if n}
    absent = recorded(result, "absent_parents")
    choice = recorded(result, "choice")
    found = [
        "KL in bits/byte. SE of a pair: median of the pairs' standard errors over texts. ± SE of the median: "
        f"bootstrap over pairs ({result.attrs['resamples']:,} resamples, seed {choice['seed']}). Published: {SOURCE}.",
        f"later, early: pairs {choice['spacing']:,} steps apart that end after step {choice['min_step']:,}, "
        f"{choice['number']:,} of each run.",
    ]
    if choice.get("published"):
        found.append(MEANING.format(sizes=", ".join(choice["sizes"]) or "all"))
    if choice["spacing"] != PUBLISHED_SPACING:
        found.append(f"Published for later and early are pairs {PUBLISHED_SPACING:,} steps apart, which these are not.")
    if not sum(row.n for row in scale_rows(result) if row.setting in ("later", "early")):
        found.append(
            "No run has two such pairs: set scale.spacing= and scale.min_step= to what the runs were saved at "
            "(scale=tiny: 20 and 100)."
        )
    if "clipped" in result:
        much = {
            str(name): share for name, share in zip(result["setting"].values, result["clipped"].values, strict=True)
        }
        of = ", ".join(f"{name} {share:.0%}" for name, share in much.items() if share > MUCH_CLIPPED)
        if of:
            found.append(f"Clipped values: {of}. Their KL is too small: scale=published measures it as scored.")
    if apart:
        kept = ", ".join(f"{name} {n:,}" for name, n in apart.items())
        found.append(f"Kept apart from fine-tuning: {kept}.")
    if absent:
        found.append(f"Without their parent in the snapshot: {counted(len(absent), 'model')}.")
    return found


def scale_cells(row: ScaleRow) -> tuple[str, ...]:
    """A setting's cells under ``SCALE_HEADER``, for a reader."""
    low, high = row.published_low, row.published_high
    published = "–" if math.isnan(low) else range_words(low, high, "-")
    if not row.n:
        return (row.setting, "0", "–", "–", "–", "–", published)
    return (
        row.setting,
        f"{row.n:,}",
        with_error(row.median, row.median_standard_error),
        f"{significant(row.lower_quartile)} to {significant(row.upper_quartile)}",
        f"{significant(row.smallest)} to {significant(row.largest)}",
        significant(row.pair_standard_error, 2),
        published,
    )


def require_pairs(result: xr.Dataset) -> None:
    """KlrayError unless some setting has a pair."""
    if not int(result["n"].values.sum()):
        raise KlrayError(
            "no setting of the scale has a pair in this snapshot: it needs checkpoints of a run at equal distances, "
            "seeds, sizes, quantised models, fine-tuned models with their parents, or layers (for short runs set "
            "scale.spacing= and scale.min_step=)"
        )


def bootstrap_standard_error(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Standard error of the median of (P,) values by bootstrap over them: the standard deviation over resamples.

    It says how the median depends on which pairs are there; that all pairs share their texts is no part of it. NaN for
    fewer than 2 values.
    """
    if len(values) < 2:
        return float("nan")
    generator = np.random.default_rng(seed)
    medians = [np.median(generator.choice(values, len(values))) for _ in range(resamples)]
    return float(np.std(medians, ddof=1))
