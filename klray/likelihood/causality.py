"""Whether a model is causal: what follows a token must not change what the model says at it.

Shape suffixes: T tokens, P of them before the end of the part that is compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from klray.errors import CheckpointError
from klray.likelihood.head import last_states, own_logits

# Greatest relative change of what a model gives at a token when others follow it. Causal models give the same bits. In
# 16 bits a mixture of experts may send a token elsewhere on a rounding error of another order of sums: there it is the
# median of the tokens nearest to those that differ.
_TOLERANCE, _TOLERANCE_16_BITS = 1e-4, 1e-2
_NEAREST = 4


def check_causal(model: Any, probe_T: torch.Tensor, vocabulary: int | None) -> None:
    """Raise CheckpointError (not_causal) if the first half of ``probe_T`` (T,) depends on the other half.

    Two short forward passes of equal shapes, with two different other halves: the same numbers up to rounding. To be
    called in eval mode without gradients, for every model, whatever computes its logits.
    """
    kept = (len(probe_T) + 1) // 2
    if kept == len(probe_T):
        return
    other_T = probe_T.clone()
    other_T[kept:] = (probe_T[kept:] + 1) % (vocabulary or int(probe_T.max()) + 2)
    with _without_outliers(model):
        first_PD, second_PD = (_given(model, ids_T)[:kept].double() for ids_T in (probe_T, other_T))
    change_P = (first_PD - second_PD).norm(dim=-1) / first_PD.norm(dim=-1).clamp_min(1e-30)
    if not torch.isfinite(change_P).all():
        return  # the log-likelihoods will say that they are not finite
    most, allowed = change_P.max().item(), _TOLERANCE
    if next(model.parameters()).dtype.itemsize < 4:
        most, allowed = change_P[-_NEAREST:].median().item(), _TOLERANCE_16_BITS
    if most > allowed:
        raise CheckpointError(
            f"{type(model).__name__} is no causal language model: what follows a token changes what it gives there by "
            f"{most:.1e} ({allowed:.0e} allowed), so that the sum of its log-probabilities is no log-likelihood of a "
            "text; choose a causal language model",
            "not_causal",
        )


def _given(model: Any, ids_T: torch.Tensor) -> torch.Tensor:
    """Last hidden states (T, D) of one text, or the logits (T, V) of a model that gives no others."""
    states_NTD = last_states(model, ids_T[None])
    return (own_logits(model, ids_T[None]) if states_NTD is None else states_NTD)[0]


@contextmanager
def _without_outliers(model: Any) -> Iterator[None]:
    """Inside, int8 takes no columns of activations in 16 bits: which ones depends on the tokens to come."""
    states = [module.state for module in model.modules() if type(module).__name__ == "Linear8bitLt"]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold
