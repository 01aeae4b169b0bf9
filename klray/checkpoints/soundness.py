"""Whether a file of a checkpoint is what its name says: bounded looks, so that a stranger's file costs little."""

import re
import zipfile
from pathlib import Path

from klray.checkpoints.gguf import gguf_fault
from klray.words.outside import contents, parsed

CONFIG_BYTES = 1 << 24  # of a JSON file beside the weights that is no list of tokens or tensors; most have a few kB
_JSON_BYTES = 1 << 28  # of one that is: the largest tokenizer.json have some 30 MB
_LISTS = ("tokenizer.json", "vocab.json", "tekken.json")
_HEADER_BYTES = 100_000_000  # as safetensors itself allows
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


def instead(head: bytes) -> str:
    """What a file's first bytes say that stands in its place, and what to do; "" when it may be itself."""
    if head.startswith(_POINTER):
        return "is a Git LFS pointer in place of the file: run git lfs pull in its repository, or download it again"
    if _PAGE.match(head):
        return "is a web page in place of the file: download it again, with a token if it is not public"
    return ""


def fault_of(path: Path) -> str:
    """What is wrong with one file; "" when it looks like what its name says."""
    with path.open("rb") as stream:
        head = stream.read(1024)
    if why := instead(head):
        return why
    if not head and path.suffix in (".json", ".safetensors", ".bin"):
        return "is empty: download it again"
    if path.suffix == ".json":
        try:
            found = parsed(contents(path, _JSON_BYTES if path.name in _LISTS else CONFIG_BYTES).decode())
        except ValueError as error:
            return f"cannot be read as JSON ({error}): download it again, or take it from another revision"
        if not isinstance(found, dict):
            return "is JSON, but no object: take it from another revision"
        if path.name.endswith(".index.json") and "metadata" not in found:
            return 'has no "metadata", without which transformers does not read it: add "metadata": {}'
        no_tokenizer = path.name == "tokenizer.json" and "model" not in found
        return "is no tokenizer, it has no model: take it from another revision" if no_tokenizer else ""
    if path.suffix == ".safetensors":
        return header_fault(path)
    if path.suffix == ".gguf":
        return gguf_fault(path)
    if path.suffix == ".bin" and not head.startswith((b"PK\x03\x04", b"\x80")):
        return "is no file of torch.save: download it again"
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "is not whole, its end is missing: download it again"
    return ""


def header_fault(path: Path) -> str:
    """What a safetensors file's header says that the file does not hold; "" when they agree."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_HEADER_BYTES, size - 8):
            return f"is no whole safetensors file: its header is said to have {length:,} bytes, the file has {size:,}"
        body = stream.read(length)
    try:
        header = parsed(body)
        spans = sorted(tuple(map(int, each["data_offsets"])) for name, each in header.items() if name != "__metadata__")
        end = 0
        for start, stop in spans:
            if start != end or stop < start:
                return f"is no safetensors file: its tensors overlap or leave gaps at byte {start:,}; save it again"
            end = stop
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"is no safetensors file: its header cannot be read ({type(error).__name__}: {error})"
    if 8 + length + end != size:
        return f"is not whole: by its header it has {8 + length + end:,} bytes, it has {size:,}: download it again"
    return ""
