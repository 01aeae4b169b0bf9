"""The analysis "trajectory": from a snapshot to KL, consecutive steps, diffusion exponents and maps, in one Dataset.

Shapes: K = models, N = texts kept, T = saved checkpoints of one run.
"""

import glob
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import dask
import numpy as np
import xarray as xr
from dask.system import CPU_COUNT

from klray.analysis import continuing, embedding, pairs
from klray.analysis.continuing import check_previous
from klray.analysis.defaults import CLIP_QUANTILE, MIN_STEP, NEIGHBOURS, OUTLIER_FRACTION, OUTLIER_MIN_STEP, WINDOW
from klray.analysis.diffusion import diffusion_exponent
from klray.analysis.drift import Columns, Sketches, drift_bytes, exact_drift, most_sketches, sketched_drift
from klray.analysis.facts import labels, origin, own_output, quantised
from klray.analysis.kl.all_pairs import Begun, kl_divergence, paired_standard_error
from klray.analysis.kl.chosen_pairs import ROWS_BYTES
from klray.analysis.kl.panels import Panel
from klray.analysis.kl.tiling import Tiling, tiling
from klray.analysis.maps import maps
from klray.analysis.recipe import (
    FOUND,
    KNOWN_ANOMALIES,
    Anomaly,
    Exclusion,
    Recipe,
    excluded_by,
    find_anomalies,
    misplaced_in,
    names_of,
)
from klray.analysis.runs import Run, contested, runs
from klray.errors import KlrayError, needed
from klray.words.numbers import counted

logger = logging.getLogger("klray")

_KL_PAPER = "arXiv:2505.15353"
_MAX_REFITS = 5  # an anomaly may hide behind others that were found and left out; more rounds were never seen


def analyze(
    dataset: xr.Dataset,
    *,
    recipe: Recipe | None = None,
    previous: xr.Dataset | None = None,
    clip_quantile: float = CLIP_QUANTILE,
    outlier_fraction: float = OUTLIER_FRACTION,
    outlier_min_step: int = OUTLIER_MIN_STEP,
    exclude: Iterable[Exclusion | str] = KNOWN_ANOMALIES,
    exclude_found: bool = False,
    exclude_misplaced: bool = True,
    window: int = WINDOW,
    min_step: int = MIN_STEP,
    pairs_kept: str | None = None,
    n_neighbours: int = NEIGHBOURS,
    tile: int | None = None,
    perplexity: float = 30.0,
    tsne: bool = True,
    memory_limit_bytes: int | None = None,
    threads: int | None = None,
    sketches: Sketches | None = None,
    exact_weights: xr.Dataset | None = None,
    begun: Callable[[Mapping[str, Any]], Begun | None] = lambda attributes: None,
) -> xr.Dataset:
    """Analyse a snapshot. The all-pairs matrices come back as Dask, to be written tile by tile; the rest is in memory.

    Parameters
    ----------
    dataset
        Snapshot, as ``klray.open_dataset`` gives it.
    recipe
        Frozen preprocessing. None: that of ``previous``, or a new one by ``Recipe.fit`` with ``clip_quantile``,
        ``outlier_fraction``, ``outlier_min_step`` (its min_step) and ``exclude``.
    exclude_found
        When a new recipe is fitted: exclude the anomalous checkpoints that are found with it too, with the reason
        "found: ...", and fit again, until no more is found. A frozen recipe excludes what it did before; what is
        found beyond that is reported.
    exclude_misplaced
        When a new recipe is fitted: exclude checkpoints with files of weights of another step, too (`misplaced`).
    previous
        Result of this analysis on an earlier snapshot. Same text set, same recipe, and its models are the first ones of
        ``dataset``: their pairs keep their values to the bit, and only pairs with a newer model are computed.
    pairs_kept, n_neighbours
        Which KL are kept: "all", those of the n "neighbours" of each, or of "runs" alone (None: by the number of
        models, see ``pairs.chosen``). Consecutive KL, exponents and relatives come with each of them.
    window, min_step, tile, perplexity, tsne
        Of ``diffusion_exponent``; models on each side of a tile (None: what suits their number and the memory); of the
        t-SNE map, if it is wanted and scikit-learn is there.
    memory_limit_bytes, threads
        Refuse to start when more could be needed with so many tiles at a time (None: Dask's setting, or one a CPU).
    sketches
        Weight sketches by key of those columns, among keys it is given, that have one: ``Store.read_sketches``.
    exact_weights
        Squared distances that ``klray weights`` wrote; variables whose names end in _exact (_aligned) come with it.
    begun
        What an analysis whose result has these attributes left of its matrices when it was cut short: tiles that need
        not be computed again.

    The Dataset has kl and kl_standard_error (model, other) bits/byte, or neighbour, neighbour_kl and
    neighbour_kl_standard_error (model, rank), or neither; relative, relative_kl and relative_kl_standard_error
    (model), of a quantised model and its unquantised self, of a fine-tuned one and its parent; consecutive_kl and
    consecutive_kl_standard_error (model) bits/byte, NaN for the first checkpoint of a run and beside excluded ones;
    previous_step (model), -1 when there is none; exponent_kl and exponent_kl_r_squared (model), NaN where no window
    starts; exponent_weights, exponent_weights_r_squared and consecutive_weight_distance (model), NaN without
    sketches, too; map_pca (model, component) in sqrt(bits/byte) and map_tsne (model, component), NaN for excluded
    models and for layers under a lens, and the maps of fine-tuned models and of layers if there are any (`maps`);
    text_kept (text); excluded (model); the coordinates of the snapshot. The attribute ``anomalies`` has the
    evidence for each anomalous checkpoint that was found, as JSON, ``excluded_reasons`` why each excluded one is,
    ``contested`` why a model with a step is in no run.

    KlrayError: more memory than the limit, a recipe or previous result that does not fit the snapshot, values that are
    not finite.
    """
    if tsne and (lacking := needed("a map by t-SNE", "sklearn")):
        logger.warning("%s; without it maps are by principal components alone", lacking)
        tsne = False
    if recipe is None and previous is not None:
        recipe = Recipe.from_json(previous.attrs["recipe"])
    left_out: list[Anomaly] = []
    if recipe is None:
        fit = partial(
            Recipe.fit,
            dataset,
            clip_quantile,
            outlier_fraction,
            outlier_min_step,
            exclude_misplaced=exclude_misplaced,
        )
        recipe = fit(exclude)
        if exclude_found:
            recipe, left_out = _without_anomalies(dataset, recipe, fit)
    if previous is not None:
        check_previous(previous, dataset, recipe)
    values = recipe.apply(dataset)
    text_bytes = values["text_bytes"].values
    reasons = recipe.reasons(dataset)
    excluded = np.array([reason != "" for reason in reasons])
    kept_all_the_same = {
        str(name): why
        for name, why, reason in zip(labels(dataset), misplaced_in(dataset), reasons, strict=True)
        if why and not reason
    }
    found, claims = runs(dataset, excluded), contested(dataset, excluded)
    plan = _checked_memory(values, tile, [len(run.models) for run in found], memory_limit_bytes, threads)
    kept, reference = pairs.chosen(pairs_kept, len(excluded)), recipe.reference_row(dataset, values)
    belongs = origin(dataset) | {"numerics": continuing.NUMERICS_VERSION, "recipe": recipe.to_json()}
    result = xr.Dataset()
    if kept == "all":
        result = pairs.matrices(values, text_bytes, reference, plan, previous, begun(belongs))
    elif kept == "neighbours":
        result = result.assign(pairs.neighbours(values, text_bytes, reference, plan, excluded, n_neighbours))
    rows_bytes = ROWS_BYTES if memory_limit_bytes is None else memory_limit_bytes // 4
    result = result.assign(pairs.relatives(values, excluded, rows_bytes))
    columns, present = _by_run(values, text_bytes, found, excluded, window, min_step)
    if sketches is not None:
        count, size = most_sketches(dataset, found)
        what = f"the weight sketches of {counted(count, 'checkpoint')} of a run with {size:,} buckets need"
        _refuse_beyond(memory_limit_bytes, drift_bytes(count, size), what, "dask.memory_limit=...")
    columns |= sketched_drift(dataset, found, excluded, sketches, window, min_step)
    if exact_weights is not None:
        columns |= exact_drift(dataset, found, excluded, exact_weights, window, min_step)
    for name, (column, attributes) in columns.items():
        result[name] = ("model", column, attributes)
    for name, (points, attributes) in maps(values, recipe.mean_bytes, excluded, perplexity, tsne).items():
        result[name] = (("model", "component"), points, attributes)
    result["text_kept"] = ("text", recipe.text_kept, {"long_name": "text kept by the recipe"})
    result["excluded"] = ("model", excluded, {"long_name": "model left out of windows, consecutive KL and maps"})
    result = result.assign_coords({n: c for n, c in dataset.coords.items() if set(c.dims) <= {"model", "text"}})
    result.attrs = belongs | {
        "title": "Trajectories of language models",
        "mean_bytes": recipe.mean_bytes,
        "window": window,
        "min_step": min_step,
        "excluded_reasons": json.dumps(
            {str(name): why for name, why in zip(labels(result), reasons, strict=True) if why}
        ),
        "pairs": kept,
        "exclude_found": exclude_found,
        "exclude_misplaced": exclude_misplaced,
        "misplaced": json.dumps(kept_all_the_same),
        "anomalies": json.dumps([asdict(anomaly) for anomaly in (*left_out, *present.values())]),
        "contested": json.dumps(claims),
        "references": "arXiv:2505.15353, arXiv:2502.16173",
    }
    for name, why in list(claims.items())[:1]:
        words = "in no run: %s, the first is %s: %s; exclude what does not belong to it (analysis.exclude)"
        logger.warning(words, counted(len(claims), "model"), name, why)
    for name, why in kept_all_the_same.items():
        logger.warning("%s is kept, with %s; analysis.recipe=fit leaves it out", name, why)
    for anomaly in left_out:
        logger.warning("%s is off its run's path and excluded: %s", anomaly.model, anomaly.evidence)
    for anomaly in present.values():
        logger.warning(
            "%s is off its run's path: %s; if it is broken, analysis.exclude=['%s'] or analysis.exclude_found=true "
            "with analysis.recipe=fit leaves it out",
            *(anomaly.model, anomaly.evidence, anomaly.model),
        )
    return result


def _without_anomalies(
    dataset: xr.Dataset, recipe: Recipe, fit: Callable[[Iterable[Exclusion]], Recipe]
) -> tuple[Recipe, list[Anomaly]]:
    """The recipe with found anomalies excluded, fitted again until there are no more, and what was found."""
    names, changed = names_of(dataset), quantised(dataset)
    left_out: list[Anomaly] = []
    for _ in range(_MAX_REFITS):
        values = recipe.apply(dataset)
        excluded = excluded_by(dataset, recipe.excluded)
        # Windows are not wanted here: a smallest step beyond all leaves them out.
        found = _by_run(values, values["text_bytes"].values, runs(dataset, excluded), excluded, 3, sys.maxsize)[1]
        if not found:
            break
        left_out += found.values()
        # A checkpoint that is broken is so in every variant; one that is broken when quantised, only there.
        new = [
            Exclusion(glob.escape(("" if changed[at] else names[at][2]) or names[at][0]), FOUND + anomaly.evidence)
            for at, anomaly in found.items()
        ]
        recipe = fit([*recipe.excluded, *new])
    return recipe, left_out


def projected_analysis(
    n_models: int,
    n_texts: int,
    longest_run: int,
    threads: int = 1,
    itemsize: int = 4,
    chunk_models: int = 1,
    budget_bytes: int | None = None,
    tile: int | None = None,
) -> Tiling:
    """The tiles of an analysis, and the bytes that ``analyze`` and the writing of its result hold at most.

    The largest of its three stages: all pairs by tiles; the pairs of a run, one run in each thread; the map, which up
    to ``embedding.EXACT_RANK`` models holds float64 copies of the values and Gram matrices.
    """
    pairs = tiling(n_models, n_texts, threads, itemsize, chunk_models, budget_bytes, tile)
    by_run = threads * tiling(max(longest_run, 1), n_texts, 1, itemsize, chunk_models).needed_bytes
    map_rows = min(n_models, embedding.EXACT_RANK)
    maps = map_rows * n_texts * (itemsize + 3 * 8) + 6 * 8 * min(map_rows, n_texts) ** 2
    return pairs._replace(needed_bytes=max(pairs.needed_bytes, by_run, maps))


def _checked_memory(
    values: xr.DataArray, tile: int | None, run_lengths: list[int], limit_bytes: int | None, threads: int | None
) -> Tiling:
    threads = threads or dask.config.get("num_workers", None) or CPU_COUNT
    n_models, n_texts = values.shape
    longest = max(run_lengths, default=0)
    chunk_models = max(values.data.chunks[0])
    asked = (values.dtype.itemsize, chunk_models, limit_bytes, tile)
    plan = projected_analysis(n_models, n_texts, longest, threads, *asked)
    size = f"{counted(n_models, 'model')} and {counted(n_texts, 'text')}"
    what = f"the analysis of {size} in tiles of {plan.tile:,} with {counted(threads, 'thread')}"
    cure = "dask.memory_limit=... or analysis.tile=... or dask.threads=..."
    _refuse_beyond(limit_bytes, plan.needed_bytes, f"{what} needs", cure)
    return plan


def _refuse_beyond(limit_bytes: int | None, needed: int, what: str, cure: str) -> None:
    if limit_bytes is not None and needed > limit_bytes:
        budget = f"the budget is {limit_bytes / 2**30:.2f} GiB"
        raise KlrayError(f"{what} about {needed / 2**30:.2f} GiB, {budget}; set {cure}")


def _by_run(
    values: xr.DataArray, text_bytes: np.ndarray, found: list[Run], excluded: np.ndarray, window: int, min_step: int
) -> tuple[Columns, dict[int, Anomaly]]:
    """Columns (K,) with their attributes, and the anomalies by position, from each run's own pairs.

    Layers under a lens are not judged: their checkpoint's own output is.
    """
    n_models = len(excluded)
    names = labels(values)
    tasks = []
    for run in found:
        rows = Panel(values.data[np.sort(run.models)])
        order = np.argsort(np.argsort(run.models))
        tasks.append(
            dask.delayed(_analyze_run, pure=False)(
                rows, order, names[run.models].tolist(), run.steps, excluded[run.models], text_bytes, window, min_step
            )
        )
    analyses: tuple[tuple[dict[str, np.ndarray], list[Anomaly]], ...] = dask.compute(*tasks)
    kl = {"units": "bit/byte", "references": _KL_PAPER}
    fit = {"units": "1", "references": _KL_PAPER, "window": window, "min_step": min_step}
    step = {"units": "1"}
    columns: Columns = {
        name: (np.full(n_models, np.nan), {**attributes, "long_name": long_name})
        for name, attributes, long_name in (
            ("consecutive_kl", kl, "KL divergence to the previous saved checkpoint of the run"),
            ("consecutive_kl_standard_error", kl, "standard error of consecutive_kl over texts"),
            ("previous_step", step, "step of the previous saved checkpoint of the run, -1 when there is none"),
            ("exponent_kl", fit, "diffusion exponent c_q of KL in the window that starts here"),
            ("exponent_kl_r_squared", fit, "R^2 of the fit of exponent_kl"),
        )
    }
    columns["previous_step"] = (np.full(n_models, -1, dtype=np.int64), columns["previous_step"][1])
    own = own_output(values)
    anomalies = {}
    for run, (of_run, off_path) in zip(found, analyses, strict=True):
        columns["previous_step"][0][run.models[1:]] = run.steps[:-1]
        for name, column in of_run.items():
            columns[name][0][run.models] = column
        for anomaly in off_path if own[run.models[0]] else ():
            anomalies[int(run.models[run.steps == anomaly.step][0])] = anomaly
    return columns, anomalies


def _analyze_run(
    panel: Panel,
    order: np.ndarray,
    names: list[str],
    steps: np.ndarray,
    excluded: np.ndarray,
    text_bytes: np.ndarray,
    window: int,
    min_step: int,
) -> tuple[dict[str, np.ndarray], list[Anomaly]]:
    """Columns (T,) of one run, and what is off its path, from (T, N) values, the t-th checkpoint in row order[t]."""
    rows = panel.read()[order]
    kl = kl_divergence(rows, text_bytes, threads=1)
    kl[excluded] = np.nan
    kl[:, excluded] = np.nan
    consecutive, standard_error = np.full((2, len(rows)), np.nan)
    consecutive[1:] = np.diagonal(kl, 1)
    standard_error[1:] = paired_standard_error(rows[:-1], rows[1:], text_bytes)
    standard_error[np.isnan(consecutive)] = np.nan
    exponent, r_squared = diffusion_exponent(steps, kl, window, min_step)
    columns = {"consecutive_kl": consecutive, "consecutive_kl_standard_error": standard_error}
    columns |= {"exponent_kl": exponent, "exponent_kl_r_squared": r_squared}
    return columns, find_anomalies(names, steps, kl)
