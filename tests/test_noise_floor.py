"""What a noise floor says of what was measured: its numbers, verdicts and picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from klray.analysis.noise_floor import ModelNoise, NoiseFloor
from klray.errors import KlrayError
from klray.report.figures.noise_marks import noise_floor
from tests.noise_data import distances, found, variants

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_kind_of_pair_counts_where_it_belongs() -> None:
    kl = distances(0, 1, 3, 10, 14, 100, 100, 130, 100)
    each = ModelNoise("a@b", "c", variants=variants("float32", "bfloat16", devices=("cpu", "cuda")), kl=kl)
    float32, bfloat16 = each.floors(("float32", "bfloat16"))
    assert (float32.plans, float32.devices, float32.to_float64, float32.floor) == (4, 13, 14, 14)
    assert float32.to_float32 is None
    assert (bfloat16.plans, bfloat16.devices, bfloat16.to_float64, bfloat16.floor) == (30, 30, 130, 130)
    assert bfloat16.to_float32 == max(99, 97, 120, 86)


def test_the_picture_has_a_mark_for_each_kl_that_is_not_0() -> None:
    one = ModelNoise("a", "c", variants=variants("float32", "bfloat16"), kl=distances(0, 1e-9, 1e-9, 1e-4, 3e-4))
    two = ModelNoise("b", "c", variants=variants("float32"), kl=distances(0, 2e-9, 3e-9), failures={"bfloat16": "x"})
    (axes,) = noise_floor(found(one, two)).axes
    lines = {str(line.get_label()): np.asarray(line.get_xdata()).tolist() for line in axes.lines}
    assert lines["between plans"] == pytest.approx([1e-9, 2e-4])
    assert lines["to float64"] == pytest.approx([1e-9, 3e-9, 3e-4])
    assert "between devices" not in lines
    assert [line.get_xdata()[0] for line in axes.lines[-2:]] == [0.01, 1e-4]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["float32", "bfloat16"]
    assert axes.get_xscale() == "log" and axes.get_xlim()[1] >= 0.1
    with pytest.raises(KlrayError, match="nothing in it was measured"):
        noise_floor(found())


@pytest.mark.parametrize(
    ("floor", "below"),
    [(3.5e-12, "3e9 times"), (1e-6, "10,000 times"), (1e-2, "1 times"), (0.04, "0.2 times"), (0.0, "-")],
)
def test_how_far_below_is_told_in_two_figures_at_most(floor: float, below: str) -> None:
    each = ModelNoise("a@b", "c", variants=variants("float32"), kl=distances(0, 0, floor))
    header, (row,) = (noise := found(each, dtypes=("float32",))).cells(noise.rows())
    assert dict(zip(header, row, strict=True))["below"] == below


def test_two_plans_may_be_further_apart_than_either_is_from_float64() -> None:
    each = ModelNoise("a@b", "c", variants=variants("float32"), kl=distances(0, -2, 3))
    assert each.floors(("float32",))[0].floor == 5


@pytest.mark.parametrize(
    ("floor", "verdict", "sentence"),
    [
        (
            1e-4,
            "fine",
            "float32 (the default precision): fine: its noise floor of 1.0e-04 bits/byte is 100 times below 0.01 "
            "bits/byte, the smallest KL of interest",
        ),
        (
            2e-4,
            "too noisy",
            "float32 (the default precision): too noisy: its noise floor of 2.0e-04 bits/byte is 50 times below 0.01 "
            "bits/byte, the smallest KL of interest, and should be 100 times: KL under 0.02 bits/byte is not to be "
            "trusted in this precision",
        ),
    ],
)
def test_the_verdict_turns_at_100_times(floor: float, verdict: str, sentence: str) -> None:
    each = ModelNoise("a@b", "c", variants=variants("float32"), kl=distances(0, 0, floor))
    noise = found(each, dtypes=("float32",))
    assert noise.rows()[0].verdict == verdict
    assert noise.verdicts() == [sentence]
    assert noise.default_is_fine == (verdict == "fine")


def test_the_verdict_is_that_of_the_noisiest_checkpoint_and_names_a_better_precision() -> None:
    calm, wild = (
        ModelNoise(name, "c", variants=variants("float32", "bfloat16"), kl=distances(0, 1e-9, 1e-9, kl, kl))
        for name, kl in (("calm", 1e-6), ("wild", 4e-4))
    )
    noise = found(calm, wild)
    assert noise.default_is_fine
    assert noise.verdicts()[1] == (
        "bfloat16: too noisy: its noise floor of 4.0e-04 bits/byte is 25 times below 0.01 bits/byte, the smallest KL "
        "of interest, and should be 100 times: KL under 0.04 bits/byte is not to be trusted in this precision; score "
        "in float32 for smaller ones"
    )
    last_words = " ".join(line.split()[-1] for line in noise.table().splitlines()[2:])
    assert last_words == "fine fine fine noisy fine noisy"


def test_what_could_not_be_measured_is_not_fine() -> None:
    good = ModelNoise("a", "c", variants=variants("float32"), kl=distances(0, 0, 0), failures={"bfloat16": "no room"})
    bad = ModelNoise("b", "c", failures={"float32": "broken", "bfloat16": "broken"})
    noise = found(good, bad)
    assert not noise.default_is_fine
    assert noise.verdicts() == [
        "float32 (the default precision): fine: its noise floor of 0 bits/byte is any number of times below 0.01 "
        "bits/byte, the smallest KL of interest; 1 of 2 could not be measured",
        "bfloat16: failed; 2 of 2 could not be measured",
    ]
    assert [row.verdict for row in noise.rows()] == ["fine", "failed", "failed", "failed"]
    assert not found().default_is_fine


def test_something_else_is_no_noise_floor(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"dtypes": []}')
    with pytest.raises(KlrayError, match=r"other.json: .*\(KeyError: .*klray"):
        NoiseFloor.read(path)
    with pytest.raises(KlrayError, match=r"missing.json"):
        NoiseFloor.read(tmp_path / "missing.json")


def test_a_noise_floor_of_other_bytes_is_none(tmp_path: Path) -> None:
    (tmp_path / "floor.json").write_bytes(b"\xff\xfe\x99")
    with pytest.raises(KlrayError, match="make one with klray noise"):
        NoiseFloor.read(tmp_path / "floor.json")
