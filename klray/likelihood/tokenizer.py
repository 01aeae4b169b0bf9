"""The tokenizer of a checkpoint's folder: the pipeline of its files, not one that a library puts in its place."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors

from klray.checkpoints import check_small_files, model_config
from klray.checkpoints.causes import explained
from klray.checkpoints.files import VOCABULARIES
from klray.checkpoints.gguf import Array, is_gguf
from klray.errors import CheckpointError
from klray.likelihood import gguf_tokenizer, plausible
from klray.likelihood.gguf_model import open_gguf
from klray.likelihood.quiet import quiet
from klray.likelihood.tokenizing import LACKING, around, named
from klray.words.outside import parsed

logger = logging.getLogger("klray")

PIPELINE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_ADDED = "added_tokens.json"
# What a tokenizer is made from, whatever its kind; a chat template changes no token of a plain text.
_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", *VOCABULARIES[2:])
# Where SentencePiece and a pipeline made of its model have been seen to part.
_PROBES = (
    *(
        "two  spaces, a\ttab\n\nand lines",
        " in front",
        "behind ",
        "naïve Ａ ﬁ ½ e\u0301",
        "東京タワー",
        "🙂🚀",
        "1234567",
    ),
    "<s>",
)


def load_tokenizer(directory: str | Path) -> Any:
    """The tokenizer in a checkpoint's folder, never running code that it brings; CheckpointError (load_failed).

    tokenizer.json is taken as it stands, whatever class tokenizer_config.json names: transformers' classes have
    pipelines of their own, which are used only where there is no tokenizer.json. ``add_bos_token`` and
    ``add_eos_token`` of tokenizer_config.json hold, as they do in transformers, and a warning says where they change
    what tokenizer.json does. Where a SentencePiece model is all there is, ids are those of SentencePiece itself.

    Of a GGUF file it is what lies beside it, and must give the file's ids to the file's tokens; else it is the file's.
    """
    folder = Path(directory)
    if is_gguf(folder):
        return _beside_gguf(folder)
    with quiet(), explained(folder, "tokenizer"):
        _files(folder)
        check_small_files(folder)
        plausible.check_tokenizer(folder)
        settings = _settings(folder)
        pipeline = folder / PIPELINE
        if pipeline.is_file() and "auto_map" not in settings:
            return _with_decoder(_from_pipeline(pipeline, settings))
        model = _sentencepiece_model(folder)
        tokenizer = (
            _named_class(folder, settings)
            if model is None
            else transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        )
        if pipeline.is_file():
            return _with_decoder(_from_pipeline(pipeline, settings))
        if not _has_vocabulary(folder) and tokenizer.vocab_files_names:
            raise CheckpointError(
                f"{folder} has a tokenizer ({type(tokenizer).__name__}) without its vocabulary: none of "
                f"{', '.join(VOCABULARIES)}; add the tokenizer's files",
                "load_failed",
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None and model is None:
            plausible.check_merges(json.loads(backend.to_str()), folder)
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise ValueError(f"transformers finds no vocabulary for {type(tokenizer).__name__} in its files")
        return tokenizer if model is None else _by_sentencepiece(model.read_bytes(), tokenizer, folder)


def tokenizer_fingerprint(directory: str | Path) -> str:
    """SHA-256 (64 hex digits) over the files of a checkpoint's folder that define its tokenizer.

    Equal fingerprints give equal tokens, so that texts are encoded once for all checkpoints that share one. It covers
    names and bytes of the tokenizer's files and, as that can choose the class, ``model_type`` of config.json.
    Raises CheckpointError (load_failed) if there are none.
    """
    folder = Path(directory)
    if is_gguf(folder):
        with explained(folder, "tokenizer"):
            own = gguf_tokenizer.fingerprint(open_gguf(folder))
        beside = tokenizer_fingerprint(folder.parent) if _has_vocabulary(folder.parent) else ""
        return hashlib.sha256(f"{own} {beside}".encode()).hexdigest()
    with explained(folder, "tokenizer"):
        files = _files(folder)
        digest = hashlib.sha256(json.dumps(model_config(folder).get("model_type")).encode())
        for file in files:
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(json.dumps([file.name, sha256]).encode())
        return digest.hexdigest()


def _beside_gguf(place: Path) -> Any:
    """The tokenizer of a GGUF file: the one beside it, or its own."""
    with quiet(), explained(place, "tokenizer"):
        file = open_gguf(place)
        if _has_vocabulary(place.parent):
            tokenizer = load_tokenizer(place.parent)
            if isinstance(file.metadata.get(f"{gguf_tokenizer.KEY}tokens"), Array):
                gguf_tokenizer.check_ids(file, tokenizer, "the tokenizer beside it")
            return tokenizer
        tokenizer, model = gguf_tokenizer.from_gguf(file)
        if way := gguf_tokenizer.way_of(file):
            _cut(tokenizer.backend_tokenizer, way)
        before, after = gguf_tokenizer.special_around(file)
        _put_around(tokenizer.backend_tokenizer, before, after, str(place))
        name = tokenizer.init_kwargs["tokenizer_class"]
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
        tokenizer.init_kwargs["tokenizer_class"] = name
        gguf_tokenizer.check_ids(file, tokenizer, str(place))
        return _with_decoder(tokenizer) if not model else _by_sentencepiece(model, tokenizer, place)


def _cut(backend: Any, way: gguf_tokenizer.Way) -> None:
    """Have texts cut and merged in a way that transformers may not know."""
    if not way.known:
        as_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        alone = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([alone, as_gpt2]) if way.digits else as_gpt2
    backend.model.ignore_merges = way.whole


def _files(folder: Path) -> list[Path]:
    files = sorted({file for pattern in _FILES for file in folder.glob(pattern) if file.is_file()})
    if not files:
        raise CheckpointError(
            f"{folder} has no tokenizer: none of {', '.join(_FILES)}; add the tokenizer's files", "load_failed"
        )
    return files


def _has_vocabulary(folder: Path) -> bool:
    return any(file.is_file() for pattern in VOCABULARIES for file in folder.glob(pattern))


def _settings(folder: Path) -> Mapping[str, Any]:
    """tokenizer_config.json, and special tokens that older checkpoints keep in a file of their own."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", _CONFIG):
        if (folder / name).is_file():
            read = parsed((folder / name).read_bytes())
            if not isinstance(read, dict):
                raise ValueError(f"{name} is no JSON object")
            found |= read
    return found


def _from_pipeline(file: Path, settings: Mapping[str, Any]) -> Any:
    backend = Tokenizer.from_file(str(file))
    # Its pad token would be made a special one, at which words are split. Dropout is for training: ids at random.
    backend.no_padding()
    backend.no_truncation()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
        logger.warning("tokenizer: the dropout of %s is left out, which is for training", PIPELINE)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    asked = {name: token for name in ("bos", "eos") if (token := _content(settings.get(f"{name}_token")))}
    front, back = around(tokenizer)
    has = {"bos": asked.get("bos") in front, "eos": asked.get("eos") in back}
    wants = {name: settings.get(f"add_{name}_token") for name in asked}
    changed = [name for name, wanted in wants.items() if isinstance(wanted, bool) and wanted != has[name]]
    if changed:
        words = "tokenizer: %s of %s holds, where %s does otherwise"
        logger.warning(words, " and ".join(f"add_{each}_token={wants[each]}" for each in changed), _CONFIG, PIPELINE)
        kept = {"bos": [each for each in front if each != asked.get("bos")]}
        kept["eos"] = [each for each in back if each != asked.get("eos")]
        wanted = {name: wants[name] if name in changed else has[name] for name in asked}
        before = [asked["bos"], *kept["bos"]] if wanted.get("bos") else kept["bos"] if "bos" in asked else [*front]
        after = [*kept["eos"], asked["eos"]] if wanted.get("eos") else kept["eos"] if "eos" in asked else [*back]
        _put_around(backend, before, after)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.init_kwargs["tokenizer_class"] = str(settings.get("tokenizer_class") or type(tokenizer).__name__)
    tokenizer.init_kwargs[LACKING] = _lacking(backend, file.parent, settings)
    return tokenizer


def _lacking(backend: Any, folder: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Tokens that other files of the folder add, and the pipeline does not have: their ids are not certain."""
    added = parsed((folder / _ADDED).read_bytes()) if (folder / _ADDED).is_file() else {}
    decoder = settings.get("added_tokens_decoder")
    named = [*(added if isinstance(added, dict) else ())]
    named += [_content(each) for each in (decoder.values() if isinstance(decoder, dict) else ())]
    return tuple(dict.fromkeys(each for each in named if each and backend.token_to_id(each) is None))


def _put_around(backend: Any, before: list[str], after: list[str], where: str = _CONFIG) -> None:
    """Have these tokens before and behind each text, and no others."""
    ids = {token: backend.token_to_id(token) for token in (*before, *after)}
    if unknown := [token for token, number in ids.items() if number is None]:
        raise CheckpointError(f"{where} asks for {unknown[0]!r} around texts; the vocabulary lacks it", "load_failed")
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=None, special_tokens=list(ids.items())
    )


def _named_class(folder: Path, settings: Mapping[str, Any]) -> Any:
    """The tokenizer of the class that the config names; transformers goes by the kind of the model first."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    wanted = str(settings.get("tokenizer_class") or type(tokenizer).__name__)
    general = ("PreTrainedTokenizer", "TokenizersBackend", type(tokenizer).__name__.removesuffix("Fast"))
    if "auto_map" in settings or wanted.removesuffix("Fast") in general:
        return tokenizer
    kind: Any = getattr(transformers, wanted, None)
    if not hasattr(kind, "vocab_files_names"):  # a class of tokenizers
        raise CheckpointError(
            f"{folder} names the tokenizer {wanted!r} in its {_CONFIG}, which transformers {transformers.__version__} "
            f"does not know, and has no {PIPELINE}: add the {PIPELINE} that the model was trained with",
            "load_failed",
        )
    made: Any = kind.from_pretrained(folder, local_files_only=True)
    return made


def _content(token: Any) -> str | None:
    """Words of a special token as tokenizer_config.json has it: a string, or an object with flags."""
    return token if isinstance(token, str) else token.get("content") if isinstance(token, dict) else None


def _with_decoder(tokenizer: Any) -> Any:
    """Bytes come back as the text that they are, also where the file does not say so; no id depends on it."""
    backend = tokenizer.backend_tokenizer
    if backend.decoder is None and "ByteLevel" in f"{backend.pre_tokenizer!r} {backend.normalizer!r}":
        backend.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_model(folder: Path) -> Path | None:
    """The SentencePiece model that is all there is of a tokenizer."""
    if any(file.is_file() for name in (PIPELINE, "vocab*", "tekken*", "*.tiktoken") for file in folder.glob(name)):
        return None
    models = sorted(file for name in ("*.model", "*.spm") for file in folder.glob(name) if file.is_file())
    # a protocol buffer; others are lines of text, which are tiktoken's
    models = [file for file in models if file.read_bytes()[:1] == b"\n"]
    return models[0] if models else None


def _by_sentencepiece(model: bytes, tokenizer: Any, folder: Path) -> Any:
    """The tokenizer that transformers makes of a SentencePiece model, or SentencePiece itself where their ids differ.

    Raises CheckpointError (load_failed): transformers gives its pieces other ids, as for models that count in another
    way than their SentencePiece model does.
    """
    own = SentencePieceTokenizer(model, tokenizer)
    known = tokenizer.get_vocab()
    if moved := [piece for number, piece in own.pieces() if known.get(piece) != number]:
        raise CheckpointError(
            f"{folder}: transformers makes {named(tokenizer)} of its SentencePiece model, and {len(moved):,} of the "
            f"pieces have other ids there, {moved[0]!r} first: add the {PIPELINE} that the model was trained with",
            "load_failed",
        )
    same = all(own(text)["input_ids"] == list(tokenizer(text)["input_ids"]) for text in _PROBES)
    return tokenizer if same else own


class SentencePieceTokenizer:
    """A SentencePiece model as it stands, called as tokenizers of transformers are.

    ``like`` is what transformers makes of it: the special tokens around a text, and their names, are its own.
    """

    def __init__(self, model: bytes, like: Any):
        from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - few models need it

        self._processor = SentencePieceProcessor(model_proto=model)
        self._like = like
        self._front, self._back = (list(like.convert_tokens_to_ids(list(names))) for names in around(like))
        self.init_kwargs = {"tokenizer_class": named(like)}

    def pieces(self) -> Iterator[tuple[int, str]]:
        """Ids and words of all pieces of texts."""
        made = self._processor
        for number in range(made.get_piece_size()):
            if not (made.is_control(number) or made.is_unused(number) or made.is_unknown(number)):
                yield number, made.id_to_piece(number)

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool = True, **_: object
    ) -> dict[str, list[int] | list[list[int]]]:
        """``input_ids`` of a text, or of each of several."""
        front, back = (self._front, self._back) if add_special_tokens else ([], [])
        if isinstance(text, str):
            return {"input_ids": [*front, *self._processor.encode(text), *back]}
        return {"input_ids": [[*front, *ids, *back] for ids in self._processor.encode(text)]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Names of tokens."""
        return list(self._like.convert_ids_to_tokens(ids))

    def decode(self, ids: list[int], **_: object) -> str:
        """The text that tokens stand for."""
        return str(self._processor.decode(list(ids)))
