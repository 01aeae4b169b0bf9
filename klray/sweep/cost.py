"""What scoring costs before it is done: bytes to fetch, arithmetic, hours of devices and time on the clock.

An estimate: a forward pass is taken for 2 FLOP a parameter and token (arXiv 2001.08361, section 2.1), and as much for
each weight that a lens multiplies with; tokens are counted as bytes of text over a ratio, and devices are taken to
reach the rate that is stated.
"""

import dataclasses
import logging
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from klray.checkpoints import CONFIG, Cache, Checkpoint, Hub
from klray.errors import CheckpointError
from klray.likelihood.loading import model_shape
from klray.words.numbers import counted, duration

log = logging.getLogger("klray")

# Dense peak of an H100 SXM in TFLOP/s: 16-bit tensor cores; fp32 without them (PyTorch's default keeps TF32 off).
H100_PEAK_TFLOPS = {"float32": 67.0, "bfloat16": 989.0, "float16": 989.0}
H100_SHARE = 0.4
# A core of an AMD EPYC in fp32, measured on the embedded family's 0.4m and 0.6m models: 0.044 and 0.033.
CPU_CORE_TFLOPS = 0.04
# From the command to the first checkpoint that is begun: Ray's start, and imports of a worker and a model's process.
START_SECONDS = 15.0
# Where nobody says how many parameters there are, weights are taken for 16-bit numbers.
UNKNOWN_BYTES_PER_PARAMETER = 2
_BITS = re.compile(r"(?:Q|F|BF)(\d+)(?=[-._]|$)")  # in the name of a GGUF file, such as Q4_K_M
# For config.json of one repository after another.
CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rates:
    """What the work is divided by.

    ``device_tflops`` is what one worker reaches, in 1e12 FLOP a second; ``gigabits`` what all workers fetch together,
    in 1e9 bits a second. ``device`` and ``stated`` are the words for them; ``assumed``: nobody said how many workers.
    """

    device_tflops: float
    gigabits: float
    workers: int
    bytes_per_token: float  # of text
    device: str = "GPU"
    stated: str = ""
    assumed: bool = False


@dataclass(frozen=True)
class Cost:
    """Cost of scoring some checkpoints on one text set. Checkpoints with equal files cost once."""

    checkpoints: int
    distinct: int  # of different files, of which none is in the store
    fetch_bytes: int
    parameters: int  # of the distinct, together
    guessed: int  # of the distinct, those whose parameters follow from the size of their weights
    tokens: int  # of the text set
    rates: Rates
    lens_weights: int = 0  # that a lens multiplies with beside the parameters, of the distinct together
    untold: int = 0  # of the distinct, those of which nobody knows what the lens costs

    @property
    def flop(self) -> float:
        """2 x (parameters + weights of the lens) x tokens, over all distinct checkpoints."""
        return 2.0 * (self.parameters + self.lens_weights) * self.tokens

    @property
    def device_seconds(self) -> float:
        """Of one device, at the stated rate."""
        return self.flop / (self.rates.device_tflops * 1e12)

    @property
    def fetch_seconds(self) -> float:
        """On the clock, at the stated speed of the link."""
        return self.fetch_bytes * 8 / (self.rates.gigabits * 1e9)

    @property
    def compute_seconds(self) -> float:
        """On the clock, all workers at work; a checkpoint is not divided among them."""
        return self.device_seconds / max(1, min(self.rates.workers, self.distinct))

    @property
    def wall_seconds(self) -> float:
        """The start of the workers, and the longer of the two: fetching goes on while scoring does."""
        return START_SECONDS * (self.distinct > 0) + max(self.fetch_seconds, self.compute_seconds)

    def lines(self) -> list[str]:
        """The cost in words: what, how much, and by which assumptions."""
        once = self.checkpoints - self.distinct
        lens = f" + {self.lens_weights:,} weights of the lens" if self.lens_weights else ""
        lens += f", none known for {counted(self.untold, 'checkpoint')}" if self.untold else ""
        twins = f"; {once:,} more {'has' if once == 1 else 'have'} files that are there or among these" if once else ""
        guess = f", of {counted(self.guessed, 'checkpoint')} from the bytes of the weights" if self.guessed else ""
        weights = f"{self.parameters:,} parameters{guess}"
        weights = f"({weights}{lens})" if lens else weights
        limit = "the link" if self.fetch_seconds > self.compute_seconds else f"the {self.rates.device}"
        workers = counted(self.rates.workers, "worker")
        workers += (
            ", as ray.workers is not set (klray score takes as many as the cluster has devices)" * self.rates.assumed
        )
        return [
            f"fetch       {self.fetch_bytes / 1e9:,.3f} GB of {counted(self.distinct, 'checkpoint')}{twins}",
            f"compute     {self.flop:.3g} FLOP (estimate: 2 x {weights} x "
            f"{self.tokens:,} tokens at {self.rates.bytes_per_token:g} bytes)",
            f"            {self.device_seconds / 3600:,.3f} {self.rates.device}-hours at "
            f"{self.rates.device_tflops:g} TFLOP/s{f' ({self.rates.stated})' if self.rates.stated else ''}",
            f"wall time   {duration(self.wall_seconds)} with {workers}: starting them {START_SECONDS:.0f} s, fetching "
            f"{duration(self.fetch_seconds)} at {self.rates.gigabits:g} Gbit/s, computing "
            f"{duration(self.compute_seconds)}; the limit is {limit}",
        ]


def cost(
    todo: Iterable[Checkpoint],
    present: Iterable[Checkpoint],
    text_bytes: int,
    rates: Rates,
    lens_weights: Mapping[str, int | None] | None = None,
) -> Cost:
    """Cost of scoring ``todo`` on texts of ``text_bytes`` UTF-8 bytes together.

    A checkpoint with the files of another, or of one that is ``present`` in the store, is neither fetched nor scored.
    ``lens_weights`` are those of each repository that a lens multiplies with, if it is scored through one, None where
    they are not known (``lens_weights``).
    """
    todo = list(todo)
    known = {each.content for each in present if each.content}
    distinct = {each.content or each.label: each for each in todo if not each.content or each.content not in known}
    through = [lens_weights[each.repository] for each in distinct.values()] if lens_weights is not None else []
    return Cost(
        checkpoints=len(todo),
        distinct=len(distinct),
        fetch_bytes=sum(each.bytes for each in distinct.values()),
        parameters=sum(map(parameters, distinct.values())),
        guessed=sum(each.parameters is None for each in distinct.values()),
        tokens=round(text_bytes / rates.bytes_per_token),
        rates=rates,
        lens_weights=sum(each for each in through if each is not None),
        untold=through.count(None),
    )


def lens_weights(hub: Hub, checkpoints: Iterable[Checkpoint], *, tuned: bool) -> dict[str, int | None]:
    """Weights that a lens multiplies each token's hidden states with, by repository; None, and a warning, where its
    config does not tell.

    They come beside the model's own: the head for every layer but the last, and before it, with a ``tuned`` lens, a
    translator. One config.json is fetched for each repository, whose checkpoints are taken to have one shape.
    """
    found: dict[str, int | None] = {}
    with tempfile.TemporaryDirectory() as place, Cache(Path(place), CACHE_BYTES) as cache:
        for each in checkpoints:
            if each.repository in found:
                continue
            config = dataclasses.replace(each, files=tuple(file for file in each.files if file.path == CONFIG))
            try:
                if each.gguf and not each.directory:
                    raise CheckpointError("its shape is in the GGUF file, which no plan fetches", "load_failed")
                model = model_shape(cache.fetch(hub, each if each.gguf else config))
                translator = model.width if tuned else 0
                found[each.repository] = model.layers * model.width * (model.vocabulary + translator)
                cache.release(config)
            except CheckpointError as error:
                log.warning("what a lens costs is not known for %s: %s", each.label, error.message)
                found[each.repository] = None
    return found


def parameters(checkpoint: Checkpoint) -> int:
    """Parameters as the hub tells them, or else the bytes of the weights over those of a number: of 16 bits, or as many
    as a GGUF file's name says.
    """
    if checkpoint.parameters is not None:
        return checkpoint.parameters
    size = sum(file.size_bytes for file in checkpoint.files if file.is_weight)
    if checkpoint.gguf and (found := _BITS.search(checkpoint.gguf)):
        return round(8 * size / (float(found[1]) + (0.5 if found[0].startswith("Q") else 0.0)))
    return size // UNKNOWN_BYTES_PER_PARAMETER
