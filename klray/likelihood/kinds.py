"""What kind of model a config describes: those that give no probability of the next token are refused."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from klray.checkpoints.causes import first_line, is_out_of_memory
from klray.errors import CheckpointError
from klray.words.outside import printable

# Ends of a class's name, and what such a model is.
_HEADS = (
    (("ForMaskedLM", "ForPreTraining"), "is a masked model, in which a token sees what follows it"),
    (
        ("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice", "RewardModel", "ForReward"),
        "classifies whole texts or single tokens: it has no head for the next token",
    ),
    (("ForQuestionAnswering",), "marks answers in a text: it has no head for the next token"),
)
# Of decoders that were trained on as encoders or to fill masks, with the weights' names as they were.
_BOTH_WAYS = re.compile(r"Bidirectional|Bi(Model|For[A-Z])|MNTP|Diffusion")
_SEES_AHEAD = ("use_bidirectional_attention", "is_bidirectional", "bidirectional", "prefix_lm", "is_prefix_lm")
# What transformers' own code of a family passes over, and the values at which that changes nothing.
_PASSED_OVER: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "mpt": {
        **{"alibi": (True,), "rope": (False,), "qk_ln": (False,), "logit_scale": (None,), "embedding_fraction": (1,)},
        "norm_type": ("low_precision_layernorm", "layernorm"),
    }
}
_TOKENS = 8  # of a pass that shows whether a model takes text alone
_PARTS = ("text_config", "attn_config")


def check_kind(config: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError (not_causal) where a config.json says that the model is no causal language model, or
    (load_failed) what transformers passes over.

    What a config does not say is found when the model is scored: :mod:`klray.likelihood.causality`.
    """
    architecture = str((config.get("architectures") or [""])[0])
    what = next((what for ends, what in _HEADS if architecture.endswith(ends)), "")
    if not what and config.get("is_encoder_decoder"):
        what = "is an encoder with a decoder: the probability of a text depends on another text"
    parts = (config, *(config.get(name) for name in _PARTS))
    if not what and (_BOTH_WAYS.search(architecture) or any(map(_sees_ahead, parts))):
        what = "has attention in both directions: a token sees what follows it"
    if what:
        raise CheckpointError(
            f"{folder}: {architecture or config.get('model_type')} {what}, so it has no log-likelihood of a text; "
            "choose a causal language model",
            "not_causal",
        )
    said_in = [each for each in (config, config.get("attn_config")) if isinstance(each, Mapping)]
    for name, harmless in _PASSED_OVER.get(str(config.get("model_type")), {}).items():
        if said := [part[name] for part in said_in if name in part and part[name] not in harmless]:
            raise CheckpointError(
                f"{folder}/config.json says {name}={printable(str(said[0]))}, which transformers "
                f"{transformers.__version__} passes over in its {architecture or config.get('model_type')}: another "
                "model would be scored; leave this one out",
                "load_failed",
            )


def check_takes_text(model: Any, folder: Path) -> None:
    """Raise CheckpointError (not_causal) for a wrapper that gives nothing for a text without pictures or sounds."""
    if type(model.config) not in transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return
    try:
        with torch.no_grad():
            given = model(
                input_ids=torch.arange(_TOKENS, device=next(model.parameters()).device)[None], use_cache=False
            )
        why = "" if getattr(given, "logits", None) is not None else "it gives no logits"
    except Exception as error:
        if is_out_of_memory(error):
            raise
        why = f"{type(error).__name__}: {printable(first_line(error))}"
    if why:
        raise CheckpointError(
            f"{folder}: {type(model).__name__} takes no text alone ({why}), so it has no log-likelihood of a text; "
            "choose a causal language model",
            "not_causal",
        )


def check_runs(config: Any, folder: Path) -> None:
    """Raise CheckpointError (not_causal) for a wrapper that is several models, which are run one after the other."""
    known = type(config) in transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING
    made = transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)] if known else None
    if made is not None and made.forward is torch.nn.Module.forward:
        raise CheckpointError(
            f"{folder}: {made.__name__} is several models with no forward pass in common, so it has no log-likelihood "
            "of a text; save the one that writes text, such as its thinker, as a checkpoint, or choose a causal "
            "language model",
            "not_causal",
        )


def auto_class(config: Any) -> Any:
    """Which of transformers' classes makes the language model of a config.

    A wrapper with eyes or ears is made whole: without pictures and sounds it is its language model, to which its
    weights, names and files belong.
    """
    is_wrapper = type(config) in transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING
    return transformers.AutoModelForMultimodalLM if is_wrapper else transformers.AutoModelForCausalLM


def _sees_ahead(config: object) -> bool:
    if not isinstance(config, Mapping):
        return False
    return config.get("is_causal") is False or any(config.get(name) in (True, "all") for name in _SEES_AHEAD)


def check_class(config: Mapping[str, Any], model: Any, folder: Path) -> None:
    """Raise CheckpointError (load_failed) where a config.json names another class than the one that was made of it.

    transformers goes by ``model_type`` alone. The names of another class of the same config, such as its body, and
    those of TensorFlow and Flax, are taken.
    """
    made = type(model).__name__
    named = [str(each).removeprefix("TF").removeprefix("Flax") for each in config.get("architectures") or ()]
    for name in named:
        known = getattr(getattr(transformers, name, None), "config_class", None)
        if name.lower() == made.lower() or (known is not None and isinstance(model.config, known)):
            return
    if named:
        raise CheckpointError(
            f"{folder}/config.json names {printable(named[0])}, and transformers {transformers.__version__} makes "
            f"{made} of its model_type {config.get('model_type')!r}: whether that is the model which was trained is "
            "not known; take the config that it was published with, or put right what is wrong in it",
            "load_failed",
        )
