"""Group ``plan``: the rates at which klray plan estimates what a job costs."""

from __future__ import annotations

from dataclasses import dataclass

from klray.config.clusters import RayConfig, check_counts
from klray.config.models import ModelsConfig, ModelSource
from klray.config.scoring import DTYPES, ScoringConfig
from klray.errors import KlrayError
from klray.sweep.cost import CPU_CORE_TFLOPS, H100_PEAK_TFLOPS, H100_SHARE, Rates
from klray.words.numbers import counted


@dataclass
class PlanConfig:
    """The rates of klray plan's estimate."""

    # What one worker reaches. Default: 40 % of an H100's peak in scoring.dtype; for the embedded family, of CPU cores.
    device_tflops: float | None = None
    gigabits: float = 10.0  # 1e9 bits a second, of the link to the hub that all workers share
    bytes_per_token: float = 4.0  # of text


def plan_rates(config: PlanConfig, models: ModelsConfig, scoring: ScoringConfig, ray: RayConfig) -> Rates:
    """The rates, and in which words they are stated; of ``ray.workers`` that are not given there is one."""
    for name, value in (
        ("device_tflops", config.device_tflops),
        ("gigabits", config.gigabits),
        ("bytes_per_token", config.bytes_per_token),
    ):
        if value is not None and value <= 0:
            raise KlrayError(f"plan.{name}={value}: must be above 0")
    check_counts(ray)
    on_cpu = models.source is ModelSource.embedded
    if config.device_tflops is not None:
        tflops, stated = config.device_tflops, "plan.device_tflops"
    elif on_cpu:
        tflops, stated = (
            CPU_CORE_TFLOPS * scoring.threads,
            f"{counted(scoring.threads, 'CPU core')}, as measured in float32",
        )
    else:
        dtype = DTYPES[scoring.dtype]
        peak = H100_PEAK_TFLOPS[dtype]
        tflops, stated = peak * H100_SHARE, f"{H100_SHARE:.0%} of an H100's {peak:g} in {dtype}"
    return Rates(
        device_tflops=tflops,
        gigabits=config.gigabits,
        workers=ray.workers or 1,
        bytes_per_token=config.bytes_per_token,
        device="CPU" if on_cpu else "GPU",
        stated=stated,
        assumed=ray.workers is None,
    )
