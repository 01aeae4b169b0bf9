"""Published log-likelihoods as columns of a store: looked at, told apart from what klray scored, and committed.

Shapes: N = texts.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice

import numpy as np

from klray.errors import KlrayError
from klray.store.adopted.files import Published, PublishedFile, told
from klray.store.columns import Column, find_commits, values_sha256
from klray.store.identity import Identity
from klray.store.store import Store
from klray.store.text_facts import TextFacts
from klray.words.outside import fault
from klray.words.revisions import run_of

log = logging.getLogger("klray")

TOKENIZATION = "adopted"  # how the publisher tokenised is not known
NUMERICS_VERSION = 0  # of no version of klray's
AT_ONCE = 16  # columns that are written together
LOOKED_AT = 64  # models from which the order of the texts is judged
LEAST_TEXTS = 1000  # for that
CLIPPED_SHARE = 0.005  # of a model's values that are the smallest of all: no model gives so many texts the same


@dataclass(frozen=True)
class Source:
    """What a file does not say of itself.

    ``name`` is that of the publication: what it published is told by it from what others did. ``dtype`` is that in
    which models were scored, ``repository`` how a model is called on its hub, ``{}`` being its name in the file.
    """

    name: str
    dtype: str = "unknown"
    quantization: str = "none"
    family: str = ""
    repository: str = "{}"


@dataclass(frozen=True)
class Adopted:
    """How many columns are new, how many were there, and names without values."""

    new: int
    present: int
    without: tuple[str, ...]


def adopt(
    store: Store, file: PublishedFile, source: Source, report: Callable[[str, int, int], None] | None = None
) -> Adopted:
    """Commit the models of ``file`` as columns; those that are there already stay.

    The values are what was published, rounded to float32. Each column says that it was adopted: by its commit, which is
    ``adopted:NAME``, by a tokenisation and a numerics version of its own, and by a warning, which status, snapshots and
    reports repeat. So it never passes for one that klray scored.

    Raises KlrayError: the file is of other texts, its values do not follow the lengths of the store's texts, or a model
    was adopted under this name with other values.
    """
    check_texts(store.texts, file)
    warning = f"adopted from {file.name} ({source.name}), not scored by klray"
    low = _clipped_at(file)
    if low is not None:
        warning += f"; values were clipped at {low:.6g} nats before they were published"
        words = "%s: many values are exactly %s: they were clipped; adopt those that were not, if there are such"
        log.warning(words, file.name, low)
    total = sum(1 for _ in file.models())
    there = store.committed_keys()
    new = present = 0
    with ThreadPoolExecutor(AT_ONCE) as writers:
        columns = (_column(store, each, source, warning) for each in file.models())
        while batch := list(islice(columns, AT_ONCE)):
            writing: list[Future[bool]] = []
            for column in batch:
                if column.identity.key in there:
                    _check_same(store, column)
                    present += 1
                else:
                    there.add(column.identity.key)
                    writing.append(writers.submit(lambda each: store.add_column(each)[1], column))
            new += sum(each.result() for each in writing)
            if report:
                report("models", new + present, total)
    return Adopted(new, total - new, file.without)


def check_texts(texts: TextFacts, file: PublishedFile) -> None:
    """Refuse a file whose values are not those of these texts, in their order, as far as that can be told.

    A longer text has a lower log-likelihood, in every model. Where this does not show, the texts are others or are
    ordered otherwise, and every KL would be noise.
    """
    if file.text_set and file.text_set != texts.fingerprint:
        raise KlrayError(
            f"adopt.path={file.name} says that it is of text set {file.text_set[:8]}..., and the texts that were given "
            f"are {texts.fingerprint[:8]}... ({texts.name}): set texts= and store.url= to those of its texts"
        )
    lengths = texts.text_bytes.astype(np.float64)
    rows = [row for model in islice(file.models(), LOOKED_AT) for row in model.values.values()]
    if not rows:
        raise KlrayError(f"adopt.path={file.name}: no model in it has values")
    if len(lengths) < LEAST_TEXTS or lengths.std() < 0.01 * lengths.mean():
        log.warning("%s: whether its values belong to these texts cannot be told from their lengths", file.name)
        return
    middle = np.median(rows, axis=0)
    follows = -np.corrcoef(middle, lengths)[0, 1] if middle.std() > 0 else 0.0
    if not follows > 3 / np.sqrt(len(lengths)):
        raise KlrayError(
            f"adopt.path={file.name}: its values do not follow the lengths of the texts (correlation {follows:.3f}): "
            "they are of other texts, or of these in another order; set texts= to those that the models were scored on"
        )


def _clipped_at(file: PublishedFile) -> float | None:
    """The smallest value, if so many values have it that it was made by clipping."""
    rows = np.array([row for model in islice(file.models(), LOOKED_AT) for row in model.values.values()])
    low = rows.min()
    many = (rows == low).sum()
    return float(low) if many > 2 and many > CLIPPED_SHARE * rows.size else None


def _column(store: Store, model: Published, source: Source, warning: str) -> Column:
    repository = source.repository.replace("{}", model.name)
    if why := fault(repository) or ("" if repository.strip("/") else "is empty"):
        raise KlrayError(f"a model's name {why}; rename it in the file")
    revision = source.name if model.step is None else f"step{model.step}"
    layers = tuple(model.values)
    identity = Identity(
        repository=repository,
        commit=f"adopted:{source.name}" + ("" if model.step is None else f":{revision}"),
        text_set=store.texts.fingerprint,
        dtype=source.dtype,
        quantization=source.quantization,
        lens="none" if layers == (-1,) else "logit",
        tokenization=TOKENIZATION,
        numerics=NUMERICS_VERSION,
    )
    facts = {"family": source.family or source.name, "revision": revision, **told(model.facts), "warnings": [warning]}
    if source.family:
        facts["family"] = source.family
    if model.step is not None:
        facts |= {"step": model.step, "run": run_of(repository, revision), "size": facts.get("size") or model.name}
    values = np.stack(list(model.values.values()))
    return Column(identity, values, layers, None, facts, {"klray": version("klray")}, {})


def _check_same(store: Store, column: Column) -> None:
    """Refuse to pass over a column that is there with other values."""
    for commit in find_commits(store.objects, [column.identity.key]):
        if commit.sha256 != values_sha256(np.asarray(column.log_likelihood, dtype=np.float32)):
            raise KlrayError(
                f"{column.identity.repository} was adopted as {column.identity.commit} before, with other values: set "
                "adopt.name= to another name, so that both can be told apart"
            )
