"""Metrics: told once, shown by the dashboard under the names that Ray exports, and off unless asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from klray.sweep.metrics import METRICS, SWEEP, Meters, exported

DASHBOARD = json.loads((Path(__file__).parent.parent / "infra/grafana/klray.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = {name for expression in EXPRESSIONS for name in re.findall(r"\bray_\w+", expression)}
    assert shown == {exported(name) for name in METRICS}
    assert f"label_values({exported('klray_queue')}, {SWEEP})" in json.dumps(DASHBOARD["templating"])


def test_the_dashboard_asks_for_tags_that_the_metrics_have() -> None:
    tags = {exported(name): {SWEEP, *metric.of} for name, metric in METRICS.items()}
    for expression in EXPRESSIONS:
        for name, asked in re.findall(r"\b(ray_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=~?\"", asked)) <= tags[name], expression
        shown = {tag for by in re.findall(r"by \((\w+)\)", expression) for tag in [by]}
        assert shown <= set.union(*(tags[name] for name in re.findall(r"\bray_\w+", expression)))
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= set.union(*tags.values())


def test_panels_have_places_of_their_own_and_counters_are_shown_as_rates_or_sums() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})


class Recorded:
    """In place of Ray's metric: what was recorded."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]):
        self.name, self.tag_keys = name, tag_keys
        self.recorded: list[tuple[float, dict[str, str]]] = []

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert set(tags) <= set(self.tag_keys)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) <= set(self.tag_keys) and value > 0
        self.recorded.append((value, tags))

    set = inc


def test_counters_are_told_by_what_they_have_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    def make(name: str, **options: Any) -> Recorded:
        made[name] = Recorded(name, **options)
        return made[name]

    monkeypatch.setattr("klray.sweep.metrics.metrics.Counter", make)
    monkeypatch.setattr("klray.sweep.metrics.metrics.Gauge", make)
    meters = Meters("a" * 32)
    for so_far in ({"scored": 2}, {"scored": 2, "failed": 1}, {"scored": 5, "failed": 1}):
        meters.tell("klray_checkpoints", so_far)
        meters.tell("klray_queue", 10 - so_far["scored"])
    scored, failed = {"outcome": "scored"}, {"outcome": "failed"}
    assert made["klray_checkpoints"].recorded == [(2.0, scored), (1.0, failed), (3.0, scored)]
    assert [value for value, _ in made["klray_queue"].recorded] == [8.0, 8.0, 5.0]
