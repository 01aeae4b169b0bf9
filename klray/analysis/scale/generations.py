"""Lineage within a snapshot: children with their parents, generations, and what is kept apart."""

from dataclasses import dataclass

import numpy as np

from klray.analysis.scale.compared_models import Models

NO_FINE_TUNING = ("merge", "adapter", "quantized")
MIN_SHA = 7  # characters of a commit sha that name it


@dataclass(frozen=True)
class Lineages:
    """Children of the snapshot, C of which have their single parent in it."""

    pairs: np.ndarray  # (C, 2) int64, positions of child and parent, in the order of the children
    generation: dict[str, int]  # of a repository: 0 without a parent in the snapshot, 1 for its children, 2 for theirs
    # Distinct models that were made by no fine-tuning: "merge" (several parents, or the hub calls it one), "adapter",
    # "quantized".
    apart: dict[str, int]
    absent: tuple[str, ...]  # fine-tuned ones whose parent is not in the snapshot, or not at the revision that is named


def lineages(models: Models) -> Lineages:
    """Each distinct model against its single parent.

    The child is its repository's final checkpoint. The parent is found by its repository: at the revision that is named
    (a branch, a tag, or a commit sha), else its final checkpoint. A single parent with a relation that is not said
    counts as fine-tuning.
    """
    finals = models.finals
    pairs, parents = [], {}
    apart = dict.fromkeys(NO_FINE_TUNING, 0)
    apart["quantized"] = len(set(models.labels["repository"][models.copies].tolist()))
    absent = []
    for repository, child in finals.items():
        named, relation = (str(models.labels[name][child]) for name in ("base_model", "relation"))
        if models.labels["stored_quantization"][child]:
            relation = "quantized"  # it may be fine-tuned as well
        if relation in NO_FINE_TUNING:
            apart[relation] += 1
            continue
        if named in ("", repository):
            continue
        parent = parent_of(models, child)
        if parent is None:
            absent.append(repository)
            continue
        pairs.append((child, parent))
        parents[repository] = named
    generation = {repository: _generation(repository, parents) for repository in finals}
    return Lineages(np.array(pairs, dtype=np.int64).reshape(-1, 2), generation, apart, tuple(absent))


def parent_of(models: Models, child: int) -> int | None:
    """Position of a model's single parent: at the revision that is named, else its final checkpoint."""
    named, revision = (str(models.labels[name][child]) for name in ("base_model", "base_revision"))
    return _at(models, named, revision) if revision else models.finals.get(named)


def _at(models: Models, repository: str, revision: str) -> int | None:
    """The last plain row of a repository at a revision."""
    named = models.labels["revision"] == revision
    if len(revision) >= MIN_SHA:
        named |= np.char.startswith(models.labels["commit"], revision)
    found = np.flatnonzero(models.plain & (models.labels["repository"] == repository) & named)
    return int(found[-1]) if len(found) else None


def _generation(repository: str, parents: dict[str, str]) -> int:
    """How many parents up; cards can name each other in a circle, which ends where it began."""
    seen = {repository}
    while (parent := parents.get(repository)) is not None and parent not in seen:
        seen.add(parent)
        repository = parent
    return len(seen) - 1
