"""Log-likelihoods in float64 throughout: what every other way of scoring is measured against."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from klray.errors import CheckpointError
from klray.likelihood.head import own_logits
from klray.likelihood.score import readable
from klray.likelihood.tokens import Tokens


def exact_log_likelihood(model: Any, tokens: Tokens) -> np.ndarray:
    """Log-likelihood of each text, (N,) float64 in nats, by the definition and nothing else.

    One text per forward pass, no padding, the model's own logits, a log-softmax over the whole vocabulary, and all of
    it in float64: also the parts that a model computes in fp32 whatever its dtype (the norms of Llama's kind,
    attention's softmax, rotary angles). A text's logits are held whole: 8 bytes times tokens times vocabulary entries.
    The model is a causal one of transformers in float64, on any device.

    Raises CheckpointError as ``readable``, or non_finite if the model itself, not its arithmetic, is broken.
    """
    values = np.zeros(len(tokens))
    with _Float64(), readable(model, tokens) as device:
        for text, ids in enumerate(tokens):
            if len(ids) >= 2:  # a single token has no prediction
                ids_T = torch.from_numpy(ids.astype(np.int64)).to(device)
                log_p_TV = own_logits(model, ids_T[None])[0, :-1].double().log_softmax(-1)
                values[text] = float(log_p_TV.gather(1, ids_T[1:, None].to(log_p_TV.device)).sum())
    if not np.isfinite(values).all():
        text = int(np.argmin(np.isfinite(values)))
        raise CheckpointError(
            f"{type(model).__name__} gives text {text} a log-likelihood of {values[text]} in float64 too: its weights "
            "are broken; leave this checkpoint out",
            "non_finite",
        )
    return values


class _Float64(TorchFunctionMode):
    """Inside, whatever asks for fp32 gets float64: ``.float()``, ``.to(torch.float32)``, ``dtype=torch.float32``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(_widened, args), **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
