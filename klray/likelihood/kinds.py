"""What kind of model a config describes: those that give no probability of the next token are refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klray.errors import CheckpointError

# Ends of a class's name, and what such a model is.
_HEADS = (
    (("ForMaskedLM", "ForPreTraining"), "is a masked model, in which a token sees what follows it"),
    (
        ("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice", "RewardModel", "ForReward"),
        "classifies whole texts or single tokens: it has no head for the next token",
    ),
    (("ForQuestionAnswering",), "marks answers in a text: it has no head for the next token"),
)


def check_kind(config: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError (not_causal) where a config.json says that the model is no causal language model.

    What a config does not say is found when the model is scored: :mod:`klray.likelihood.causality`.
    """
    architecture = str((config.get("architectures") or [""])[0])
    what = next((what for ends, what in _HEADS if architecture.endswith(ends)), "")
    if not what and config.get("is_encoder_decoder"):
        what = "is an encoder with a decoder: the probability of a text depends on another text"
    if not what and any(_sees_ahead(part) for part in (config, config.get("text_config"))):
        what = "has attention in both directions: a token sees what follows it"
    if what:
        raise CheckpointError(
            f"{folder}: {architecture or config.get('model_type')} {what}, so it has no log-likelihood of a text; "
            "choose a causal language model",
            "not_causal",
        )


def _sees_ahead(config: object) -> bool:
    if not isinstance(config, Mapping):
        return False
    return config.get("use_bidirectional_attention") in (True, "all") or config.get("is_causal") is False
