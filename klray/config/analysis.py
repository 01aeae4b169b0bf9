"""Groups ``analysis``, ``scale``, ``dask``, ``report``, ``page``, ``export``: what is made of a snapshot, and shown."""

from dataclasses import dataclass, field
from enum import Enum

from klray.analysis import defaults
from klray.analysis.defaults import Choice
from klray.config.choices import one_of
from klray.errors import KlrayError


@dataclass
class AnalysisConfig:
    """What is computed from a snapshot."""

    name: str = "trajectory"
    snapshot: str = "latest"
    domain: str = ""  # texts of this domain only, with a recipe of their own; the result is called NAME-DOMAIN
    recipe: str = "keep"  # keep: the last one made with these settings, if any; fit: a new one; or a JSON file's path
    clip_quantile: float = defaults.CLIP_QUANTILE
    outlier_fraction: float = defaults.OUTLIER_FRACTION
    outlier_min_step: int = defaults.OUTLIER_MIN_STEP
    exclude: list[str] = field(default_factory=list)  # patterns over repository@revision
    exclude_found: bool = False  # when a recipe is fitted: leave out the anomalous checkpoints found, and fit again
    exclude_misplaced: bool = True  # then: leave out checkpoints with files of weights of another step
    window: int = defaults.WINDOW
    min_step: int = defaults.MIN_STEP
    weights: str = "weights"  # exact weight distances: the result of this name that klray weights wrote, if any
    pairs: str | None = one_of(
        None, *defaults.PAIRS
    )  # whose KL is kept; unset: all of up to 5,000 models, else neighbours
    neighbours: int = defaults.NEIGHBOURS  # nearest models of each that analysis.pairs=neighbours keeps
    tile: int | None = None  # models on each side of a tile; unset: what suits their number and the memory


@dataclass
class ScaleConfig:
    """What klray scale measures; the recipe, the snapshot and the exclusions are those of ``analysis``."""

    name: str = "scale"
    spacing: int = Choice.spacing  # steps between consecutive checkpoints
    min_step: int = Choice.min_step  # the later of two consecutive checkpoints has more
    number: int = Choice.number  # early pairs, and later pairs, of each run
    draws: int = Choice.draws  # random pairs; 0: as many as there are fine-tuning pairs
    seed: int = Choice.seed
    published: bool = Choice.published  # preprocessing and pairs of the published code, in place of klray's own
    sizes: list[str] = field(default_factory=list)  # then: of the runs that are compared; default: all
    resamples: int = defaults.RESAMPLES  # of the bootstrap for the standard error of a median
    domains: list[str] = field(default_factory=list)  # two or more are compared side by side
    dir: str | None = None  # folder for the figure


@dataclass
class DaskConfig:
    """The Dask scheduler that analyses."""

    scheduler: str = one_of(defaults.SCHEDULERS[0], *defaults.SCHEDULERS)  # threads of this process, or a cluster
    address: str | None = None
    threads: int | None = None
    memory_limit: str = "4GiB"  # an analysis that would need more is refused


@dataclass
class ReportConfig:
    """The report's folder and title."""

    dir: str = "report"
    title: str = "How language models move"
    noise: str | None = None  # a JSON file that klray noise wrote: the report then says how much noise there is
    publish: bool = False  # put it into the store too, beside the results, so that an address is enough


@dataclass
class PageConfig:
    """The live page: its folder, or the store itself."""

    dir: str = "page"
    publish: bool = False  # put it into the store, at page/
    store_url: str | None = None  # the store's address on the web; default: the store's own, or the way to its folder
    title: str = "Language models, two at a time"


class TableFormat(Enum):
    """Of exported tables."""

    parquet = "parquet"  # an extra
    csv = "csv"


@dataclass
class ExportConfig:
    """Where tables go, and how."""

    dir: str = "export"
    format: TableFormat = TableFormat.parquet


def scale_choice(config: ScaleConfig) -> Choice:
    """How pairs are chosen."""
    if config.sizes and not config.published:
        raise KlrayError(f"scale.sizes={config.sizes}: is for scale.published=true alone, as scale=published has it")
    of = (config.spacing, config.min_step, config.number, config.draws, config.seed)
    return Choice(*of, config.published, tuple(config.sizes))


def memory_bytes(text: str) -> int:
    """Bytes of a size such as 4GiB or 500MB."""
    from dask.utils import parse_bytes  # noqa: PLC0415 - 0.2 s, and help needs no Dask

    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise KlrayError(f"dask.memory_limit={text}: write a size such as 4GiB or 500MB") from error
