"""Whether a model can be what its config and its tokenizer claim: looked at before anything is built of them.

A config is some lines of text, and a number in it can ask for any amount of memory and time. What it asks for is held
against the bytes of the weights that lie beside it.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from klray.errors import CheckpointError
from klray.likelihood.kinds import auto_class
from klray.words.outside import parsed

_MOST = 1_000_000  # of labels, heads or experts: each is an object
_NOUN = "(label|layer|head|expert|block|group|codebook)s?"
_COUNTED = re.compile(
    rf"(^|_)(num|n)_(?!train|eval|test|data)(\w+_)?{_NOUN}(_kv)?$|^(encoder|decoder|attention)_(attention_)?{_NOUN}$"
)  # other numbers may be notes on the training
_KEY = 100  # letters of a key, of which the last are looked at
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_BITS = 8  # of a stored byte: no parameter takes less than one
_BUFFERS = 1 << 26  # numbers that a small model may hold beside its parameters: masks, tables of positions

_GROWTH = 100.0  # times as many bytes after a normaliser: the widest forms of Unicode are 18 times as long
_ADDED = 1000  # tokens around each text
_UNMERGED = 0.1  # of the words: some have a few for later use
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # what a byte that is in no word becomes


def check_config(folder: Path, config: dict[str, Any], tensors: int | None = None) -> None:
    """Refuse (CheckpointError, load_failed) a config that counts more layers than there are ``tensors``, or more than a
    million labels, heads or experts, or scales rotary positions by a factor without a type: nothing would be scaled.
    """
    for scaling in _scalings(config):
        factor = scaling.get("factor")
        if not (scaling.get("rope_type") or scaling.get("type")) and isinstance(factor, int | float) and factor != 1:
            raise CheckpointError(
                f"{folder} scales rotary positions by factor={factor} in its config.json and names no rope_type, so "
                "that nothing would be scaled: add the rope_type that the model was trained with",
                "load_failed",
            )
    for name, value in _numbers(config):
        layers, name = tensors is not None and name in _LAYERS, name[-_KEY:]
        if (layers and value > (tensors or 0)) or (value > _MOST and _COUNTED.search(name)):
            found = f"the weights beside it are {tensors} tensors" if layers else f"{_MOST:,} is the limit"
            raise CheckpointError(
                f"{folder} has {name}={value:,} in its config.json, and {found}: take config and weights from one "
                "checkpoint",
                "load_failed",
            )


def keep_built_in(config: Any) -> None:
    """Have transformers choose among its own code: a config may name a kernel that would be fetched from the hub."""
    config._attn_implementation = None  # of its parts, too
    config._experts_implementation = None


def check_size(folder: Path, config: Any, stored_bytes: int) -> None:
    """Refuse (CheckpointError, load_failed) a ``config`` of transformers whose model has more numbers than
    ``stored_bytes`` of weights can make. The model is built without memory.
    """
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=False)
    most = _BITS * stored_bytes
    for what, tensors, limit in (
        ("parameters", model.parameters(), most),
        ("numbers beside its parameters", model.buffers(), most + _BUFFERS),
    ):
        asked = sum(tensor.numel() for tensor in tensors)
        if asked > limit:
            raise CheckpointError(
                f"{folder} asks in its config.json for {asked:,} {what}, and its weights have {stored_bytes:,} bytes: "
                "take config and weights from one checkpoint",
                "load_failed",
            )


def check_tokenizer(folder: Path) -> None:
    """Refuse (CheckpointError, load_failed) a tokenizer.json that makes of each text many times as much, or lacks
    merges.
    """
    file = folder / "tokenizer.json"
    pipeline = parsed(file.read_bytes()) if file.is_file() else {}
    if not isinstance(pipeline, dict):
        return  # refused where it is loaded
    check_merges(pipeline, folder)
    growth = math.prod(map(_growth, _steps(pipeline.get("normalizer"), "normalizers")))
    again = math.prod(map(_growth, _steps(pipeline.get("decoder"), "decoders")))
    added = sum(map(_added, _steps(pipeline.get("post_processor"), "processors")))
    for what, found, limit in (
        (f"replaces parts of a text by up to {growth:.3g} times as much", growth, _GROWTH),
        (f"makes of its tokens up to {again:.3g} times as much", again, _GROWTH),
        (f"adds {added:,} tokens to each text", added, _ADDED),
    ):
        if found > limit:
            raise CheckpointError(
                f"{folder} has a tokenizer.json that {what}, and {limit:g} is the limit: no language model was trained "
                "so; take the tokenizer's files from where the model was published",
                "load_failed",
            )


def check_merges(pipeline: dict[str, Any], folder: Path) -> None:
    """Refuse (CheckpointError, load_failed) a BPE of which no merge makes more than a tenth of the words."""
    model = pipeline.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        return
    if model.get("ignore_merges") or model.get("continuing_subword_prefix"):  # merges leave that prefix out
        return
    added = pipeline.get("added_tokens")
    apart = {each.get("content") for each in added if isinstance(each, dict)} if isinstance(added, list) else set()
    vocabulary = model.get("vocab")
    words = {
        word
        for word in (vocabulary if isinstance(vocabulary, dict) else ())
        if len(word) > 1 and word not in apart and not _BYTE.fullmatch(word)
    }
    made = {"".join(each) if isinstance(each, list) else each.replace(" ", "", 1) for each in model["merges"]}
    lost = len(words - made)
    if lost > _UNMERGED * len(words):
        raise CheckpointError(
            f"{folder} has a tokenizer with {lost:,} of {len(words):,} words that no merge makes, so that no text "
            "would have them: some of its merges are lost; take the tokenizer's files from where the model was "
            "published",
            "load_failed",
        )


def _numbers(config: object, name: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers in a config, at any depth, each with the key that it stands under."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _numbers(value, str(key))
    elif isinstance(config, list):
        for value in config:
            yield from _numbers(value, name)
    elif isinstance(config, int) and not isinstance(config, bool):
        yield name, config


def _scalings(config: object) -> Iterator[dict[str, Any]]:
    """What a config says of rotary positions, at any depth, of each kind of layer if it tells them apart."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("rope_scaling", "rope_parameters") and isinstance(value, dict):
                yield value
                yield from (each for each in value.values() if isinstance(each, dict))
            else:
                yield from _scalings(value)


def _steps(step: object, inside: str) -> Iterator[dict[str, Any]]:
    """The steps of a part of a tokenizer, those of a sequence one after another."""
    if isinstance(step, dict) and isinstance(step.get(inside), list):
        for each in step[inside]:
            yield from _steps(each, inside)
    elif isinstance(step, dict):
        yield step


def _growth(step: dict[str, Any]) -> float:
    """How many times as many bytes a normaliser makes of a text at most."""
    if step.get("type") != "Replace":
        return 1.0
    pattern = step.get("pattern")
    replaced = len(str(pattern.get("String") or "x").encode()) if isinstance(pattern, dict) else 1
    return max(1.0, len(str(step.get("content")).encode()) / replaced)


def _added(step: dict[str, Any]) -> int:
    """How many tokens a post-processor puts around a text."""
    single, special = step.get("single"), step.get("special_tokens")
    if not isinstance(single, list) or not isinstance(special, dict):
        return 0
    ids = {name: len(value.get("ids", ())) for name, value in special.items() if isinstance(value, dict)}
    named = [each["SpecialToken"].get("id") for each in single if isinstance(each, dict) and "SpecialToken" in each]
    return sum(ids.get(name, 1) for name in named)
