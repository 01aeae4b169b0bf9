"""How a tuned lens is trained: light, since the config's group ``lens`` and its help come from it."""

from dataclasses import asdict, dataclass

from klray.errors import KlrayError


@dataclass(frozen=True)
class LensTraining:
    """How a tuned lens is trained; on one machine and thread count, equal values give equal lenses."""

    steps: int = 250  # updates of every layer's map
    tokens_per_step: int = 1024  # predictions compared; 1,024 at a time, whose logits are held whole, several times
    # Of Adam, at the first step; it falls linearly to zero. For a width of 64 and 60 steps, 1e-2 was better than 3e-3
    # and that than 1e-3; the tuned-lens package takes 1e-3 for widths of thousands.
    learning_rate: float = 3e-3
    seed: int = 0  # of the order of the texts

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0 and name != "seed":
                raise KlrayError(f"lens.{name}={value}: must be above 0")
