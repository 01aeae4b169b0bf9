"""What the embedded family is: sizes, seeds and training of small GPT-NeoX models, as one value that can be hashed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from klray.embedded.documents import training_documents
from klray.errors import KlrayError
from klray.texts import TextSet

# Raise by one whenever a change of the code changes the trained weights or the files around them.
RECIPE_VERSION = 1

ORGANIZATION = "klray"
# Texts have at most 1,024 bytes and a byte-level token has at least one, so every text fits.
CONTEXT_TOKENS = 1024


@dataclass(frozen=True)
class Size:
    """Shape of one GPT-NeoX model and its highest learning rate.

    ``name`` is its number of parameters in words, as in the repository's name.
    """

    name: str
    hidden: int
    layers: int
    learning_rate: float
    heads: int = 4

    def parameters(self, vocabulary: int) -> int:
        """Number of parameters: embedding and unembedding, 12 h^2 + 13 h for each layer, the final norm's 2 h."""
        h = self.hidden
        return 2 * vocabulary * h + self.layers * (12 * h**2 + 13 * h) + 2 * h


@dataclass(frozen=True)
class Recipe:
    """How the family is trained: every size with every seed. On one machine, equal recipes give equal files.

    A batch has ``batch_blocks`` blocks of ``block_tokens`` tokens, half of the blocks prose and half code, each
    domain from about ``bytes_per_domain`` bytes of its documents. The learning rate rises linearly over
    ``warmup_steps`` to the size's highest and falls along a cosine to ``final_learning_rate_share`` of it at the last
    step. Weights are kept at ``early_steps``, every ``save_every`` steps and at the end.

    Raises
    ------
    KlrayError
        A recipe that cannot be trained.
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

    @classmethod
    def read(cls, folder: Path) -> Recipe:
        """The recipe in ``folder/recipe.json``; inverse of :meth:`write`."""
        values = json.loads((folder / "recipe.json").read_text())
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists, "sizes": tuple(Size(**size) for size in values["sizes"])})

    def write(self, folder: Path) -> None:
        """Write ``folder/recipe.json``."""
        (folder / "recipe.json").write_text(json.dumps(asdict(self), indent=1))

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every size with every seed, the longest training first."""
        longest_first = sorted(self.sizes, key=lambda size: -size.parameters(self.vocabulary))
        return tuple(Run(size, seed) for size in longest_first for seed in self.seeds)

    @property
    def saved_steps(self) -> tuple[int, ...]:
        """Steps whose weights are kept, ascending."""
        steps = {*self.early_steps, *range(0, self.steps, self.save_every), self.steps}
        return tuple(sorted(step for step in steps if 0 <= step <= self.steps))

    def fingerprint(self) -> str:
        """16 hex digits over all that decides the weights: recipe, training texts, version of this code and of torch.

        Raises
        ------
        KlrayError
            This Python has no documents to train on; see :func:`klray.texts.stdlib_documents`.
        """
        documents = training_documents(self.bytes_per_domain)
        texts = TextSet("training", tuple(d.text for d in documents), tuple(d.domain for d in documents))
        facts = {
            "recipe": asdict(self),
            "texts": texts.fingerprint,
            "version": RECIPE_VERSION,
            "torch": importlib.metadata.version("torch"),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """One training: a size and a seed."""

    size: Size
    seed: int

    @property
    def repository(self) -> str:
        """Its repository on the hub."""
        return f"{ORGANIZATION}/tiny-{self.size.name}-seed{self.seed}"


DEFAULT = Recipe()
# Seconds for both runs, and a window of ten regular checkpoints still fits.
SMALLEST = Recipe(
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
