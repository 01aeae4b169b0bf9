"""Which pairs of a snapshot's models make each setting, arXiv:2505.15353, Figure 3.

Shapes: K = models of the snapshot, P = pairs. A pair is two positions in the snapshot.
"""

import itertools
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from klray.analysis.defaults import Choice
from klray.analysis.facts import NO_QUANTIZATION
from klray.analysis.runs import Run
from klray.analysis.scale.compared_models import Models
from klray.analysis.scale.generations import Lineages, lineages, parent_of

EIGHT_BITS = ("int8",)
FOUR_BITS = ("fp4", "nf4")
DEFAULT_CHOICE = Choice()


def setting_pairs(models: Models, choice: Choice = DEFAULT_CHOICE) -> dict[str, np.ndarray]:
    """Pairs of the ten settings and of those counted apart, (P, 2) int64 each; no pair has an excluded model.

    Plain models (their own output, not quantised) are compared in one dtype, that of most of them. Runs are those of
    pretraining: models with a parent have none.

    later, early
        Consecutive saved checkpoints of every run, exactly ``spacing`` steps apart, later step above ``min_step``: the
        last and the first ``number`` of each run, over all runs.
    seed
        Within each family, size and branch, all pairs of runs with different seeds at the last step that all of them
        have.
    size
        Within each family, seed (or no seed) and branch, all pairs of runs of different sizes at the last step that all
        have.
    8-bit, 4-bit
        A quantised checkpoint (int8; fp4 and nf4, counted apart too) against the same commit unquantised, in the same
        dtype if there is one. Other quantisations are settings of their own name. So are those that files were stored
        in, such as Q4_K_M of GGUF: such a copy against its single parent.
    dtype bfloat16, dtype float16, ...
        A plain checkpoint against the same commit in another dtype; counted apart.
    fine-tuning
        A distinct model (its repository's final checkpoint) against its single parent, see ``lineage``.
    intra-type
        Distinct models of the same architecture class, drawn without replacement from all such pairs: as many within
        each class as it has fine-tuned children in "fine-tuning".
    random
        Distinct models, drawn without replacement from all pairs: as many as "fine-tuning" has.
    layer
        Adjacent layers of one checkpoint under the logit lens; under a tuned lens counted apart.
    """
    family = lineages(models)
    early, later = consecutive_pairs(models, choice)
    found = {
        "later": later,
        "early": early,
        "seed": _common_step_pairs(models, ("family", "size", "branch"), "seed"),
        "size": _common_step_pairs(models, ("family", "seed", "branch"), "size"),
        "8-bit": quantization_pairs(models, EIGHT_BITS),
        "4-bit": quantization_pairs(models, FOUR_BITS),
        "fine-tuning": family.pairs,
        "intra-type": intra_type_pairs(models, family, choice),
        "random": random_pairs(models, family, choice),
        "layer": layer_pairs(models, "logit"),
    }
    found |= {f"4-bit {name}": quantization_pairs(models, (name,)) for name in FOUR_BITS}
    others = sorted(set(models.labels["quantization"].tolist()) - {*NO_QUANTIZATION, *EIGHT_BITS, *FOUR_BITS})
    found |= {f"quantization {name}": quantization_pairs(models, (name,)) for name in others}
    for name, pairs in stored_pairs(models).items():
        found[f"quantization {name}"] = _joined([found.get(f"quantization {name}", _array([])), pairs])
    found["layer, tuned lens"] = layer_pairs(models, "tuned")
    return found | dtype_pairs(models)


def consecutive_pairs(models: Models, choice: Choice = DEFAULT_CHOICE) -> tuple[np.ndarray, np.ndarray]:
    """Early and later pairs of consecutive checkpoints, pooled over the runs."""
    early, later = [], []
    for run in models.runs:
        usable = (np.diff(run.steps) == choice.spacing) & (run.steps[1:] > choice.min_step)
        pairs = np.stack([run.models[:-1], run.models[1:]], axis=1)[usable]
        n = min(choice.number, len(pairs) // 2)
        early.append(pairs[:n])
        later.append(pairs[len(pairs) - n :])
    return _joined(early), _joined(later)


def quantization_pairs(models: Models, names: Sequence[str]) -> np.ndarray:
    """Unquantised and quantised, for each quantised checkpoint with one of these quantisations."""
    chosen = np.flatnonzero((models.selves >= 0) & np.isin(models.labels["quantization"], list(names)))
    return np.stack([models.selves[chosen], chosen], axis=1)


def dtype_pairs(models: Models) -> dict[str, np.ndarray]:
    """Plain checkpoint and itself in another dtype, by that dtype."""
    told = [models.labels[name] for name in ("repository", "revision", "commit")]
    plain = {tuple(str(each[place]) for each in told): place for place in np.flatnonzero(models.plain).tolist()}
    whole = (models.layers < 0) & np.isin(models.labels["quantization"], NO_QUANTIZATION) & ~models.excluded
    pairs: dict[str, list[tuple[int, int]]] = {}
    for place in np.flatnonzero(whole & ~models.plain).tolist():
        if (itself := plain.get(tuple(str(each[place]) for each in told))) is not None:
            pairs.setdefault(f"dtype {models.labels['dtype'][place]}", []).append((itself, place))
    return {name: _array(pairs[name]) for name in sorted(pairs)}


def stored_pairs(models: Models) -> dict[str, np.ndarray]:
    """Parent and copy, for each copy whose files are quantised and whose parent is there, by how they are."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    for copy in models.copies.tolist():
        name, parent = str(models.labels["stored_quantization"][copy]), parent_of(models, copy)
        if name and parent is not None:
            pairs.setdefault(name, []).append((parent, copy))
    return {name: _array(pairs[name]) for name in sorted(pairs)}


def intra_type_pairs(models: Models, family: Lineages, choice: Choice = DEFAULT_CHOICE) -> np.ndarray:
    """Random pairs of distinct models within each architecture class."""
    finals = np.array(sorted(models.finals.values()), dtype=np.int64)
    types = models.labels["architecture"]
    drawn = []
    for name in sorted(set(types[finals].tolist()) - {""}):
        wanted = choice.draws or int((types[family.pairs[:, 0]] == name).sum())
        # a stream for each class: what is drawn within one does not depend on the others
        generator = np.random.default_rng([choice.seed, 1, zlib.crc32(name.encode())])
        drawn.append(_draw(finals[types[finals] == name], wanted, generator))
    return _joined(drawn)


def random_pairs(models: Models, family: Lineages, choice: Choice = DEFAULT_CHOICE) -> np.ndarray:
    """Random pairs of distinct models."""
    finals = np.array(sorted(models.finals.values()), dtype=np.int64)
    return _draw(finals, choice.draws or len(family.pairs), np.random.default_rng([choice.seed, 2]))


def layer_pairs(models: Models, lens: str) -> np.ndarray:
    """Adjacent layers of each unquantised checkpoint under a lens, "logit" or "tuned" (all tuned lenses)."""
    columns: dict[tuple[str, ...], dict[int, int]] = {}
    lenses = models.labels["lens"]
    chosen = (lenses == lens) | np.char.startswith(lenses, f"{lens}-")
    chosen &= (models.layers >= 0) & np.isin(models.labels["quantization"], NO_QUANTIZATION) & ~models.excluded
    for place in np.flatnonzero(chosen).tolist():
        group = tuple(str(models.labels[name][place]) for name in ("repository", "commit", "dtype", "lens"))
        columns.setdefault(group, {})[int(models.layers[place])] = place
    return _array((at[layer], at[layer + 1]) for at in columns.values() for layer in sorted(at) if layer + 1 in at)


def _common_step_pairs(models: Models, shared: tuple[str, ...], differing: str) -> np.ndarray:
    """Pairs of runs that share these and differ in that alone, at their last common step."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in models.runs:
        if getattr(run, differing) not in ("", None):
            groups.setdefault(tuple(getattr(run, name) for name in shared), []).append(run)
    pairs = []
    for of_group in groups.values():
        common = set.intersection(*(set(run.steps.tolist()) for run in of_group))
        if common:
            last = [int(run.models[run.steps == max(common)][0]) for run in of_group]
            unlike = [getattr(run, differing) for run in of_group]
            pairs += [
                (last[i], last[j]) for i, j in itertools.combinations(range(len(last)), 2) if unlike[i] != unlike[j]
            ]
    return _array(pairs)


def _draw(places: np.ndarray, wanted: int, generator: np.random.Generator) -> np.ndarray:
    """``wanted`` different unordered pairs of places, or all if there are no more."""
    n = len(places)
    total = n * (n - 1) // 2
    codes = np.sort(generator.choice(total, min(wanted, total), replace=False)) if total else np.empty(0, np.int64)
    ends = np.cumsum(np.arange(n - 1, 0, -1))  # pairs (0, .), (1, .), ... end here
    first = np.searchsorted(ends, codes, side="right")
    second = codes - (np.concatenate([[0], ends])[first]) + first + 1
    return np.stack([places[first], places[second]], axis=1).astype(np.int64).reshape(-1, 2)


def _array(pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    return np.array(list(pairs), dtype=np.int64).reshape(-1, 2)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else _array([])
