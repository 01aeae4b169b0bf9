"""The study on a small scale: its family, trained once for all tests, and a store that has every kind of column of it.

Three runs (two sizes, two seeds), four children of two generations, a mean of two; one run's last checkpoint quantised
in three ways, another's read layer by layer through two lenses. Everything goes the way of ``klray score``: a hub's
server, the cache, the scorer, the store.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from klray.analysis.analyze import analyze
from klray.checkpoints import Cache, Checkpoint, RepositorySpec, Selection, resolve
from klray.likelihood.choices import QUANTIZATIONS
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.measure.lens_training import train_lens
from klray.measure.settings import LensTraining
from klray.measure.weight_distances import as_dataset, measure_run
from klray.store import Store
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet, python_stdlib
from klray.tiny.family_recipe import SMALLEST, Child, Dense, FamilyRecipe, Merge, Size
from klray.tiny.hub_server import HubServer
from klray.tiny.routes import HubHandler
from tests.hub_faults import hub_of
from tests.scorers import scorer_here

PARENT = "klray/tiny-46k-seed1"
SEED2, LAYERED = "klray/tiny-46k-seed2", "klray/tiny-58k-seed1"
PROSE, CODE, STILL = f"{PARENT}-prose", f"{PARENT}-code", f"{PARENT}-still"
GRANDCHILD = f"{PROSE}-code"
MERGED = f"{PARENT}-merged"
SCALED = dataclasses.replace(
    SMALLEST,
    sizes=(
        Size("46k", hidden=32, layers=1, learning_rate=4e-3),
        Size("58k", hidden=32, layers=2, learning_rate=4e-3, seeds=(1,)),
    ),
    seeds=(1, 2),
    steps=24,
    dense=(Dense(PARENT, steps=(3, 5, *range(6, 24, 2))),),
    children=(
        Child(PARENT, "prose", ("prose",), steps=5, learning_rate=2e-3),
        Child(PARENT, "code", ("code",), steps=5, learning_rate=2e-3),
        Child(PARENT, "still", ("prose", "code"), steps=1, learning_rate=0.0),
        Child(PROSE, "code", ("code",), steps=5, learning_rate=2e-3, seed=2),
    ),
    merges=(Merge(MERGED, (PROSE, CODE)),),
)
LAST = f"step{SCALED.steps}"
WINDOW, MIN_STEP = 4, 2
SKETCH = 4096  # buckets: a run has 46 thousand parameters, so that this is a sketch


@dataclasses.dataclass(frozen=True)
class Study:
    """The store, what was computed from it, and how often each file was asked for, by stage and path."""

    root: Path  # of the hub's folder
    texts: TextSet
    store: Store
    dataset: xr.Dataset
    result: xr.Dataset
    asked: dict[str, Counter[str]]
    checkpoints: dict[str, list[Checkpoint]]

    def save(self, folder: Path) -> None:
        """Keep for :meth:`load` what the store in ``folder`` does not hold."""
        (folder / "study.pickle").write_bytes(pickle.dumps((self.root, self.result, self.asked, self.checkpoints)))

    @staticmethod
    def load(folder: Path) -> Study:
        """The study that was saved there, its store opened anew."""
        root, result, asked, checkpoints = pickle.loads((folder / "study.pickle").read_bytes())
        store = Store.open(str(folder / "store"))
        return Study(root, study_texts(), store, store.dataset(), result, asked, checkpoints)


def study_texts() -> TextSet:
    return python_stdlib(n=64)


class CountingHandler(HubHandler):
    """Counts the requests for each file, too, by their path."""

    def count(self, route: str) -> None:
        super().count(route)
        if route == "resolve GET":
            super().count(self.path)


class CountingHub(HubServer):
    """A hub that knows how often each file was asked for."""

    handler = CountingHandler


def checkpoints_of(server: HubServer, recipe: FamilyRecipe = SCALED) -> list[Checkpoint]:
    """Every checkpoint of the family, with its size and seed."""
    runs = {run.repository: run for run in recipe.runs}
    specs = []
    for made in recipe.all:
        seed = runs[made.repository].seed if made.repository in runs else None
        revisions = "step*" if made.repository in runs else "main"
        specs.append(RepositorySpec(made.repository, revisions, recipe.size_of(made.repository).name, seed))
    found, unavailable = resolve(hub_of(server), Selection("tiny_study", tuple(specs)))
    assert not unavailable
    return found


def make_study(root: Path, folder: Path) -> Study:
    """Score the family in ``root`` in every way into a store in ``folder``, publish and analyse it."""
    asked: dict[str, Counter[str]] = {}
    checkpoints: dict[str, list[Checkpoint]] = {}
    texts = study_texts()
    server = CountingHub(root)
    store = Store.create(str(folder / "store"), texts)
    cache = str(folder / "cache")

    def stage(name: str, chosen: Sequence[Checkpoint], **settings: str) -> None:
        scorer = scorer_here(
            hub_of(server), store.url, texts, ScoringSettings(cache_dir=cache, sketch=SKETCH, **settings)
        )
        for place, checkpoint in enumerate(chosen):
            scorer.score(checkpoint, chosen[place + 1 : place + 3])
        scorer.cache.close()
        ended(name, chosen)

    def ended(name: str, chosen: Sequence[Checkpoint]) -> None:
        asked[name] = Counter({path: n for path, n in server.requests.items() if "/resolve/" in path})
        checkpoints[name] = list(chosen)
        for path in asked[name]:
            del server.requests[path]

    with server:
        every = checkpoints_of(server)
        stage("plain", every)
        last = {each.repository: each for each in every if each.revision == LAST}
        for quantization in sorted(set(QUANTIZATIONS) - {"none"}):
            stage(quantization, [last[PARENT]], quantization=quantization)
        stage("logit", [last[LAYERED]], lens="logit")
        files = root / LAYERED / LAST
        trained_on = encode(load_tokenizer(files), python_stdlib("train", n=24).texts)
        lens = train_lens(load(files).model, trained_on, LensTraining(steps=12, learning_rate=1e-2))
        assert lens.translators is not None
        lens.translators.save(folder / "lens")
        stage("tuned", [last[LAYERED]], lens=lens.name, lens_folder=str(folder / "lens"))
        run = [each for each in every if each.repository == PARENT]
        with Cache(folder / "exact", 10**9) as exact:
            measured = measure_run(hub_of(server), exact, run, WINDOW, limit_bytes=10**9)
        ended("exact", run)
    store.publish()
    dataset = store.dataset()
    result = analyze(
        dataset,
        outlier_min_step=4,
        window=WINDOW,
        min_step=MIN_STEP,
        tsne=False,
        sketches=store.read_sketches,
        exact_weights=as_dataset([measured], WINDOW, "none"),
    )
    return Study(root, texts, store, dataset, result.load(), asked, checkpoints)
