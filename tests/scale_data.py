"""A synthetic snapshot with every kind of row that the scale looks at, models in a shuffled order."""

from __future__ import annotations

from collections.abc import Sequence

import dask.array as da
import numpy as np
import xarray as xr

from klray.store import Column, Identity, Store
from klray.store.columns import commit_column
from tests.stores import put_column

DEFAULTS: dict[str, str | int] = {
    **dict.fromkeys(("family", "run", "size", "base_model", "base_revision", "parents", "relation"), ""),
    **{"step": -1, "seed": -1, "layer": -1},
    **{"dtype": "float32", "quantization": "none", "lens": "none", "architecture": "GPTNeoXForCausalLM"},
}


def scale_snapshot(n_texts: int = 150, last_step: int = 120_000, random_state: int = 0) -> xr.Dataset:
    """Runs of three sizes and of two times several seeds, some excluded by the paper; models of three architectures
    with children, grandchildren, merges, an adapter; quantised ones; layers under two lenses; a run in two dtypes.
    """
    steps = (0, 512, *range(1000, last_step + 1, 1000))
    rng = np.random.default_rng(random_state)
    text = -rng.gamma(4.0, 250.0, n_texts)
    rows: list[np.ndarray] = []
    facts: list[dict[str, str | int]] = []

    def add(row: np.ndarray, repository: str, revision: str, **known: str | int) -> np.ndarray:
        rows.append(row)
        commit = f"{abs(hash_of(repository, revision)):040x}"
        facts.append({**DEFAULTS, "repository": repository, "revision": revision, "commit": commit, **known})
        return row

    def walk(repository: str, steps: tuple[int, ...], **known: str | int) -> None:
        row = text + rng.normal(size=n_texts) * 30
        for before, step in zip([0, *steps], steps, strict=False):
            row = row + rng.standard_t(5, n_texts) * 0.1 * np.sqrt(step - before)
            add(row, repository, f"step{step}", run=repository, step=step, **known)

    # three sizes: one ends early and lacks a checkpoint, one has the checkpoint that the paper excludes
    walk("org/pythia-14m", steps, family="pythia", size="14m")
    walk(
        "org/pythia-70m", tuple(s for s in steps if s != 50_000 and s <= last_step - 5000), family="pythia", size="70m"
    )
    walk("org/pythia-1b", tuple(s for s in steps if s <= 118_000), family="pythia", size="1b")
    # seeds: of the larger size the paper excludes the runs of two; the last step of the smaller ones differs
    few = (1000, 2000, 5000, 6000, 7000)
    for seed in (1, 2, 3):
        walk(f"org/pythia-14m-seed{seed}", few[: 3 + seed % 2], family="seeds", size="14m", seed=seed)
    for seed in (1, 2, 3, 4, 5):
        walk(f"org/pythia-410m-seed{seed}", few, family="seeds", size="410m", seed=seed)
    for place in np.flatnonzero([fact["run"] == "org/pythia-14m-seed1" for fact in facts]):
        add(rows[place] + rng.normal(size=n_texts) * 0.2, **{**facts[place], "dtype": "bfloat16"})  # type: ignore[arg-type]

    for kind, count in (("LlamaForCausalLM", 6), ("MistralForCausalLM", 4), ("Qwen2ForCausalLM", 1)):
        for number in range(count):
            name = f"{kind[:5].lower()}/base-{number}"
            base = add(text + rng.normal(size=n_texts) * 40, name, "main", architecture=kind, run=name)
            for bits, noise in (("int8", 2.0), ("fp4", 6.0), ("nf4", 5.0), ("int4wo", 7.0)):
                if number < 2:
                    add(base + rng.normal(size=n_texts) * noise, name, "main", architecture=kind, quantization=bits)
            if number == 0:
                for dtype in ("float16",):  # then this is the self of what was quantised in float16
                    add(base + rng.normal(size=n_texts) * 0.1, name, "main", architecture=kind, dtype=dtype)
                half = base + rng.normal(size=n_texts) * 2
                add(half, name, "main", architecture=kind, dtype="float16", quantization="int8")
                for lens in ("logit", "tuned-1234abcd"):
                    for layer in range(5):
                        row = base + rng.normal(size=n_texts) * 50 * (4 - layer)
                        add(row, name, "main", architecture=kind, lens=lens, layer=layer)
    add(text + rng.normal(size=n_texts) * 9, "gone/packed", "main", quantization="int8")  # without its self
    for layer in range(4):
        add(text + rng.normal(size=n_texts) * 9, "org/pythia-1b", "step116000", lens="logit", layer=layer, step=116_000)

    def child(name: str, parent: str, row: np.ndarray, kind: str, revision: str = "main", **known: str | int) -> None:
        told = {"base_model": parent, "parents": parent, **known}
        add(row + rng.normal(size=n_texts) * 12, name, revision, architecture=kind, run=name, **told)

    place = {(str(f["repository"]), str(f["revision"])): i for i, f in reversed(list(enumerate(facts)))}
    llama, mistral = rows[place["llama/base-0", "main"]], rows[place["mistr/base-1", "main"]]
    child("some/child-a", "llama/base-0", llama, "LlamaForCausalLM", relation="finetune")
    child("some/child-b", "llama/base-0", llama, "LlamaForCausalLM")
    child("some/grandchild", "some/child-a", rows[-2], "LlamaForCausalLM", relation="finetune")
    child("some/child-m", "mistr/base-1", mistral, "MistralForCausalLM", relation="finetune")
    for step in (1000, 2000):  # a run of fine-tuning is no pretraining run; its last checkpoint is the model
        run = rows[place["org/pythia-14m", f"step{last_step}"]]
        child("some/child-p", "org/pythia-14m", run, "GPTNeoXForCausalLM", f"step{step}", step=step, size="x")
    early = rows[place["org/pythia-14m", "step3000"]]
    child("some/early", "org/pythia-14m", early, "GPTNeoXForCausalLM", base_revision="step3000")
    child("some/orphan", "away/parent", llama, "LlamaForCausalLM", relation="finetune")
    child("some/unfound", "org/pythia-14m", early, "GPTNeoXForCausalLM", base_revision="step3001")
    child("some/adapter", "llama/base-0", llama, "LlamaForCausalLM", relation="adapter")
    child("some/packed", "llama/base-0", llama, "LlamaForCausalLM", relation="quantized")
    both = {"base_model": "", "parents": "llama/base-0, some/child-a", "relation": "merge"}
    add(llama + rng.normal(size=n_texts), "some/merged", "main", architecture="LlamaForCausalLM", **both)
    child("some/soup", "llama/base-1", llama, "LlamaForCausalLM", relation="merge")

    order = rng.permutation(len(rows))
    values = np.array(rows, dtype=np.float32)[order]
    facts = [facts[i] for i in order]
    columns = {name: np.array([fact[name] for fact in facts]) for name in facts[0]}
    texts = {
        name: ("model", each.astype(np.dtypes.StringDType()))
        for name, each in columns.items()
        if each.dtype.kind == "U"
    }
    numbers = {name: ("model", each) for name, each in columns.items() if each.dtype.kind != "U"}
    usual = ("float32", "none", -1)
    labels = [
        f"{fact['repository']}@{fact['revision']}"
        + "".join(f"+{fact[part]}" for part in ("dtype", "quantization", "lens", "layer") if fact[part] not in usual)
        for fact in facts
    ]
    assert len(set(labels)) == len(labels)
    return xr.Dataset(
        {"log_likelihood": (("model", "text"), da.from_array(values, chunks=(50, -1)), {"units": "nat"})},
        coords={
            "model": strings(labels),
            "key": ("model", strings([f"{place:064x}" for place in range(len(rows))])),
            **texts,
            **numbers,
            "text": np.arange(n_texts),
            "text_bytes": ("text", rng.integers(257, 1025, n_texts).astype(np.int32)),
            "domain": ("text", strings(["prose" if i % 3 else "code" for i in range(n_texts)])),
        },
        attrs={"snapshot": "20260102T030405Z-5f2a9c1e", "text_set": "3f" * 32, "text_set_name": "synthetic"},
    )


def strings(values: Sequence[str]) -> np.ndarray:
    """As a snapshot has them: of variable width."""
    return np.array(values, dtype=np.dtypes.StringDType())


def hash_of(*parts: str) -> int:
    """The same number in every process."""
    return int.from_bytes("@".join(parts).encode()[-15:], "big")


def fill_store(store: Store, dataset: xr.Dataset) -> None:
    """Commit the models of a synthetic snapshot as columns, and publish; layers of one lens are one column."""
    facts = {name: dataset[name].values.tolist() for name in (*DEFAULTS, "repository", "revision", "commit")}
    values = dataset["log_likelihood"].values
    groups: dict[tuple[str, ...], list[int]] = {}
    for place in range(len(values)):
        identity = tuple(str(facts[name][place]) for name in ("repository", "commit", "dtype", "quantization", "lens"))
        groups.setdefault(identity, []).append(place)
    for number, (identity, places) in enumerate(groups.items()):
        repository, commit, dtype, quantization, lens = identity
        places = sorted(places, key=lambda place: facts["layer"][place])
        known = {name: facts[name][places[0]] for name in facts if name not in ("step", "seed")}
        for name in ("step", "seed"):
            known[name] = None if facts[name][places[0]] < 0 else facts[name][places[0]]
        column = Column(
            Identity(repository, commit, store.texts.fingerprint, dtype, quantization, lens),
            values[places].astype(np.float64),
            tuple(facts["layer"][place] for place in places),
            np.full(values.shape[1], 7),
            {**known, "parameters": 10},
            {"klray": "test"},
            {"score_seconds": 1.0},
        )
        assert commit_column(store.objects, put_column(store, column, attempt=f"{number:032x}"))
    store.publish()
