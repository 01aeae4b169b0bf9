"""What a sweep tells Prometheus, through Ray's own exporter: names, kinds and tags, told once.

The driver alone records. Ray exports a counter NAME as ray_NAME_total and a gauge as ray_NAME; infra/grafana/klray.json
shows them. Nothing is recorded, and a cluster of klray's own exports nothing, unless ray.metrics=true: the exporter's
port wants no token.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Literal

from ray.util import metrics

SWEEP: Final = "sweep"  # tag of every metric: the first 8 digits of the job that heartbeats and commits name


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric: ``of`` are its tags beside the sweep."""

    kind: Literal["counter", "gauge"]
    what: str
    of: tuple[str, ...] = ()


METRICS: Final[Mapping[str, Metric]] = {
    "klray_checkpoints": Metric(
        "counter", "checkpoints at their end: scored, taken_over, elsewhere, failed", ("outcome",)
    ),
    "klray_failures": Metric("counter", "checkpoints that failed, by reason", ("reason",)),
    "klray_tokens": Metric("counter", "tokens counted in committed columns"),
    "klray_bytes": Metric("counter", "bytes of checkpoints that were scored"),
    "klray_seconds": Metric("counter", "workers' time: waiting for files, loading, scoring, committing", ("stage",)),
    "klray_queue": Metric("gauge", "checkpoints that nobody has begun"),
    "klray_workers": Metric("gauge", "workers: starting, working, idle, aside", ("state",)),
}


def exported(name: str) -> str:
    """The name under which Prometheus knows a metric.

    >>> exported("klray_tokens"), exported("klray_queue")
    ('ray_klray_tokens_total', 'ray_klray_queue')
    """
    return f"ray_{name}_total" if METRICS[name].kind == "counter" else f"ray_{name}"


class Meters:
    """Records metrics of one sweep: each is told as the value that it has now, and counters are recorded by what they
    have grown.
    """

    def __init__(self, sweep: str):
        self._metrics: dict[str, Any] = {}
        self._told: dict[tuple[str, str], float] = {}
        for name, metric in METRICS.items():
            kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
            self._metrics[name] = kind(name, description=metric.what, tag_keys=(SWEEP, *metric.of))
            self._metrics[name].set_default_tags({SWEEP: sweep[:8]})

    def tell(self, name: str, values: float | Mapping[str, float]) -> None:
        """The metric's value so far, or its values by its tag."""
        metric = METRICS[name]
        for tag, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            tags = dict(zip(metric.of, [tag], strict=True)) if metric.of else {}
            if metric.kind == "gauge":
                self._metrics[name].set(float(value), tags)
            elif (grown := value - self._told.get((name, tag), 0.0)) > 0:
                self._metrics[name].inc(float(grown), tags)
                self._told[name, tag] = value
