"""The embedded family's tokenizer, byte-level BPE learnt from the family's training texts, and those texts as tokens.

``python -m klray.tiny.tokenizer FOLDER`` reads the recipe in ``FOLDER/recipe.json`` and writes ``FOLDER/texts``.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from klray.tiny.family_recipe import CONTEXT_TOKENS, FamilyRecipe, training_documents

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "unk_token": END_OF_TEXT,
    "model_max_length": CONTEXT_TOKENS,
    "model_input_names": ["input_ids", "attention_mask"],
}


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Learn ``vocabulary`` entries, ``<|endoftext|>`` (id 0) among them.

    It adds no special token, as GPT-NeoX's: the first token of a text is the text's own.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """uint16 (T,): the tokens of all texts, each text followed by ``<|endoftext|>``."""
    encodings = tokenizer.encode_batch(texts)
    return np.concatenate([np.array([*encoding.ids, END_OF_TEXT_ID], dtype=np.uint16) for encoding in encodings])


def write_texts(recipe: FamilyRecipe, folder: Path) -> None:
    """Write the new folder ``folder``: ``tokenizer/``, and one ``<domain>.npy`` of uint16 tokens per domain."""
    documents = training_documents(recipe.bytes_per_domain)
    unfinished = folder.with_name(f".{folder.name}")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    (unfinished / "tokenizer").mkdir(parents=True)
    tokenizer = train_tokenizer([document.text for document in documents], recipe.vocabulary)
    tokenizer.save(str(unfinished / "tokenizer" / "tokenizer.json"))
    (unfinished / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2))
    for domain in sorted({document.domain for document in documents}):
        texts = [document.text for document in documents if document.domain == domain]
        np.save(unfinished / f"{domain}.npy", token_stream(tokenizer, texts))
    unfinished.rename(folder)


if __name__ == "__main__":
    (family,) = map(Path, sys.argv[1:])
    write_texts(FamilyRecipe.read(family), family / "texts")
