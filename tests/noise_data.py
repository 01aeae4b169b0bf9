"""Noise floors of distances that are made up."""

from __future__ import annotations

from klray.analysis.noise_floor import ModelNoise, NoiseFloor, Variant


def variants(*dtypes: str, devices: tuple[str, ...] = ("cpu",)) -> tuple[Variant, ...]:
    return (
        Variant("float64", "cpu", 1, "model"),
        *(Variant(dtype, device, budget) for dtype in dtypes for device in devices for budget in (1, 2048)),
    )


def found(*measured: ModelNoise, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> NoiseFloor:
    return NoiseFloor(dtypes, "float32", "f" * 64, "some texts", 10, 700.0, measured, {"torch": "2"})


def distances(*values: float) -> tuple[tuple[float, ...], ...]:
    """KL between points on a line."""
    return tuple(tuple(abs(one - two) for two in values) for one in values)
