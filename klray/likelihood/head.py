"""The output head: last hidden states -> log-probability of each next token, never all logits at once.

Shape suffixes: N tokens, V vocabulary entries, D width of the hidden states, T tokens of one text.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from klray.errors import CheckpointError
from klray.likelihood.linear import linear
from klray.units import NATS_PER_BIT

logger = logging.getLogger("klray")

# (tokens, vocabulary entries) of a tile of logits, by device. 512 x 1,024 fp32 (2 MiB) stays in a CPU's cache: 0.93 of
# the GEMM rate, logsumexp included (d = 512, V = 50,304), whole rows 0.7. Elsewhere 128 MiB, for few launches.
_TILES = {"cpu": (512, 1024)}
_LARGE_TILE = (4096, 8192)

_LARGEST_SHIFT = 1e30  # beyond every logit of a model that works, and finite in fp32 in bits too

# Greatest difference between our logits and the model's own from the same hidden states, relative, in root mean square,
# by the dtype of the weights: several times what rounding the model's own does (2^-8 / sqrt(12) in bfloat16).
_HEAD_TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-4, torch.float64: 1e-4}
# Greatest relative change of a hidden state when other tokens follow it and other rows stand beside it: the median over
# tokens, as a mixture of experts may send one token elsewhere on a rounding error; by the dtype of the hidden states.
_COMPANY_TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-3, torch.float64: 1e-3}

# Names in a config, with the architecture whose logits they shape.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma 2, RecurrentGemma, xLSTM
_SCALES = (
    ("logit_scale", 1),  # Cohere
    ("logits_scaling", -1),  # Granite divides
    ("logits_scaling", 1),  # HyperCLOVA X multiplies
    ("lm_head_multiplier", 1),  # Falcon-H1
)


@dataclass(frozen=True, eq=False)
class OutputHead:
    """Logits of a hidden state h: ``softcap(scale * (weight_VD @ h + bias_V))``, softcap(z) = c tanh(z / c).

    Computed in fp32 for every dtype of the model (in float64 for float64): products of bf16 or fp16 numbers are exact
    in fp32, and no logit is rounded to 16 bits, which would cost about 0.6 nats on a 250-token text in bf16.
    """

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_ND: torch.Tensor, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Logits (N, last - first) of the vocabulary entries from ``first`` to ``last`` (excluded)."""
        weight_VD = self.weight_VD[first:last]
        bias_V = None if self.bias_V is None else self.bias_V[first:last]
        dtype = compute_dtype(hidden_ND)
        if hidden_ND.is_cuda and hidden_ND.dtype == weight_VD.dtype != dtype:
            # 16-bit operands, fp32 result: the tensor cores' own accumulator, at ten times the rate of fp32 operands.
            logits_NV = torch.mm(hidden_ND, weight_VD.T, out_dtype=dtype)
            if bias_V is not None:
                logits_NV += bias_V
        else:
            logits_NV = linear(hidden_ND.to(dtype), weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype))
        return self._shaped(logits_NV)

    def target_logits(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """(N,) logits of one vocabulary entry for each token."""
        # 16-bit weights are widened inside the product, without a copy.
        logits_N = (hidden_ND.to(compute_dtype(hidden_ND)) * self.weight_VD[targets_N]).sum(dim=-1)
        if self.bias_V is not None:
            logits_N += self.bias_V[targets_N]
        return self._shaped(logits_N)

    def entries(self, hidden_ND: torch.Tensor) -> int:
        """V, the size of the vocabulary."""
        return len(self.weight_VD)

    def log_probabilities(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """(N,) log p(target | hidden) in nats, fp32: the target's logit minus the logsumexp over the vocabulary.

        Works in tiles of tokens x vocabulary entries, each reduced to one number a token before the next is computed;
        beside its input it holds a tile, 2 MiB on a CPU and 128 MiB elsewhere, and the hidden states of its tokens.
        """
        hidden_ND = hidden_ND.to(self.weight_VD.device)
        targets_N = targets_N.to(self.weight_VD.device)
        tokens, entries = _TILES.get(hidden_ND.device.type, _LARGE_TILE)
        parts = []
        for hidden, targets in zip(hidden_ND.split(tokens), targets_N.split(tokens), strict=True):
            tiles = [
                _logsumexp_(self.logits(hidden, first, first + entries))
                for first in range(0, len(self.weight_VD), entries)
            ]
            parts.append(self.target_logits(hidden, targets) - torch.logsumexp(torch.stack(tiles), dim=0))
        return torch.cat(parts)

    def _shaped(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale and softcap, in place."""
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


@dataclass(frozen=True)
class GivenLogits:
    """Stands for the head of a model that computes its own logits: what it reads are these, (N, V)."""

    def entries(self, logits_NV: torch.Tensor) -> int:
        """V, the size of the vocabulary."""
        return logits_NV.shape[-1]

    def logits(self, logits_NV: torch.Tensor, first: int = 0, last: int | None = None) -> torch.Tensor:
        """As of :class:`OutputHead`, in fp32 or float64."""
        return logits_NV[:, first:last].to(compute_dtype(logits_NV))

    def target_logits(self, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """As of :class:`OutputHead`, in fp32 or float64."""
        return logits_NV.gather(1, targets_N[:, None])[:, 0].to(compute_dtype(logits_NV))


def shift_of(peak_N1: torch.Tensor) -> torch.Tensor:
    """From the largest logit of each row (N, 1) to what is added, in bits, before the exponential: finite always."""
    # A row of -inf alone keeps a finite shift, so that its sum is 0 and its logsumexp -inf.
    return peak_N1.clamp(-_LARGEST_SHIFT, _LARGEST_SHIFT).div_(-NATS_PER_BIT)


def exponentials(logits_NV: torch.Tensor, shift_N1: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """(N, V) exp(logits) times 2^shift, in the wider dtype of the two, or in ``out``.

    In powers of two: exp2 of (z - max) in bits is a multiply-add and an exp2, and torch's exp2 took 0.28 ns an entry on
    a core of an AMD EPYC, its exp (which goes through MKL) 0.82 ns.
    """
    return torch.add(shift_N1, logits_NV, alpha=1 / NATS_PER_BIT, out=out).exp2_()


def _logsumexp_(logits_NV: torch.Tensor) -> torch.Tensor:
    """Logsumexp of each row (N,); the logits are overwritten."""
    shift_N1 = shift_of(logits_NV.amax(dim=-1, keepdim=True))
    return exponentials(logits_NV, shift_N1, out=logits_NV).sum(dim=-1).log_().sub_(shift_N1[:, 0], alpha=NATS_PER_BIT)


class _Unfit(Exception):
    """Why klray's head may not stand for a model's own logits."""


def compute_dtype(values: torch.Tensor) -> torch.dtype:
    """Where log-probabilities are computed: fp32, float64 for float64."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def text_config(model: Any) -> Any:
    """The part of a model's config that describes its language model; None for a model without config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def last_states(model: Any, ids_NT: torch.Tensor) -> torch.Tensor | None:
    """Last hidden states (N, T, D) of the base model for rows of token ids (N, T); None where there are none."""
    base = getattr(model, "base_model", None)
    if base is None or base is model:
        return None
    return getattr(base(input_ids=ids_NT, use_cache=False), "last_hidden_state", None)


def hidden_states(model: Any, ids_NT: torch.Tensor) -> torch.Tensor:
    """What the output head reads for rows of token ids (N, T): the base model's last hidden states, (N, T, D)."""
    states = last_states(model, ids_NT)
    if states is None:
        raise _Unfit("its base model gives no hidden states")
    return states


def own_logits(model: Any, ids_NT: torch.Tensor) -> torch.Tensor:
    """The model's own logits, (N, T, V), in the dtype that it gives them; CheckpointError (load_failed) without any."""
    logits = getattr(model(input_ids=ids_NT, use_cache=False), "logits", None)
    if logits is None:
        raise CheckpointError(
            f"{type(model).__name__} gives no logits: score a causal language model, such as the one that "
            "AutoModelForCausalLM makes of it",
            "load_failed",
        )
    return logits


def find_head(model: Any, probe_T: torch.Tensor, longest: int) -> tuple[OutputHead | None, str]:
    """The output head of ``model`` if it may stand for the model's own logits; else None and why, of which it warns.

    Scale and softcap are read from the model's config; then a short text ``probe_T`` (T,) of token ids decides, on
    every call: the head's logits must equal the model's own, and a hidden state must not depend on what stands beside
    it in a batch (as it does in a model that reads the padding). That takes two short forward passes. ``longest`` is
    the length in tokens of the longest text to be scored. To be called in eval mode without gradients.
    """
    try:
        if longest > (limit := _short_context(model)):
            raise _Unfit(f"texts over {limit:,} tokens change its rotary embedding for all others in their batch")
        heads = _candidates(model)
        base = getattr(model, "base_model", None)
        if not heads or base is None or base is model:
            raise _Unfit("it has no plain linear head over the hidden states of a base model")
        alone_TD, own_TV = _states_and_logits(model, probe_T[: max(1, len(probe_T) // 2)])
        if (width := alone_TD.shape[-1]) != (read := heads[0].weight_VD.shape[-1]):
            raise _Unfit(f"its hidden states have {width:,} numbers and its linear head reads {read:,}")
        if not torch.isfinite(own_TV).all():
            ours_TV = heads[0].logits(alone_TD.to(heads[0].weight_VD.device)).to(own_TV.device)
            if ours_TV.shape != own_TV.shape or (torch.isneginf(own_TV) & torch.isfinite(ours_TV)).any():
                raise _Unfit("it gives no probability to some tokens, to which its linear head gives some")
            return heads[0], ""  # nothing can be compared; the log-likelihoods will say that they are not finite
        head = _agreeing(heads, alone_TD, own_TV)
        _check_company(model, probe_T, alone_TD)
    except _Unfit as reason:
        logger.warning(
            "%s: %s; scoring one text per forward pass through the model's own logits, which is slower",
            type(model).__name__,
            reason,
        )
        return None, str(reason)
    return head, ""


def _states_and_logits(model: Any, ids_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states (T, D) and own logits (T, V) of one text, from one forward pass where the model's logits are
    computed by a call of its base model.
    """
    seen: list[Any] = []
    hook = model.base_model.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        own_TV = own_logits(model, ids_T[None])[0]
    finally:
        hook.remove()
    states_NTD = getattr(seen[-1], "last_hidden_state", None) if seen else None
    return (hidden_states(model, ids_T[None]) if states_NTD is None else states_NTD)[0], own_TV


def _agreeing(heads: Sequence[OutputHead], hidden_TD: torch.Tensor, own_TV: torch.Tensor) -> OutputHead:
    """The first of ``heads`` whose logits are the model's own."""
    allowed = _HEAD_TOLERANCE[heads[0].weight_VD.dtype]
    errors = []
    for head in heads:
        errors.append(relative_error(head.logits(hidden_TD.to(head.weight_VD.device)), own_TV))
        if errors[-1] <= allowed:
            return head
    raise _Unfit(f"its logits are {min(errors):.1e} off those of its linear head ({allowed:.0e} allowed)")


def _check_company(model: Any, probe_T: torch.Tensor, alone_TD: torch.Tensor) -> None:
    """Compare the hidden states of the probe's beginning with those that it has in a batch, before its other half."""
    followed_TD = hidden_states(model, torch.stack([probe_T, probe_T.flip(0)]))[0, : len(alone_TD)]
    change = ((followed_TD - alone_TD).float().norm(dim=-1) / alone_TD.float().norm(dim=-1)).median().item()
    allowed = _COMPANY_TOLERANCE[alone_TD.dtype]
    if change > allowed:
        raise _Unfit(f"its hidden states change by {change:.1e} with what is in their batch ({allowed:.0e} allowed)")


def _candidates(model: Any) -> list[OutputHead]:
    """Heads that the model's config allows, the likeliest first; none if there is no plain linear one."""
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(layer, nn.Linear) or layer.weight.is_meta or layer.weight.dtype not in _HEAD_TOLERANCE:
        return []
    config = text_config(model)
    softcap = next((getattr(config, name) for name in _SOFTCAPS if getattr(config, name, None)), None)
    values = [(getattr(config, name, None), power) for name, power in _SCALES]
    scales = [float(value) ** power for value, power in values if isinstance(value, float | int) and value]
    return [OutputHead(layer.weight, layer.bias, scale, softcap) for scale in [*scales, 1.0]]


def _short_context(model: Any) -> float:
    """Tokens in a batch up to which a position means the same in all: LongRoPE (Phi-3) changes frequencies beyond."""
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else math.inf


def relative_error(found: torch.Tensor, own: torch.Tensor) -> float:
    """Difference to the model's ``own`` numbers, relative, in root mean square; infinite for another shape."""
    if found.shape != own.shape:
        return math.inf
    ours = found.float()  # float64 takes two to three times as long
    theirs = own.to(ours.device).float()
    return ((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(torch.float32).tiny)).item()
