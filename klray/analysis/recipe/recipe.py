"""The recipe: the numbers that preprocessing chose, saved with every result made with them, and reused frozen.

Shapes: K = models, N = texts. Values are nats per text.
"""

import glob
import json
import logging
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import xarray as xr

from klray.analysis.defaults import CLIP_QUANTILE, OUTLIER_FRACTION, OUTLIER_MIN_STEP
from klray.analysis.facts import facts
from klray.analysis.recipe.misplaced import misplaced, misplaced_in
from klray.analysis.recipe.quantile import NotFiniteError, lower_quantile
from klray.analysis.recipe.reference import central, position
from klray.analysis.runs import by_step, claims, runs
from klray.errors import KlrayError
from klray.words.outside import parsed

if TYPE_CHECKING:
    from klray.checkpoints import Checkpoint

logger = logging.getLogger("klray")


@dataclass(frozen=True)
class Exclusion:
    """Checkpoints that are left out of clipping, text scores, windows, consecutive KL and maps.

    ``pattern`` (shell wildcards) is compared with the checkpoint's name, ``repository@revision``, which all its
    variants and layers share, with a model's label, which says the variant too, with what follows the last slash of
    either, and with its key.
    """

    pattern: str
    reason: str = "excluded by hand"

    def matches(self, *names: str) -> bool:
        """Whether the model with these names is meant: see `names_of`."""
        return any(fnmatchcase(each, self.pattern) for name in names for each in (name, name.rpartition("/")[2]))


FOUND = "found: "  # begins the reason of an exclusion that klray found by itself
PUBLISHED = "anomalous according to arXiv:2505.15353"
_SWAPPED = "its first file of weights is that of step143000 (EleutherAI/pythia#206)"
_AS_STEP_0 = "its weights are those of step0 (EleutherAI/pythia#83 and #198)"
_OTHER_SEED = "the run does not go on from it (EleutherAI/pythia#203)"
_ONE_FOR_THREE = "three revisions have the same files of weights (allenai/OLMo#915)"
KNOWN_ANOMALIES = (
    Exclusion("pythia-1b@step116000", PUBLISHED),
    Exclusion("pythia-410m-seed3@*", PUBLISHED),
    Exclusion("pythia-410m-seed4@*", PUBLISHED),
    Exclusion("EleutherAI/pythia-12b@step50000", _SWAPPED),
    Exclusion("EleutherAI/pythia-12b@step58000", _SWAPPED),
    Exclusion("EleutherAI/pythia-*@step1", _AS_STEP_0),
    Exclusion("EleutherAI/pythia-*@step2", _AS_STEP_0),
    Exclusion("EleutherAI/pythia-160m-weight-seed[12]@step0", _OTHER_SEED),
    Exclusion("allenai/OLMo-2-1124-7B@stage1-step101000-tokens424B", _ONE_FOR_THREE),
    Exclusion("allenai/OLMo-2-1124-7B@stage1-step175000-tokens735B", _ONE_FOR_THREE),
    Exclusion("allenai/OLMo-2-1124-7B@stage1-step300000-tokens1259B", _ONE_FOR_THREE),
)


@dataclass(frozen=True)
class Recipe:
    """How a snapshot is preprocessed."""

    text_set: str  # fingerprint of the text set that the numbers belong to
    n_texts: int  # N, before any was removed
    clip_quantile: float
    clip_threshold: float  # nats per text: every value below is raised to it
    outlier_fraction: float  # share of the texts that was to be removed
    min_step: int  # first step that counted for the text scores
    removed_texts: tuple[int, ...]  # positions, ascending
    mean_bytes: float  # B-bar, mean UTF-8 bytes of the kept texts
    excluded: tuple[Exclusion, ...] = ()
    note: str = ""  # what could not be done as asked
    reference: str = ""  # key of the model in the middle: see ``reference_row``

    @property
    def text_kept(self) -> np.ndarray:
        """(N,) bool: the texts that stay."""
        kept = np.ones(self.n_texts, dtype=bool)
        kept[list(self.removed_texts)] = False
        return kept

    @classmethod
    def fit(
        cls,
        dataset: xr.Dataset,
        clip_quantile: float = CLIP_QUANTILE,
        outlier_fraction: float = OUTLIER_FRACTION,
        min_step: int = OUTLIER_MIN_STEP,
        exclude: Iterable[Exclusion | str] = KNOWN_ANOMALIES,
        exclude_misplaced: bool = True,
    ) -> "Recipe":
        """Choose the numbers from a snapshot, in five passes over its values.

        The threshold is the exact ``clip_quantile`` of all values of the included models (their own output, no layers
        under a lens), as ``np.quantile(..., method="lower")``. A text's score is its largest absolute change, after
        clipping, between consecutive saved checkpoints of a run, both included and at ``min_step`` or later. The
        round(outlier_fraction N) texts with the largest scores are removed; without any such pair of checkpoints none
        is, and ``note`` says so. Excluded are also checkpoints with weights of another step, unless
        ``exclude_misplaced`` is False. KlrayError: shares outside [0, 1), no included model, values that are not
        finite, or fewer than 2 texts left.
        """
        for name, share in (("clip_quantile", clip_quantile), ("outlier_fraction", outlier_fraction)):
            if not 0.0 <= share < 1.0:
                raise KlrayError(f"{name} needs a share from 0 to below 1, it is {share}: choose for example 0.02")
        exclusions = tuple(Exclusion(item) if isinstance(item, str) else item for item in exclude)
        if exclude_misplaced:
            exclusions += _misplaced(dataset, exclusions)
        values = _matrix(dataset)
        excluded = excluded_by(dataset, exclusions)
        included = np.flatnonzero(~excluded & (facts(dataset, "layer", -1) < 0))
        if not included.size:
            raise KlrayError(
                f"a recipe needs models to be fitted to, all {len(excluded):,} of the snapshot are excluded or layers "
                "under a lens: exclude fewer, or pass the recipe of another analysis"
            )
        n_texts = values.shape[1]
        try:
            threshold = lower_quantile(values[included], clip_quantile)
        except NotFiniteError as error:
            raise _not_finite(dataset, values, included) from error
        n_removed = round(outlier_fraction * n_texts)
        scores = _text_scores(dataset, values, threshold, min_step, excluded) if n_removed else np.zeros(n_texts)
        note = ""
        if scores is None:
            note = f"no run has two consecutive checkpoints at steps >= {min_step:,}: all texts are kept"
            logger.warning("%s; %s", note, _smaller_min_step(dataset, excluded))
            scores, n_removed = np.zeros(n_texts), 0
        label, key, _ = names_of(dataset)[central(values, included)]
        removed = sorted(np.argsort(-scores, kind="stable")[:n_removed].tolist())
        if n_texts - len(removed) < 2:
            raise KlrayError(
                f"outlier_fraction={outlier_fraction} leaves {n_texts - len(removed)} of {n_texts} texts, at least 2 "
                "are needed: choose a smaller share or score more texts"
            )
        return cls(
            text_set=str(dataset.attrs.get("text_set", "")),
            n_texts=n_texts,
            clip_quantile=clip_quantile,
            clip_threshold=threshold,
            outlier_fraction=outlier_fraction,
            min_step=min_step,
            removed_texts=tuple(removed),
            mean_bytes=_mean_bytes(dataset, removed),
            excluded=exclusions,
            note=note,
            reference=key or label,
        )

    def apply(self, dataset: xr.Dataset) -> xr.DataArray:
        """The snapshot's log-likelihoods, clipped, of the kept texts: (K, kept texts) nats, Dask, texts in one chunk.

        KlrayError: the snapshot has another text set than the recipe, or its texts other lengths than the recipe says.
        """
        values = _matrix(dataset)
        found = str(dataset.attrs.get("text_set", ""))
        if found != self.text_set or values.shape[1] != self.n_texts:
            raise KlrayError(
                f"the recipe was made for text set {self.text_set[:12] or '(none)'} of {self.n_texts:,} texts, the "
                f"snapshot has {found[:12] or '(none)'} of {values.shape[1]:,} texts: fit a recipe to this snapshot"
            )
        mean_bytes = _mean_bytes(dataset, self.removed_texts)
        if not math.isclose(mean_bytes, self.mean_bytes, rel_tol=1e-9):
            raise KlrayError(
                f"the recipe says mean_bytes={self.mean_bytes}, and the texts that it keeps have {mean_bytes} in this "
                "snapshot: one of its numbers was changed; fit a recipe to this snapshot, or pass what was saved"
            )
        kept = np.flatnonzero(self.text_kept)
        clipped = values.map_blocks(
            _clip_block, kept, self.clip_threshold, chunks=(values.chunks[0], (len(kept),)), dtype=values.dtype
        )
        return dataset["log_likelihood"].transpose("model", "text").isel(text=kept).copy(data=clipped)

    def reference_row(self, dataset: xr.Dataset, values: xr.DataArray) -> np.ndarray:
        """(kept texts,) nats: the row of the reference among those that ``apply`` gave, else of the first model."""
        return np.asarray(values.isel(model=position(self.reference, names_of(dataset))).values, dtype=np.float64)

    def reasons(self, dataset: xr.Dataset) -> list[str]:
        """(K,) why each model of the snapshot is excluded; an empty string when it is not."""
        return _reasons(dataset, self.excluded)

    def to_json(self) -> str:
        """The recipe as JSON; every number comes back from it unchanged."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, body: str) -> "Recipe":
        """Inverse of ``to_json``; KlrayError when ``body`` is no recipe."""
        try:
            found = parsed(body)
            found["removed_texts"] = tuple(map(operator.index, found["removed_texts"]))
            found["excluded"] = tuple(Exclusion(**item) for item in found["excluded"])
            recipe = cls(**found)
            if not set(recipe.removed_texts) <= set(range(recipe.n_texts)):
                raise ValueError(f"removed_texts are places among {recipe.n_texts} texts")
            if not (math.isfinite(recipe.clip_threshold) and math.isfinite(recipe.mean_bytes)):
                raise ValueError("clip_threshold and mean_bytes are finite")
            texts = [text for each in recipe.excluded for text in (each.pattern, each.reason)]
            if not all(isinstance(text, str) for text in (*texts, recipe.reference)):
                raise ValueError("excluded has a pattern and a reason, and reference is one: all strings")
            return recipe
        except (ValueError, KeyError, TypeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise KlrayError(
                f"a recipe needs JSON with {names}; what was given cannot be read ({error!r}): "
                "pass what Recipe.to_json gave"
            ) from error


def suspicions(checkpoints: Sequence["Checkpoint"]) -> dict[str, str]:
    """Why analyses leave a checkpoint out, by its label, as far as that is known before it is scored."""
    swapped = misplaced(
        ((each.facts.run, each.facts.step, each.weight_files.split()) for each in checkpoints),
        ((each.facts.run, told) for each in checkpoints for told in each.elsewhere),
    )
    found = {}
    for each in checkpoints:
        known = next((exclusion.reason for exclusion in KNOWN_ANOMALIES if exclusion.matches(each.label)), "")
        if why := known or swapped.get((each.facts.run, -1 if each.facts.step is None else each.facts.step), ""):
            found[each.label] = why
    excluded = np.array([each.label in found for each in checkpoints], dtype=bool)
    steps = [-1 if each.facts.step is None else each.facts.step for each in checkpoints]
    of_runs = by_step((each.facts.run for each in checkpoints), steps).items()
    twice = claims(of_runs, excluded, [each.revision for each in checkpoints])
    return found | {checkpoints[at].label: why for at, why in twice.items()}


def _misplaced(dataset: xr.Dataset, known: tuple[Exclusion, ...]) -> tuple[Exclusion, ...]:
    """Exclusions of checkpoints that have weights of another step, beyond those that are ``known``."""
    found: dict[str, str] = {}
    for names, why in zip(names_of(dataset), misplaced_in(dataset), strict=True):
        if why and not any(each.matches(*names) for each in known):
            found[names[2] or names[0]] = why
    return tuple(Exclusion(glob.escape(name), why) for name, why in found.items())


def names_of(dataset: xr.Dataset) -> list[tuple[str, str, str]]:
    """(K,) label, key and checkpoint, ``repository@revision``, of each model; "" for what the dataset does not say."""
    labels, keys, repositories, revisions = (
        [str(each) for each in facts(dataset, name, "")] for name in ("model", "key", "repository", "revision")
    )
    checkpoints = [f"{of}@{at}" if of and at else "" for of, at in zip(repositories, revisions, strict=True)]
    return list(zip(labels, keys, checkpoints, strict=True))


def _not_finite(dataset: xr.Dataset, values: da.Array, included: np.ndarray) -> KlrayError:
    """Which of the ``included`` models have values that are not finite; klray scores none such."""
    odd = included[~da.isfinite(values[included]).all(axis=1).compute()]
    label = names_of(dataset)[odd[0]][0]
    return KlrayError(
        f"log_likelihood needs finite values, {len(odd):,} of {len(included):,} models have others, {label} the first: "
        f'score them again, or exclude them (analysis.exclude=["{label}"])'
    )


def excluded_by(dataset: xr.Dataset, exclusions: Iterable[Exclusion]) -> np.ndarray:
    """(K,) bool: the models that any of these exclusions matches."""
    return np.array([reason != "" for reason in _reasons(dataset, tuple(exclusions))], dtype=bool)


def _reasons(dataset: xr.Dataset, exclusions: tuple[Exclusion, ...]) -> list[str]:
    """(K,) reason of the first exclusion that matches each model; an empty string when none does."""
    return [
        next((exclusion.reason for exclusion in exclusions if exclusion.matches(*names)), "")
        for names in names_of(dataset)
    ]


def _matrix(dataset: xr.Dataset) -> da.Array:
    """The snapshot's (K, N) log-likelihoods as Dask, texts in one chunk."""
    missing = [name for name in ("log_likelihood", "text_bytes") if name not in dataset]
    if missing:
        raise KlrayError(
            f"an analysis needs a snapshot with log_likelihood (model, text) and text_bytes (text), this lacks "
            f"{missing}: open one with klray.open_dataset(url)"
        )
    values = dataset["log_likelihood"].transpose("model", "text").data
    values = values if isinstance(values, da.Array) else da.from_array(values)
    return values.rechunk({1: -1})


def _mean_bytes(dataset: xr.Dataset, removed: Sequence[int]) -> float:
    """B-bar, the mean UTF-8 bytes of the texts that are not removed."""
    return float(np.delete(dataset["text_bytes"].values, list(removed)).mean(dtype=np.float64))


def _clip_block(block: np.ndarray, kept: np.ndarray, threshold: float) -> np.ndarray:
    clipped = block[:, kept]
    return np.maximum(clipped, block.dtype.type(threshold), out=clipped)


def _text_scores(
    dataset: xr.Dataset, values: da.Array, threshold: float, min_step: int, excluded: np.ndarray
) -> np.ndarray | None:
    """(N,) largest |change| in nats between consecutive checkpoints after clipping; None without any such pair."""
    changes = []
    for run in runs(dataset, excluded):
        models = run.models[run.steps >= min_step]
        included = ~excluded[models]
        if not (included[1:] & included[:-1]).any():
            continue
        block = values[np.sort(models)].rechunk((-1, -1))
        order = np.argsort(np.argsort(models))
        changes.append(
            block.map_blocks(
                _largest_change, order, included, threshold, chunks=((1,), block.chunks[1]), dtype=np.float64
            )
        )
    return da.concatenate(changes).max(axis=0).compute() if changes else None


def _smaller_min_step(dataset: xr.Dataset, excluded: np.ndarray) -> str:
    """What to do when no run has two consecutive checkpoints at the smallest step or later: the largest that has."""
    starts = [
        int(run.steps[:-1][included[1:] & included[:-1]].max())
        for run in runs(dataset, excluded)
        if ((included := ~excluded[run.models])[1:] & included[:-1]).any()
    ]
    if not starts:
        return "score more checkpoints of one run"
    return f"analysis.outlier_min_step={max(starts)} or less scores the texts by shorter runs too (analysis=tiny: 100)"


def _largest_change(block: np.ndarray, order: np.ndarray, included: np.ndarray, threshold: float) -> np.ndarray:
    """(T, N) values, the t-th checkpoint in row order[t] -> (1, N) largest change between included neighbours."""
    largest = np.zeros((1, block.shape[1]))
    for t in np.flatnonzero(included[1:] & included[:-1]):
        earlier, later = (np.maximum(block[order[place]].astype(np.float64), threshold) for place in (t, t + 1))
        np.maximum(largest, np.abs(later - earlier), out=largest)
    return largest
