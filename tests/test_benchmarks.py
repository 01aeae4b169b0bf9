"""The scoring benchmarks at a tiny shape: they run where there is no GPU, and what they compare is the same work."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import contenders, lens, scoring
from tests.benchmarks.contenders import Shape

pytestmark = pytest.mark.slow

TINY = Shape("tiny", 64, 2, 4, vocabulary=2048, one_in=64)


def test_help_and_unknown_names_run_no_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"scoring": lambda: ran.append("scoring") or "its table"})
    assert benchmarks.main(["--help"]) == 0
    assert "those of all_pairs, scoring, lens" in capsys.readouterr().out
    assert benchmarks.main(["scoring", "scorin"]) == 2
    assert "there is no benchmark scorin" in capsys.readouterr().err
    assert ran == []
    assert benchmarks.main(["scoring"]) == 0
    assert ran == ["scoring"]
    assert "its table" in capsys.readouterr().out


def test_the_cpu_benchmark_gives_each_way_a_process_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "has_lm_eval", lambda: False)
    lines = scoring.main([TINY], rounds=1, gemm=256).splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("shape"))
    rows = [[cell for cell in line.split("  ") if cell] for line in lines[heading + 1 :]]
    assert [row[:2] for row in rows] == [["tiny", " klray"], ["tiny", " papers' loop"]]
    assert rows[0][3].strip() == "1.00x"
    assert all(float(row[4]) > 0 for row in rows)


def test_klray_and_the_papers_loop_give_the_same_values() -> None:
    model, words, those = TINY.model(), contenders.tokenizer(TINY.vocabulary), contenders.texts(TINY.vocabulary, 64)
    ours, loop = (contenders.way(name, model, words)(those) for name in contenders.WAYS[:2])
    np.testing.assert_allclose(ours, loop, rtol=0, atol=1e-3)
    assert contenders.counted_tokens(words, those) == sum(len(text.split()) - 1 for text in those)


def test_the_texts_are_whole_batches_of_the_plan_for_all() -> None:
    every, part = contenders.texts(2048), contenders.texts(2048, 8)
    assert len(every) == contenders.N_TEXTS
    assert set(part) < set(every)
    assert len(part) == pytest.approx(len(every) / 8, rel=0.1)


def test_the_counted_work_is_that_of_the_weights_of_linear_layers_and_head() -> None:
    model = TINY.model()
    matrices = sum(module.weight.numel() for module in model.modules() if type(module).__name__ == "Linear")
    assert TINY.flops_per_token == 2 * matrices


def test_six_layers_through_a_lens_cost_less_than_two_and_a_half_plain_scores() -> None:
    shape = Shape("six", 256, 6, 4, vocabulary=2048, one_in=128)
    row = lens.main([shape], rounds=3).splitlines()[-1]
    logit, tuned, _, bound = [float(cell.rstrip("x%")) for cell in row.split()[3:]]
    assert 1.0 < logit < 2.5
    assert 1.0 < tuned < 2.5
    assert bound == pytest.approx(1.6, abs=0.01)
