"""Which checkpoints of a snapshot are compared token by token, in which process, and the result that is kept.

Shapes: P = comparisons, N = texts compared.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from klray.analysis.exact_kl import MEANINGS, TokenKL
from klray.analysis.facts import facts, labels, origin, strings
from klray.checkpoints import Checkpoint
from klray.checkpoints.causes import explained
from klray.errors import CheckpointError
from klray.likelihood import loading
from klray.likelihood.choices import LOGIT, NONE
from klray.likelihood.lens import Lens
from klray.likelihood.tokenizer import load_tokenizer, tokenizer_fingerprint
from klray.likelihood.tokens import Tokens, encode
from klray.measure.token_kl import compare
from klray.sweep.model import load_lens
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet

NUMERICS_VERSION = 1  # raise when the same pair and texts give other values than before
_PER_TEXT = tuple(each.name for each in fields(TokenKL) if each.name not in ("log_likelihood", "n_bytes"))


@dataclass(frozen=True)
class Side:
    """One checkpoint as it is loaded."""

    checkpoint: Checkpoint
    dtype: str
    quantization: str = NONE
    lens: str = NONE


@dataclass(frozen=True)
class Comparison:
    """Two models, or the layers of one under a lens, each with the next: what one loading gives."""

    setting: str  # of the scale
    first: Side
    second: Side
    names: tuple[tuple[str, str], ...]  # what is compared with what: one pair, or one for each two layers
    keys: tuple[str, ...]  # equal for equal pairs

    @property
    def label(self) -> str:
        """For messages."""
        return " and ".join(dict.fromkeys((self.names[0][0], self.names[-1][1])))


@dataclass(frozen=True, eq=False)
class Compared:
    """One row of the result."""

    key: str
    setting: str
    first: str
    second: str
    found: TokenKL


def comparisons(
    dataset: xr.Dataset, pairs: Mapping[str, np.ndarray], checkpoints: Sequence[Checkpoint], most: int
) -> tuple[list[Comparison], int]:
    """At most ``most`` comparisons of each setting, at equal distances among ``pairs`` (P, 2) of positions by setting.

    Left out, and counted, are pairs of which a checkpoint is not among ``checkpoints``, and those of two tokenizers.
    """
    known = {(each.repository, each.commit): each for each in checkpoints}
    names = labels(dataset).tolist()
    told = {name: strings(dataset, name) for name in ("repository", "commit", "dtype", "quantization", "lens")}
    layers, tokenizers = facts(dataset, "layer", -1), strings(dataset, "tokenizer")

    def side(place: int) -> Side | None:
        checkpoint = known.get((str(told["repository"][place]), str(told["commit"][place])))
        if checkpoint is None:
            return None
        dtype, quantization, lens = (str(told[name][place]) for name in ("dtype", "quantization", "lens"))
        return Side(checkpoint, dtype, quantization or NONE, lens or NONE)

    def key(place: int) -> str:
        return "/".join([*(str(each[place]) for each in told.values()), str(layers[place])])

    found, passed_over = [], 0
    for setting, of_setting in pairs.items():
        grouped: dict[tuple[Side, Side], list[tuple[int, int]]] = {}
        for i, j in of_setting.tolist():
            first, second = side(i), side(j)
            if first is None or second is None or tokenizers[i] != tokenizers[j]:
                passed_over += 1
            else:
                grouped.setdefault((first, second), []).append((i, j))
        sides = list(grouped)
        chosen = np.unique(np.linspace(0, len(sides) - 1, min(most, len(sides))).round().astype(int)).tolist()
        for first, second in (sides[place] for place in chosen):
            each = grouped[first, second]
            shown = tuple((names[i], names[j]) for i, j in each)
            found.append(
                Comparison(setting, first, second, shown, tuple(f"{setting} {key(i)} {key(j)}" for i, j in each))
            )
    return found, passed_over


class Comparer:
    """Loads what is compared, in the process that it is made in; what two comparisons share is loaded once."""

    def __init__(self, settings: ScoringSettings, text_set: TextSet):
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.text_set = text_set
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._loaded: dict[Side, loading.Loaded] = {}

    def score(self, comparison: Comparison, directories: Sequence[Path], read: Callable[[], None]) -> list[TokenKL]:
        """A TokenKL for each of the comparison's names; ``read`` is called when files are needed no longer.

        Raises CheckpointError: a checkpoint cannot be loaded or read, or the two have two tokenizers.
        """
        sides = (comparison.first, comparison.second)
        try:
            wanted = dict.fromkeys(sides)
            for side, directory in zip(sides, directories, strict=True):
                if side not in self._loaded:
                    spare = next((each for each in self._loaded if each not in wanted), None)
                    self._loaded[side] = self._load(side, directory, self._loaded.pop(spare) if spare else None)
            self._loaded = {side: self._loaded[side] for side in wanted}
            tokens = self._tokens(comparison, directories)
        finally:
            read()
        models = [each.model for each in self._loaded.values()]
        lens = None
        if comparison.first.lens != NONE:
            logit = comparison.first.lens == LOGIT
            lens = Lens(norm=self.settings.lens_norm) if logit else load_lens(self.settings)
        with explained(directories[0], doing="run"):
            return compare(
                models, tokens, self.text_set.n_bytes, tokens_per_batch=self.settings.tokens_per_batch, lens=lens
            )

    def _load(self, side: Side, directory: Path, reuse: loading.Loaded | None) -> loading.Loaded:
        dtype: Any = side.dtype
        return loading.load(
            directory,
            dtype,
            self._device,
            quantization=side.quantization,
            reuse=reuse,
            allow_unused=self.settings.allow_unused,
        )

    def _tokens(self, comparison: Comparison, directories: Sequence[Path]) -> Tokens:
        """The texts' tokens, of which there is one sequence for both."""
        made = {tokenizer_fingerprint(each): load_tokenizer(each) for each in directories}
        found = [encode(each, self.text_set.texts, allow_lost=self.settings.allow_lost) for each in made.values()]
        if len(found) == 1:
            return found[0]
        one, two = found
        same = np.array_equal(one.ids, two.ids) and np.array_equal(one.offsets, two.offsets)
        words, *others = map(_words, made.values())
        if not same or any(each != words for each in others):
            named = [each.tokenizer.label if each.tokenizer else "unknown" for each in found]
            what = "give other entries to their vocabularies" if same else "make other tokens of these texts"
            raise CheckpointError(
                f"{comparison.first.checkpoint.label} ({named[0]}) and {comparison.second.checkpoint.label} "
                f"({named[1]}) {what}: next-token distributions are compared under one tokenizer; the estimate from "
                "log-likelihoods (klray analyze) needs none",
                "load_failed",
            )
        return one


def _words(tokenizer: Any) -> dict[int, str]:
    """Entries of a vocabulary by id, without what was added to it: a chat model may name a spare one."""
    added = tokenizer.get_added_vocab() if hasattr(tokenizer, "get_added_vocab") else {}
    has = hasattr(tokenizer, "get_vocab")
    words = {number: word for word, number in tokenizer.get_vocab().items()} if has else dict(tokenizer.pieces())
    return {number: word for number, word in words.items() if word not in added}


def as_dataset(
    rows: Sequence[Compared], dataset: xr.Dataset, texts: np.ndarray, refused: Mapping[str, str]
) -> xr.Dataset:
    """The result: what was found of each pair and text, and the numbers of ``MEANINGS`` of each pair.

    ``texts`` (N,) are positions of the texts in the snapshot ``dataset``; ``refused`` says why pairs are missing.
    """
    words = np.dtypes.StringDType()
    about = {
        name: np.array([getattr(each, name) for each in rows], dtype=words)
        for name in ("setting", "first", "second", "key")
    }
    said = [each.found.summary() for each in rows]
    per_text = {
        name: np.array([getattr(each.found, name) for each in rows]).reshape(-1, len(texts)) for name in _PER_TEXT
    }
    likelihoods = np.array([each.found.log_likelihood for each in rows]).reshape(-1, 2, len(texts))
    units = {"forward": "nats", "reverse": "nats"}
    return xr.Dataset(
        {
            **{
                f"text_{name}": (("pair", "text"), each, {"units": units.get(name, "1")})
                for name, each in per_text.items()
            },
            "text_log_likelihood": (("pair", "side", "text"), likelihoods, {"units": "nats"}),
            **{
                name: (
                    "pair",
                    np.array([each[name] for each in said], dtype=float),
                    {"units": unit, "long_name": meaning},
                )
                for name, (unit, meaning) in MEANINGS.items()
            },
        },
        coords={
            **{name: ("pair", values) for name, values in about.items()},
            "text_bytes": ("text", dataset["text_bytes"].values[texts]),
            "text": texts,
        },
        attrs=origin(dataset)
        | {
            "title": "Exact KL of next-token distributions beside the estimate from log-likelihoods",
            "refused": json.dumps(dict(refused)),
            "numerics": NUMERICS_VERSION,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "references": "arXiv:2505.15353",
        },
    )


def rows_of(result: xr.Dataset) -> Iterator[Compared]:
    """The rows of such a result."""
    n_bytes = result["text_bytes"].values
    likelihoods = result["text_log_likelihood"].values
    per_text = {name: result[f"text_{name}"].values for name in _PER_TEXT}
    about = [strings(result.rename(pair="model"), name).tolist() for name in ("key", "setting", "first", "second")]
    for place, named in enumerate(zip(*about, strict=True)):
        values = {name: each[place] for name, each in per_text.items()}
        key, setting, first, second = named
        found = TokenKL(**values, log_likelihood=likelihoods[place], n_bytes=n_bytes)
        yield Compared(key, setting, first, second, found)
