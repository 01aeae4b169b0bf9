"""How many workers share one GPU where nobody says."""

from __future__ import annotations

import dataclasses

import pytest

from klray.checkpoints import Checkpoint
from klray.sweep.gpu_share import workers_of_a_gpu
from klray.sweep.settings import ScoringSettings
from tests.fleet_simulated import checkpoint

H200 = {"GPU": 8.0, "CPU": 128.0, "memory": 1.4e12, "accelerator_type:H200": 1.0}
H100 = {**H200, "accelerator_type:H100": 1.0}
del H100["accelerator_type:H200"]
L4 = {"GPU": 1.0, "CPU": 8.0, "memory": 40e9, "accelerator_type:L4": 1.0}
SETTINGS = ScoringSettings(dtype="bfloat16")


def pythia(parameters: float, count: int = 154) -> list[Checkpoint]:
    found = [checkpoint(number, "org/a", 10**6) for number in range(count)]
    return [dataclasses.replace(each, parameters=round(parameters)) for each in found]


@pytest.mark.parametrize(
    ("parameters", "nodes", "more", "workers"),
    [
        (14e6, [H200], {}, 4),
        (162e6, [H200], {}, 4),
        (162e6, [H100], {}, 3),
        (162e6, [H200, H100], {}, 3),
        (405e6, [H200], {}, 1),  # one of these keeps a GPU busy
        (162e6, [H200, L4], {}, 1),
        (162e6, [{"GPU": 1.0, "CPU": 8.0, "memory": 4e10}], {}, 1),  # of a kind that nobody knows
        (162e6, [{"CPU": 8.0, "memory": 4e10}], {}, 1),
        (162e6, [{**H200, "CPU": 16.0}], {}, 2),  # else all would sit on the first GPUs
        (162e6, [{**H200, "memory": 1e11}], {}, 1),
        (162e6, [H200], {"threads": 8}, 2),
        (162e6, [H200], {"tokens_per_batch": 65_536}, 1),
        (162e6, [H200], {"lens": "logit"}, 1),
    ],
)
def test_small_models_share_a_large_gpu(
    parameters: float, nodes: list[dict[str, float]], more: dict[str, object], workers: int
) -> None:
    settings = dataclasses.replace(SETTINGS, **more)  # type: ignore[arg-type]
    assert workers_of_a_gpu(pythia(parameters), settings, nodes) == workers


def test_no_gpu_stays_empty_for_that() -> None:
    assert workers_of_a_gpu(pythia(14e6), SETTINGS, [H200], workers=8) == 1
    assert workers_of_a_gpu(pythia(14e6), SETTINGS, [H200], workers=9) == 2
    assert workers_of_a_gpu(pythia(14e6, count=8), SETTINGS, [H200]) == 1
    assert workers_of_a_gpu([*pythia(14e6), *pythia(1e9, 1)], SETTINGS, [H200]) == 1
