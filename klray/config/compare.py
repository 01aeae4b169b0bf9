"""Group ``compare``: which models klray compare takes, and on how many texts."""

from dataclasses import dataclass, field


@dataclass
class CompareConfig:
    """Which pairs are compared token by token: of the settings of the scale, as ``scale`` chooses them."""

    name: str = "compare"  # of the result
    settings: list[str] = field(default_factory=list)  # of the scale, such as 8-bit or later; default: all
    pairs: int = 4  # of each setting at most, at equal distances; of layers: so many checkpoints
    texts: int = 32  # of the store's texts, at equal distances
