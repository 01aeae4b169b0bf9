"""What the embedded family is: sizes, seeds and training of small GPT-NeoX models, as one value that can be hashed."""

import hashlib
import importlib.metadata
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from klray.errors import KlrayError
from klray.texts import Document, TextSet, stdlib_documents

# Raise by one whenever a change of the code changes the trained weights or the files around them.
RECIPE_VERSION = 1

ORGANIZATION = "klray"
# Texts have at most 1,024 bytes and a byte-level token has at least one, so every text fits.
CONTEXT_TOKENS = 1024


def training_documents(bytes_per_domain: int) -> list[Document]:
    """Documents of the training half, at least ``bytes_per_domain`` UTF-8 bytes of each domain or all that it has.

    They come in the order of the SHA-256 of their names, so that a part of the code is not the first letters of the
    alphabet. Raises KlrayError if this Python has none; see :func:`klray.texts.stdlib_documents`.
    """
    chosen = []
    bytes_of_domain: Counter[str] = Counter()
    documents = stdlib_documents("train")
    for document in sorted(documents, key=lambda document: hashlib.sha256(document.name.encode()).digest()):
        if bytes_of_domain[document.domain] < bytes_per_domain:
            bytes_of_domain[document.domain] += len(document.text.encode())
            chosen.append(document)
    return chosen


@dataclass(frozen=True)
class Size:
    """Shape of one GPT-NeoX model and its highest learning rate.

    ``name`` is its number of parameters in words, as in the repository's name. ``seeds`` None takes the recipe's.
    """

    name: str
    hidden: int
    layers: int
    learning_rate: float
    heads: int = 4
    seeds: tuple[int, ...] | None = None

    def parameters(self, vocabulary: int) -> int:
        """Number of parameters: embedding and unembedding, 12 h^2 + 13 h for each layer, the final norm's 2 h."""
        h = self.hidden
        return 2 * vocabulary * h + self.layers * (12 * h**2 + 13 * h) + 2 * h


@dataclass(frozen=True)
class FamilyRun:
    """One training from new weights: a size and a seed."""

    size: Size
    seed: int
    parents: ClassVar[tuple[str, ...]] = ()

    @property
    def repository(self) -> str:
        """Its repository on the hub."""
        return f"{ORGANIZATION}/tiny-{self.size.name}-seed{self.seed}"


@dataclass(frozen=True)
class Child:
    """A fine-tuned model: from a parent's last weights, on texts of ``domains`` only; its weights are kept at ``main``.

    ``parent`` is the repository of a run or of another child. The learning rate goes the recipe's way, compressed to
    ``steps``, with ``learning_rate`` as its highest. ``seed`` decides the order of the data.
    """

    parent: str
    name: str
    domains: tuple[str, ...]
    steps: int
    learning_rate: float
    seed: int = 1

    @property
    def repository(self) -> str:
        """Its repository on the hub: the parent's, and its own name."""
        return f"{self.parent}-{self.name}"

    @property
    def parents(self) -> tuple[str, ...]:
        """Its one parent."""
        return (self.parent,)


@dataclass(frozen=True)
class Merge:
    """The mean of the weights of several children, kept at ``main`` of ``repository``."""

    repository: str
    parents: tuple[str, ...]


@dataclass(frozen=True)
class Dense:
    """More steps of one run whose weights are kept."""

    repository: str
    steps: tuple[int, ...]


@dataclass(frozen=True)
class FamilyRecipe:
    """How the family is trained: every size with every seed. On one machine, equal recipes give equal files.

    A batch has ``batch_blocks`` blocks of ``block_tokens`` tokens, half of the blocks prose and half code, each
    domain from about ``bytes_per_domain`` bytes of its documents. The learning rate rises linearly over
    ``warmup_steps`` to the size's highest and falls along a cosine to ``final_learning_rate_share`` of it at the last
    step. Weights are kept at ``early_steps``, every ``save_every`` steps and at the end; of some runs at more steps
    (``dense``). ``children`` are fine-tuned from runs and from each other, ``merges`` averaged of them; parents first.
    Raises KlrayError for a recipe that cannot be trained.
    """

    sizes: tuple[Size, ...] = (
        Size("0.4m", hidden=64, layers=2, learning_rate=2e-3),
        Size("0.7m", hidden=96, layers=3, learning_rate=1.3e-3),
    )
    seeds: tuple[int, ...] = (1, 2)
    steps: int = 600
    early_steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16)
    save_every: int = 20
    vocabulary: int = 2048
    bytes_per_domain: int = 1_000_000
    batch_blocks: int = 8
    block_tokens: int = 128
    warmup_steps: int = 30
    # KL of the last consecutive checkpoints in bits/byte (0.4m, one seed): 0.3 to 0.4 at a constant rate of 2e-3 and
    # 0.07 along a cosine to 30 % of it, with 12 blocks; 0.10 to 30 % and 0.02 to 10 % of 3e-3, with 8 blocks.
    final_learning_rate_share: float = 0.3
    dense: tuple[Dense, ...] = ()
    children: tuple[Child, ...] = ()
    merges: tuple[Merge, ...] = ()

    def __post_init__(self) -> None:
        names = [size.name for size in self.sizes]
        for wrong, what in (
            (not names or not self.seeds, "has no sizes or no seeds: give one of each at least"),
            (len(set(names)) < len(names), f"gives two sizes one name: {names}"),
            (len(set(self.seeds)) < len(self.seeds), f"gives a seed twice: {self.seeds}"),
            (any(size.hidden % size.heads for size in self.sizes), "has a size whose heads do not divide its width"),
            (min(self.steps, self.save_every) < 1, "has steps or save_every below 1"),
            (self.batch_blocks < 2 or self.batch_blocks % 2 > 0, "has an odd number of batch_blocks, or none"),
            (not 1 <= self.block_tokens <= CONTEXT_TOKENS, f"has block_tokens outside 1 to {CONTEXT_TOKENS:,}"),
            # The 256 bytes and <|endoftext|>; tokens are kept as 16-bit integers.
            (not 257 <= self.vocabulary <= 2**16, "has a vocabulary outside 257 to 65,536"),
            (self.bytes_per_domain < 100_000, "has bytes_per_domain below 100,000"),
        ):
            if wrong:
                raise KlrayError(f"the recipe of the embedded family {what}")
        self._check_lineage()

    def _check_lineage(self) -> None:
        runs = {run.repository for run in self.runs}
        known: set[str] = set()
        for made in self.all:
            unknown = sorted(set(made.parents) - known)
            sizes = {self.size_of(parent) for parent in made.parents if parent in known}
            for wrong, what in (
                (made.repository in known, "is there twice"),
                (unknown, f"has parents that do not come before it: {', '.join(unknown)}"),
                (isinstance(made, Child) and not made.domains, "has no domains to be trained on"),
                (
                    isinstance(made, Child) and (made.steps < 1 or self.batch_blocks % max(1, len(made.domains))),
                    "has no steps, or domains that do not divide batch_blocks",
                ),
                (isinstance(made, Merge) and len(set(made.parents)) < 2, "is the mean of fewer than two"),
                (isinstance(made, Merge) and len(sizes) > 1, "is the mean of models of different sizes"),
            ):
                if wrong:
                    raise KlrayError(f"the recipe of the embedded family: {made.repository} {what}")
            known.add(made.repository)
        if lost := sorted({dense.repository for dense in self.dense} - runs):
            raise KlrayError(f"the recipe of the embedded family has dense steps of {', '.join(lost)}, which is no run")

    @classmethod
    def read(cls, folder: Path) -> "FamilyRecipe":
        """The recipe in ``folder/recipe.json``; inverse of :meth:`write`."""
        values = {name: _tuples(value) for name, value in json.loads((folder / "recipe.json").read_text()).items()}
        for name, kind in (("sizes", Size), ("dense", Dense), ("children", Child), ("merges", Merge)):
            if name in values:
                values[name] = tuple(kind(**each) for each in values[name])
        return cls(**values)

    def write(self, folder: Path) -> None:
        """Write ``folder/recipe.json``."""
        (folder / "recipe.json").write_text(json.dumps(asdict(self), indent=1))

    @property
    def runs(self) -> tuple[FamilyRun, ...]:
        """Every size with every seed, the longest training first."""
        longest_first = sorted(self.sizes, key=lambda size: -size.parameters(self.vocabulary))
        return tuple(
            FamilyRun(size, seed)
            for size in longest_first
            for seed in (self.seeds if size.seeds is None else size.seeds)
        )

    @property
    def all(self) -> tuple[FamilyRun | Child | Merge, ...]:
        """Every model of the family, parents before those that are made from them."""
        return (*self.runs, *self.children, *self.merges)

    def size_of(self, repository: str) -> Size:
        """Shape of a run, of what was fine-tuned from it, and of a merge of that."""
        made = next(each for each in self.all if each.repository == repository)
        return made.size if isinstance(made, FamilyRun) else self.size_of(made.parents[0])

    def updates(self, made: FamilyRun | Child | Merge) -> int:
        """Number of updates of one training; 0 for a merge."""
        return self.steps if isinstance(made, FamilyRun) else made.steps if isinstance(made, Child) else 0

    def last_revision(self, repository: str) -> str:
        """Revision with the last weights of a model: ``step<last>`` of a run, ``main`` of all others."""
        return f"step{self.steps}" if repository in {run.repository for run in self.runs} else "main"

    @property
    def saved_steps(self) -> tuple[int, ...]:
        """Steps whose weights are kept, ascending."""
        steps = {*self.early_steps, *range(0, self.steps, self.save_every), self.steps}
        return tuple(sorted(step for step in steps if 0 <= step <= self.steps))

    def steps_kept(self, run: FamilyRun) -> tuple[int, ...]:
        """Steps of one run whose weights are kept, ascending: ``saved_steps``, and its dense ones."""
        more = {step for dense in self.dense if dense.repository == run.repository for step in dense.steps}
        return tuple(sorted({*self.saved_steps, *(step for step in more if 0 <= step <= self.steps)}))

    def fingerprint(self) -> str:
        """16 hex digits over all that decides the weights: recipe, training texts, version of this code and of torch.

        Raises as :func:`training_documents`.
        """
        documents = training_documents(self.bytes_per_domain)
        texts = TextSet("training", tuple(d.text for d in documents), tuple(d.domain for d in documents))
        recipe = asdict(self)
        # What a recipe does not use is not part of it, so that new possibilities leave the fingerprints of old recipes.
        recipe["sizes"] = [{name: value for name, value in s.items() if value is not None} for s in recipe["sizes"]]
        for name in ("dense", "children", "merges"):
            if not recipe[name]:
                del recipe[name]
        facts = {
            "recipe": recipe,
            "texts": texts.fingerprint,
            "version": RECIPE_VERSION,
            "torch": importlib.metadata.version("torch"),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, inside of objects too."""
    if isinstance(value, dict):
        return {name: _tuples(each) for name, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


DEFAULT = FamilyRecipe()
# Seconds for both runs, and a window of ten regular checkpoints still fits.
SMALLEST = FamilyRecipe(
    sizes=(Size("46k", hidden=32, layers=1, learning_rate=4e-3),),
    steps=40,
    early_steps=(0, 1, 2),
    save_every=4,
    vocabulary=512,
    bytes_per_domain=100_000,
    batch_blocks=4,
    block_tokens=64,
    warmup_steps=4,
)
