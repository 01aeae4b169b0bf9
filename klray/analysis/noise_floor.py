"""The noise floor: KL between scorings of one checkpoint, next to the smallest KL of interest. Units: bits per byte."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from klray.analysis.scale.published_settings import setting_named
from klray.errors import KlrayError
from klray.words.numbers import times, tiny
from klray.words.outside import parsed
from klray.words.tables import text_table

SMALLEST_KL = setting_named("later").low  # 0.01: consecutive checkpoints of Pythia, late in pretraining
# KL is a squared distance: noise 100 times below it is a displacement 10 times shorter. In one of two models it adds
# 1 % to their KL where it has nothing to do with their difference, and 21 % where it lies all along it.
MARGIN = 100.0

EXACT: Final = "float64"
FAILED, FINE, NOISY = "failed", "fine", "too noisy"
_KINDS = ("plans", "devices", "to_float32", "to_float64", "floor")  # of pairs, as `Floor` has them

# What the printed table, the JSON file and the report say of their rows.
ROWS_MEAN = (
    "Each row is one checkpoint in one precision. KL, in bits/byte, is the variance over texts of the difference of "
    "two log-likelihood vectors of that checkpoint over 2 B ln 2, as between two models; of several pairs the largest "
    "counts. plans: between token budgets of a batch, one text per forward pass among them, on one device. devices: "
    "between devices. to float32: to the same plan and device in float32. to float64: to the model in float64, one "
    "text per forward pass, with a float64 log-softmax. floor: the largest between any two scorings in this precision, "
    f"or of one to float64. below: {SMALLEST_KL} (the smallest KL of interest: consecutive checkpoints late in "
    f"pretraining, arXiv 2505.15353) over the floor; {FINE} from {MARGIN:.0f} on."
)


@dataclass(frozen=True)
class Variant:
    """One way of scoring: precision, device, token budget of a batch (1: one text per forward pass), head."""

    dtype: str
    device: str
    tokens_per_batch: int
    head: str = "tiled"  # "model": by the model's own logits, one text per forward pass whatever the budget


@dataclass(frozen=True)
class Floor:
    """One checkpoint in one precision: largest KL of each kind, bits per byte; None where there are no such pairs."""

    model: str
    dtype: str
    plans: float | None = None
    devices: float | None = None
    to_float32: float | None = None
    to_float64: float | None = None
    floor: float | None = None  # None: it could not be measured
    failure: str = ""

    @property
    def below(self) -> float | None:
        """How many times the floor is below the smallest KL of interest; None where it is 0 or unknown."""
        return SMALLEST_KL / self.floor if self.floor else None

    @property
    def verdict(self) -> str:
        """One of fine, too noisy, failed."""
        if self.floor is None:
            return FAILED
        return FINE if self.floor * MARGIN <= SMALLEST_KL else NOISY


@dataclass(frozen=True)
class ModelNoise:
    """KL between all scorings of one checkpoint."""

    model: str
    commit: str
    architecture: str = ""
    parameters: int = 0
    variants: tuple[Variant, ...] = ()  # V, the float64 reference first
    kl: tuple[tuple[float, ...], ...] = ()  # (V, V) bits per byte
    kl_standard_error: tuple[tuple[float, ...], ...] = ()
    failures: Mapping[str, str] | None = None  # by precision what went wrong, of those that have no variants

    def floors(self, dtypes: Sequence[str]) -> list[Floor]:
        """The rows of the table, one a precision."""
        return [self._floor(dtype) for dtype in dtypes]

    def _floor(self, dtype: str) -> Floor:
        if failure := (self.failures or {}).get(dtype):
            return Floor(self.model, dtype, failure=failure)
        mine = [i for i, variant in enumerate(self.variants) if variant.dtype == dtype]
        pairs = [(i, j, self.variants[i].device == self.variants[j].device) for i, j in combinations(mine, 2)]
        float32 = {(v.device, v.tokens_per_batch): i for i, v in enumerate(self.variants) if v.dtype == "float32"}
        twins = [(i, float32.get((self.variants[i].device, self.variants[i].tokens_per_batch))) for i in mine]
        return Floor(
            model=self.model,
            dtype=dtype,
            plans=self._largest((i, j) for i, j, same_device in pairs if same_device),
            devices=self._largest((i, j) for i, j, same_device in pairs if not same_device),
            to_float32=self._largest((i, j) for i, j in twins if j is not None and dtype != "float32"),
            to_float64=self._largest((i, 0) for i in mine),
            floor=self._largest([*((i, j) for i, j, _ in pairs), *((i, 0) for i in mine)]),
        )

    def _largest(self, pairs: Iterable[tuple[int, int]]) -> float | None:
        return max((self.kl[i][j] for i, j in pairs), default=None)


@dataclass(frozen=True)
class NoiseFloor:
    """What ``klray noise`` found."""

    dtypes: tuple[str, ...]  # precisions measured
    default_dtype: str  # the one that ``klray score`` would use
    text_set: str  # fingerprint
    text_set_name: str
    n_texts: int
    mean_bytes: float  # UTF-8, of a text
    models: tuple[ModelNoise, ...]  # one a checkpoint
    versions: Mapping[str, str]  # of what decides the numbers
    threads: int = 0  # of a CPU, which decide the last bits; 0 where that was not kept

    def rows(self) -> list[Floor]:
        """Every checkpoint in every precision."""
        return [row for model in self.models for row in model.floors(self.dtypes)]

    def worst(self) -> list[Floor]:
        """One row a precision: the largest KL of each kind over all checkpoints; ``model`` says how many these are."""
        found = []
        for dtype in self.dtypes:
            rows = [row for row in self.rows() if row.dtype == dtype and row.floor is not None]
            lost = len(self.models) - len(rows)
            kinds = {
                kind: max((value for row in rows if (value := getattr(row, kind)) is not None), default=None)
                for kind in _KINDS
            }
            failure = f"{lost} of {len(self.models)} could not be measured" if lost else ""
            found.append(Floor(f"largest of {len(rows)}", dtype, **kinds, failure=failure))
        return found

    def verdicts(self) -> list[str]:
        """A sentence a precision: whether its noise is far enough below the smallest KL of interest."""
        return [self._sentence(row) for row in self.worst()]

    @property
    def default_is_fine(self) -> bool:
        """Whether the default precision was measured, on every checkpoint, and is fine."""
        rows = [row for row in self.rows() if row.dtype == self.default_dtype]
        return bool(rows) and all(row.verdict == FINE for row in rows)

    def _sentence(self, row: Floor) -> str:
        who = f"{row.dtype} (the default precision)" if row.dtype == self.default_dtype else row.dtype
        lost = f"; {row.failure}" if row.failure else ""
        if row.floor is None:
            return f"{who}: {FAILED}{lost}"
        far = f"{_times(row.below)} below {SMALLEST_KL} bits/byte, the smallest KL of interest"
        if row.verdict == FINE:
            return f"{who}: {FINE}: its noise floor of {_kl(row.floor)} is {far}{lost}"
        cure = "" if row.dtype == "float32" else "; score in float32 for smaller ones"
        return (
            f"{who}: {NOISY}: its noise floor of {_kl(row.floor)} is {far}, and should be {MARGIN:.0f} times: "
            f"KL under {_kl(MARGIN * row.floor)} is not to be trusted in this precision{cure}{lost}"
        )

    def cells(self, rows: Iterable[Floor]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header of the table, and these rows of it for a reader."""
        found = []
        for row in rows:
            values = [getattr(row, kind) for kind in _KINDS]
            told = ["-" if value is None else tiny(value) for value in values]
            found.append((row.model, row.dtype, *told, _times(row.below) if row.below else "-", row.verdict))
        return ("checkpoint", "precision", *(kind.replace("_", " ") for kind in _KINDS), "below", "verdict"), found

    def table(self) -> str:
        """The rows, and below them the largest of each precision."""
        return text_table(*self.cells([*self.rows(), *(self.worst() if len(self.models) > 1 else [])]), text_columns=2)

    def to_json(self) -> str:
        """Everything, with the derived table and what its rows mean; inverse of :meth:`from_json`."""
        table = [{**asdict(row), "below": row.below, "verdict": row.verdict} for row in self.rows()]
        explained = {
            "unit": "bits/byte",
            "rows": ROWS_MEAN,
            "smallest_kl_of_interest": SMALLEST_KL,
            "margin": MARGIN,
            "verdicts": self.verdicts(),
            "table": table,
        }
        return json.dumps({**explained, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "NoiseFloor":
        """What :meth:`to_json` wrote; KlrayError if it is something else."""
        try:
            found = parsed(text)
            values: dict[str, Any] = {each.name: found[each.name] for each in fields(cls) if each.name != "threads"}
            values["threads"] = int(found.get("threads", 0))
            values["versions"] = dict(values["versions"])
            for each in values["models"]:
                each["variants"] = tuple(Variant(**variant) for variant in each["variants"])
                each |= {name: _matrix(each[name]) for name in ("kl", "kl_standard_error")}
            models = tuple(ModelNoise(**each) for each in values["models"])
            for each in models:
                if [len(row) for row in each.kl] != [len(each.variants)] * len(each.variants):
                    raise ValueError(f"kl of {each.model} has not a row and a column for each variant")
        except (ValueError, KeyError, TypeError) as error:
            raise KlrayError(
                f"this is not a noise floor ({type(error).__name__}: {error}): name a file that klray noise wrote"
            ) from error
        return cls(**{**values, "dtypes": tuple(values["dtypes"]), "models": models})

    @classmethod
    def read(cls, path: Path) -> "NoiseFloor":
        """The noise floor in a file that ``klray noise`` wrote."""
        try:
            return cls.from_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, KlrayError) as error:
            raise KlrayError(f"{path}: {error}; make one with klray noise noise.path={path}") from error


def _matrix(rows: Iterable[Iterable[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in rows)


def _kl(value: float) -> str:
    return f"{tiny(value)} bits/byte"


def _times(below: float | None) -> str:
    return "any number of times" if below is None else times(below)
