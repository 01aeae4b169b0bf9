"""The ten settings of the scale, what each is called in words, and what the paper found in it.

Source of the settings and of the published values: arXiv:2505.15353, Figure 3 and Table 1a; KL in bits/byte.
"""

import math
from dataclasses import dataclass

from klray.words.numbers import significant

SOURCE = "arXiv:2505.15353"
AUTHORS = "Kishino et al."
PUBLISHED_SPACING = 1000  # steps between the consecutive checkpoints of the published "later" and "early"


@dataclass(frozen=True)
class Setting:
    """One setting. ``low`` and ``high`` are the published median twice, or the published range; NaN if neither is.

    ``phrase`` completes "like ...", and may have a place for the ``spacing`` of checkpoints.
    """

    name: str
    phrase: str
    low: float = math.nan
    high: float = math.nan

    def published(self, spacing: int = PUBLISHED_SPACING) -> tuple[float, float]:
        """``low`` and ``high``, which for consecutive checkpoints are known for pairs 1,000 steps apart only."""
        known = spacing == PUBLISHED_SPACING or "{spacing}" not in self.phrase
        return (self.low, self.high) if known else (math.nan, math.nan)

    def published_words(self, between: str = " to ") -> str:
        """What was published, for a reader: 0.44, or 0.01 to 0.05."""
        return range_words(self.low, self.high, between)

    def words(self, spacing: int = PUBLISHED_SPACING) -> str:
        """``phrase`` with the spacing in its place."""
        return self.phrase.replace("{spacing}", f"{spacing:,}")


def range_words(low: float, high: float, between: str) -> str:
    """A published median (both numbers), or range, for a reader."""
    return significant(low, 2) if low == high else f"{low:g}{between}{high:g}"


SETTINGS = (
    Setting("later", "training for {spacing} steps late in pretraining", 0.01, 0.05),
    Setting("early", "training for {spacing} steps early in pretraining", 0.05, 0.1),
    Setting("seed", "pretraining with another seed"),
    Setting("size", "pretraining another size"),
    Setting("8-bit", "quantising to 8 bits", 0.44, 0.44),
    Setting("4-bit", "quantising to 4 bits", 0.49, 0.49),
    Setting("fine-tuning", "fine-tuning", 0.40, 0.40),
    Setting("intra-type", "taking another model of the same architecture", 0.95, 0.95),
    Setting("random", "taking any other model"),
    Setting("layer", "going up one layer, read by the logit lens", 3.0, 3.0),
)
# Parts of settings and variants of them that are counted apart; the paper has none of these.
APART = (
    Setting("4-bit fp4", "quantising to 4 bits (fp4)"),
    Setting("4-bit nf4", "quantising to 4 bits (nf4)"),
    Setting("layer, tuned lens", "going up one layer, read by the tuned lens"),
)
_KNOWN = {setting.name: setting for setting in (*SETTINGS, *APART)}


def setting_named(name: str) -> Setting:
    """The setting of that name; one of the ten or of those apart, or made up for a name from a result."""
    return _KNOWN.get(name) or Setting(name, name.replace("dtype ", "scoring in "))
