"""The scale evaluated anew, setting by setting, in plain Python: for synthetic snapshots and for real stores.

Nothing here calls klray: facts are dictionaries, models are found by loops, KL is NumPy's variance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import xarray as xr

Fact = dict[str, Any]
Pair = frozenset[str]

NAMES = (
    *("model", "repository", "revision", "commit", "family", "run", "step", "size", "seed", "base_model"),
    *("base_revision", "parents", "relation", "architecture", "dtype", "quantization", "lens", "layer"),
)


def check_scale(dataset: xr.Dataset, result: xr.Dataset) -> None:
    """Clip threshold, mask, pairs with their counts, KL, standard errors, medians and quartiles of a scale result."""
    recipe, choice = json.loads(result.attrs["recipe"]), json.loads(result.attrs["choice"])
    patterns = [each["pattern"] for each in recipe["excluded"]]
    everything = read_facts(dataset)
    included = [fact for fact in everything if not is_excluded(fact, patterns)]
    values = dataset["log_likelihood"].transpose("model", "text").values
    text_bytes = dataset["text_bytes"].values
    threshold, removed = preprocessing(everything, values, patterns, recipe)
    assert recipe["clip_threshold"] == threshold
    assert recipe["removed_texts"] == removed
    kept = np.setdiff1d(np.arange(values.shape[1]), removed)
    bits = 2 * text_bytes[kept].mean() * math.log(2)
    clipped = np.maximum(values, np.float32(threshold))[:, kept].astype(np.float64)
    row = {fact["model"]: clipped[fact["place"]] for fact in everything}

    got: dict[str, list[tuple[str, str, float, float]]] = {str(name): [] for name in result["setting"].values}
    for each in zip(
        *(result[n].values for n in ("pair_setting", "first", "second", "kl", "kl_standard_error")), strict=True
    ):
        got[str(each[0])].append((str(each[1]), str(each[2]), float(each[3]), float(each[4])))
    for name, expected in expected_pairs(included, choice).items():
        found = [frozenset(pair[:2]) for pair in got.get(name, [])]
        assert len(found) == len(set(found)), f"{name}: a pair twice"
        assert set(found) == expected, f"{name}: {len(found)} pairs, {len(expected)} expected"
    check_random(included, got, choice)
    for name, pairs in got.items():
        kl = np.array([np.var(row[a] - row[b]) / bits for a, b, *_ in pairs])
        np.testing.assert_allclose([pair[2] for pair in pairs], kl, rtol=1e-9)
        for a, b, _, error in pairs:
            square = (row[a] - row[b] - np.mean(row[a] - row[b])) ** 2
            assert math.isclose(error, np.std(square) / math.sqrt(len(kept)) / bits, rel_tol=1e-6)
        one = result.sel(setting=name)
        assert int(one["n"]) == len(pairs)
        if pairs:
            summary = [float(one[n]) for n in ("smallest", "lower_quartile", "median", "upper_quartile", "largest")]
            np.testing.assert_allclose(summary, np.percentile(kl, [0, 25, 50, 75, 100]), rtol=1e-9)
            assert math.isclose(float(one["pair_standard_error"]), np.median([p[3] for p in pairs]), rel_tol=1e-12)
        else:
            assert math.isnan(float(one["median"]))


def read_facts(dataset: xr.Dataset) -> list[Fact]:
    """A dictionary for each model, with its place."""
    columns = {name: dataset[name].values.tolist() for name in NAMES if name in dataset.coords}
    missing = {name: "" for name in NAMES if name not in columns}
    return [
        {**missing, **{name: column[place] for name, column in columns.items()}, "place": place}
        for place in range(dataset.sizes["model"])
    ]


def is_excluded(fact: Fact, patterns: list[str]) -> bool:
    names = [f"{fact['repository']}@{fact['revision']}", fact["model"]]
    return any(fnmatchcase(tail, p) for p in patterns for name in names for tail in (name, name.rpartition("/")[2]))


def preprocessing(facts: list[Fact], values: np.ndarray, patterns: list[str], recipe: Fact) -> tuple[float, list[int]]:
    """Threshold and removed texts."""
    used = [fact["place"] for fact in facts if fact["layer"] < 0 and not is_excluded(fact, patterns)]
    threshold = float(np.quantile(values[used], recipe["clip_quantile"], method="lower"))
    runs: dict[tuple[Any, ...], dict[int, Fact]] = {}
    for fact in facts:
        if fact["run"] and fact["step"] >= recipe["min_step"]:
            variant = tuple(fact[name] for name in ("run", "dtype", "quantization", "lens", "layer"))
            runs.setdefault(variant, {})[fact["step"]] = fact
    largest = np.zeros(values.shape[1])
    for run in runs.values():
        for before, after in pairwise(sorted(run)):
            if not any(is_excluded(run[step], patterns) for step in (before, after)):
                a, b = (np.maximum(values[run[s]["place"]].astype(float), threshold) for s in (before, after))
                largest = np.maximum(largest, abs(a - b))
    n_removed = round(recipe["outlier_fraction"] * values.shape[1]) if largest.any() else 0
    return threshold, sorted(np.argsort(-largest, kind="stable")[:n_removed].tolist())


def expected_pairs(facts: list[Fact], choice: Fact) -> dict[str, set[Pair]]:
    """Labels of the pairs in every setting that is not random, from the facts of the models that are not excluded."""
    whole = [f for f in facts if f["quantization"] in ("", "none") and f["lens"] in ("", "none") and f["layer"] < 0]
    dtype = main_dtype(whole)
    plain = [f for f in whole if f["dtype"] == dtype]
    runs: dict[str, list[Fact]] = {}
    for fact in plain:
        if fact["run"] and fact["step"] >= 0 and not fact["parents"] and not fact["base_model"]:
            others = [f for f in runs.get(fact["run"], []) if f["step"] != fact["step"]]
            runs[fact["run"]] = sorted([*others, fact], key=lambda f: f["step"])
    found: dict[str, set[Pair]] = {name: set() for name in ("early", "later", "seed", "size", "8-bit", "4-bit")}
    for run in runs.values():
        steps = [
            pair(a, b)
            for a, b in pairwise(run)
            if b["step"] - a["step"] == choice["spacing"] and b["step"] > choice["min_step"]
        ]
        n = min(choice["number"], len(steps) // 2)
        found["early"] |= set(steps[:n])
        found["later"] |= set(steps[len(steps) - n :])
    for setting, shared in (("seed", ("family", "size")), ("size", ("family", "seed"))):
        for group in {tuple(run[0][name] for name in shared) for run in runs.values()}:
            members = [
                r for r in runs.values() if tuple(r[0][n] for n in shared) == group and r[0][setting] not in ("", -1)
            ]
            common = set.intersection(*[{f["step"] for f in run} for run in members]) if members else set()
            if common:
                last = [next(f for f in run if f["step"] == max(common)) for run in members]
                found[setting] |= {pair(a, b) for a, b in combinations(last, 2) if a[setting] != b[setting]}
    for fact in facts:
        name = fact["quantization"]
        if name in ("", "none") or fact["lens"] not in ("", "none") or fact["layer"] >= 0:
            continue
        selves = [f for f in whole if (f["repository"], f["commit"]) == (fact["repository"], fact["commit"])]
        wanted = (
            [f for f in selves if f["dtype"] == fact["dtype"]] or [f for f in selves if f["dtype"] == dtype] or selves
        )
        for setting in {"int8": ["8-bit"], "fp4": ["4-bit", "4-bit fp4"], "nf4": ["4-bit", "4-bit nf4"]}.get(
            name, [f"quantization {name}"]
        ):
            found.setdefault(setting, set()).update({pair(wanted[-1], fact)} if wanted else set())
    found["fine-tuning"] = {pair(*each) for each in children(plain)}
    for fact in whole:
        same = ("repository", "revision", "commit")
        itself = [f for f in plain if all(f[name] == fact[name] for name in same)]
        if fact["dtype"] != dtype and itself:
            found.setdefault(f"dtype {fact['dtype']}", set()).add(pair(itself[-1], fact))
    for setting, is_lens in (("layer", is_logit), ("layer, tuned lens", is_tuned)):
        layers = [f for f in facts if f["layer"] >= 0 and f["quantization"] in ("", "none") and is_lens(f["lens"])]
        same = ("repository", "commit", "dtype", "lens")
        found[setting] = {
            pair(a, b)
            for a in layers
            for b in layers
            if b["layer"] == a["layer"] + 1 and all(a[name] == b[name] for name in same)
        }
    return found


is_logit: Callable[[str], bool] = "logit".__eq__


def is_tuned(lens: str) -> bool:
    return lens.startswith("tuned-")


def pair(a: Fact, b: Fact) -> Pair:
    return frozenset((a["model"], b["model"]))


def main_dtype(whole: list[Fact]) -> str:
    dtypes = [fact["dtype"] for fact in whole]
    return max(dict.fromkeys(dtypes), key=lambda dtype: (dtypes.count(dtype), dtype == "float32"), default="")


def final_models(plain: list[Fact]) -> dict[str, Fact]:
    """The final checkpoint of each repository."""
    found: dict[str, Fact] = {}
    for fact in plain:
        before = found.get(fact["repository"])
        if before is None or (fact["revision"] == "main", fact["step"]) >= (
            before["revision"] == "main",
            before["step"],
        ):
            found[fact["repository"]] = fact
    return found


def children(plain: list[Fact]) -> list[tuple[Fact, Fact]]:
    """Child and single parent, of models that were fine-tuned."""
    finals = final_models(plain)
    found = []
    for child in finals.values():
        if child["base_model"] in ("", child["repository"]) or child["relation"] not in ("", "finetune"):
            continue
        parents = [finals[child["base_model"]]] if child["base_model"] in finals else []
        if named := child["base_revision"]:
            at = [f for f in plain if f["repository"] == child["base_model"]]
            parents = [f for f in at if f["revision"] == named or (len(named) > 6 and f["commit"].startswith(named))]
        found += [(child, parent) for parent in parents[-1:]]
    return found


def check_random(facts: list[Fact], got: dict[str, list[Any]], choice: Fact) -> None:
    """Random pairs: how many, of which models, and none twice."""
    whole = [f for f in facts if f["quantization"] in ("", "none") and f["lens"] in ("", "none") and f["layer"] < 0]
    plain = [f for f in whole if f["dtype"] == main_dtype(whole)]
    finals = {fact["model"]: fact for fact in final_models(plain).values()}
    tuned = [child["architecture"] for child, _ in children(plain)]
    for name in ("intra-type", "random"):
        pairs = [frozenset(each[:2]) for each in got[name]]
        assert all(len(each) == 2 and each <= set(finals) for each in pairs)
        assert len(set(pairs)) == len(pairs)
    n = len(finals)
    assert len(got["random"]) == min(choice["draws"] or len(tuned), n * (n - 1) // 2)
    kinds = [{finals[label]["architecture"] for label in each[:2]} for each in got["intra-type"]]
    assert all(len(kind) == 1 for kind in kinds)
    for kind in {fact["architecture"] for fact in finals.values()} - {""}:
        m = sum(fact["architecture"] == kind for fact in finals.values())
        assert kinds.count({kind}) == min(choice["draws"] or tuned.count(kind), m * (m - 1) // 2)
