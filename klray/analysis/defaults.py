"""What analyses go by where nobody says otherwise; light, since the config and its help come from it.

Source: arXiv:2505.15353, for runs of the length of Pythia.
"""

from dataclasses import dataclass

from klray.errors import KlrayError

CLIP_QUANTILE = 0.02  # of all values; what is below is raised to it
OUTLIER_FRACTION = 0.03  # of the texts, left out
OUTLIER_MIN_STEP = 2000  # of the checkpoints that outliers among texts are told by
WINDOW = 10  # saved checkpoints after the start of a window, over which a diffusion exponent is fitted
MIN_STEP = 1000  # of the first checkpoint that starts a window
PAIRS = ("all", "neighbours", "runs")  # whose KL is kept: of all models; of the nearest; of runs and relatives alone
ALL_PAIRS_MOST = 5000  # models of which all pairs are kept where nobody says otherwise: 0.4 GB of results
SCHEDULERS = ("threads", "distributed", "ray")  # of Dask
NEIGHBOURS = 10  # nearest models of each that are kept
RESAMPLES = 1000  # of the bootstrap for the standard error of a median


@dataclass(frozen=True)
class Choice:
    """How pairs are chosen where the paper chose numbers."""

    spacing: int = 1000  # steps between two consecutive checkpoints
    min_step: int = 2000  # the later of the two must have more steps than this
    # Pairs of each run that are early, and that are later; in a run with fewer than twice as many, half of its pairs
    # (rounded down) are, so that no pair is both.
    number: int = 50
    draws: int = 0  # random pairs, within each architecture type and over all; 0: as many as for fine-tuning
    seed: int = 0  # of these draws
    published: bool = False  # as the published code has it: `klray.analysis.scale.as_published`
    sizes: tuple[str, ...] = ()  # then: of the runs that are compared; none: all

    def __post_init__(self) -> None:
        for name, least in (("spacing", 1), ("min_step", -1), ("number", 1), ("draws", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise KlrayError(f"scale.{name}={getattr(self, name)} was asked for: set it to {least} or more")
