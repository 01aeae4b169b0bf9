"""What plan, lens and noise make of their groups: values of rooms that import PyTorch."""

from pathlib import Path

from klray.config.lens import LensConfig
from klray.config.models import ModelsConfig, ModelSource
from klray.config.noise import NoiseConfig
from klray.config.scoring import DTYPES, PlanConfig, ScoringConfig, check_above_zero
from klray.errors import KlrayError
from klray.likelihood.choices import NONE
from klray.likelihood.lens import FACTS, is_unfinished
from klray.measure.noise_scorings import Ways, available_devices
from klray.sweep.cost import CPU_CORE_TFLOPS, H100_PEAK_TFLOPS, H100_SHARE, Rates
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.words.numbers import counted


def lens_folder(config: LensConfig) -> Path:
    """Where the trained lens goes; looked at first, because training takes long."""
    if not config.path:
        raise KlrayError("klray lens needs a folder for what it trains: set lens.path=")
    folder = Path(config.path).expanduser()
    if folder.exists() and not (folder.is_dir() and ((folder / FACTS).is_file() or is_unfinished(folder))):
        raise KlrayError(f"lens.path={config.path}: there is something already; name a new folder, or an empty one")
    return folder


def noise_ways(config: NoiseConfig, settings: ScoringSettings) -> Ways:
    """In which ways checkpoints are scored to measure their noise; the first precision is that of ``klray score``."""
    if config.models < 1:
        raise KlrayError(f"noise.models={config.models}: must be 1 or more")
    if settings.quantization != NONE:
        raise KlrayError(
            f"scoring.quantization={settings.quantization}: klray noise compares with float64, in which nothing is "
            "quantised; measure the model as it is, with scoring.quantization=none"
        )
    budgets = config.tokens_per_batch
    if not budgets and settings.tokens_per_batch is not None:
        budgets = [1, max(1, settings.tokens_per_batch // 4), settings.tokens_per_batch]
    return Ways(
        dtypes=tuple(dict.fromkeys([settings.dtype, *(DTYPES[dtype] for dtype in config.dtypes)])),
        devices=available_devices(config.devices),
        budgets=tuple(budgets),
        threads=settings.threads,
        allow_unused=settings.allow_unused,
        allow_lost=settings.allow_lost,
    )


def plan_rates(config: PlanConfig, models: ModelsConfig, scoring: ScoringConfig, ray: RaySettings) -> Rates:
    """The rates, and in which words they are stated; of ``ray.workers`` that are not given there is one."""
    check_above_zero("plan", config, "device_tflops", "gigabits", "bytes_per_token", "kl", "standard_error")
    peak = H100_PEAK_TFLOPS[DTYPES[scoring.dtype]] * H100_SHARE
    here = ray.address is None
    embedded = models.source is ModelSource.embedded
    on_cpu = embedded or ray.gpus_per_worker == 0
    on_cpu = on_cpu or (here and "cuda" not in available_devices(()))
    if config.device_tflops is not None:
        tflops, stated = config.device_tflops, "plan.device_tflops"
    elif on_cpu:
        tflops = CPU_CORE_TFLOPS * scoring.threads
        stated = f"{counted(scoring.threads, 'CPU core')}, as measured in float32"
        if here and not embedded:
            stated += f", of this machine; for a GPU set ray=cluster, or what it reaches: plan.device_tflops={peak:.4g}"
    else:
        tflops = peak
        stated = f"{H100_SHARE:.0%} of an H100's {peak / H100_SHARE:g} in {DTYPES[scoring.dtype]}"
    return Rates(
        device_tflops=tflops,
        gigabits=config.gigabits,
        workers=ray.workers or 1,
        bytes_per_token=config.bytes_per_token,
        device="CPU" if on_cpu and (embedded or config.device_tflops is None) else "GPU",
        stated=stated,
        assumed=ray.workers is None,
    )
