"""Nats to bits per byte: the only place where log 2 appears."""

import math

NATS_PER_BIT = math.log(2.0)


def bits_per_byte(nats_per_text: float, mean_bytes: float) -> float:
    """Nats per text -> bits per byte, for texts of ``mean_bytes`` UTF-8 bytes on average."""
    return nats_per_text / (mean_bytes * NATS_PER_BIT)


def kl_per_variance(mean_bytes: float) -> float:
    """Factor from Var_n(l_i - l_j) in nats^2 per text to KL(p_i, p_j) in bits per byte: 1 / (2 B ln 2).

    Source: arXiv 2505.15353, section 2 (2 KL ~ ||q_i - q_j||^2 / N in nats per text).
    """
    return 0.5 * bits_per_byte(1.0, mean_bytes)
