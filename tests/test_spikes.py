"""Anomalous checkpoints from spikes of consecutive KL, on paths that are made for it."""

from __future__ import annotations

import numpy as np
import pytest

from klray.analysis.recipe import find_anomalies


def path_kl(path: np.ndarray) -> np.ndarray:
    """(T, T) squared distances of (T, d) positions."""
    return np.array([((path - point) ** 2).sum(axis=1) for point in path])


def walk(n: int = 30) -> np.ndarray:
    return np.cumsum(np.random.default_rng(4).normal(size=(n, 300)), axis=0)


LABELS = [f"a@step{t}" for t in range(30)]


def test_a_checkpoint_off_the_path_is_found_with_its_evidence() -> None:
    path = walk()
    path[12] += np.random.default_rng(0).normal(size=300) * 5
    kl = path_kl(path)
    (anomaly,) = find_anomalies(LABELS, np.arange(30) * 10, kl)
    assert (anomaly.model, anomaly.step) == ("a@step12", 120)
    assert (anomaly.kl_before, anomaly.kl_after, anomaly.kl_across) == (kl[11, 12], kl[12, 13], kl[11, 13])
    others = [kl[t, t + 1] for t in (*range(6, 11), *range(13, 18))]
    assert anomaly.typical == pytest.approx(np.median(others), rel=1e-12)
    floor = max(kl[11, 13], min(kl[10, 11], kl[13, 14]))
    assert anomaly.ratio == min(kl[11, 12], kl[12, 13]) / floor > 5 > 1 > anomaly.typical_ratio


def test_ordinary_runs_have_no_anomalies() -> None:
    settling = np.cumsum(np.random.default_rng(4).normal(size=(30, 300)) / (1 + np.arange(30))[:, None], axis=0)
    jump = walk()
    jump[12:] += 10  # somewhere else from then on
    last = walk()
    last[-1] += 10  # nothing after it tells whether it comes back
    fast = walk() * np.where(np.arange(30) > 12, 4, 1)[:, None]
    two_jumps = walk()
    two_jumps[12:, :150] += 10  # one after the other, both away from where it was
    two_jumps[13:, 150:] += 10
    for path in (walk(), settling, jump, two_jumps, last, fast, np.zeros((30, 3)), walk(3)):
        assert find_anomalies(LABELS[: len(path)], np.arange(len(path)), path_kl(path)) == []


def planted(path: np.ndarray, *places: int, same: bool = False, size: float = 5.0) -> np.ndarray:
    """(T, T) KL of the path with these checkpoints off it, each in a direction of its own or all in one."""
    rng = np.random.default_rng(0)
    path = path.copy()
    off = rng.normal(size=path.shape[1])
    for place in places:
        path[place] += size * (off if same else rng.normal(size=path.shape[1]))
    return path_kl(path)


def steps_found(kl: np.ndarray) -> list[int]:
    return [anomaly.step for anomaly in find_anomalies(LABELS[: len(kl)], np.arange(len(kl)), kl)]


@pytest.mark.parametrize("same", [False, True], ids=["each its own way", "in the same way"])
@pytest.mark.parametrize("places", [(12, 13), (12, 14), (12, 13, 14), (12, 13, 16), (3, 12), (1, 28), (11, 13, 15)])
def test_anomalies_beside_each_other_are_all_found(places: tuple[int, ...], same: bool) -> None:
    assert steps_found(planted(walk(), *places, same=same)) == list(places)


def test_four_off_in_a_row_are_a_path_of_their_own() -> None:
    assert steps_found(planted(walk(), 12, 13, 14, 15, same=True)) == []


@pytest.mark.parametrize("place", [1, 2, 27, 28])
def test_an_anomaly_near_an_end_is_found(place: int) -> None:
    assert steps_found(planted(walk(), place)) == [place]


@pytest.mark.parametrize("place", [0, 29])
def test_the_first_and_the_last_checkpoint_are_not_judged(place: int) -> None:
    assert steps_found(planted(walk(), place)) == []


def test_an_anomaly_beside_an_excluded_checkpoint_is_found_from_those_past_it() -> None:
    kl = planted(walk(), 12, 13)
    kl[13] = kl[:, 13] = np.nan
    (anomaly,) = find_anomalies(LABELS, np.arange(30), kl)
    assert (anomaly.step, anomaly.kl_before, anomaly.kl_after) == (12, kl[11, 12], kl[12, 14])
    assert anomaly.kl_across == kl[11, 14]


@pytest.mark.parametrize("exponent", [0.05, 0.2, 0.5, 1.0, 1.5, 1.95])
def test_no_spacing_of_a_clean_path_looks_anomalous_and_an_anomaly_still_does(exponent: float) -> None:
    """Fractional Brownian motion at powers of two, then regular steps with a gap, in 10,000 dimensions as texts are."""
    steps = np.array([0, *(2 ** np.arange(10)), *range(1000, 8000, 1000), *range(20_000, 27_000, 1000)], dtype=float)
    power = steps**exponent
    covariance = (power[:, None] + power - np.abs(steps[:, None] - steps) ** exponent) / 2
    root = np.linalg.cholesky(covariance[1:, 1:] + 1e-9 * np.eye(len(steps) - 1))
    path = np.vstack([np.zeros(10_000), root @ np.random.default_rng(0).normal(size=(len(steps) - 1, 10_000))])
    labels = [f"a@step{step:.0f}" for step in steps]
    assert find_anomalies(labels, steps, path_kl(path)) == []
    for place in range(2, len(steps) - 1):
        around = ((path[place - 1] - path[place + 1]) ** 2).mean()
        off = path.copy()
        off[place] += np.random.default_rng(place).normal(size=10_000) * np.sqrt(10 * around)
        assert [each.step for each in find_anomalies(labels, steps, path_kl(off))] == [steps[place]]


def test_equal_neighbours_are_not_evidence_against_what_is_between_them() -> None:
    path = walk()
    path[13] = path[11]  # a revision uploaded twice
    assert steps_found(path_kl(path)) == []
    path[12] += 10
    assert steps_found(path_kl(path)) == [12]


def test_excluded_checkpoints_are_not_reported_again() -> None:
    path = walk()
    path[12] += 10
    kl = path_kl(path)
    assert len(find_anomalies(LABELS, np.arange(30), kl)) == 1
    kl[12] = kl[:, 12] = np.nan
    assert find_anomalies(LABELS, np.arange(30), kl) == []
