"""Text sets: the texts on which every model of a store is scored."""

from klray.texts.sources import from_folder, from_jsonl
from klray.texts.stdlib import Document, Split, python_stdlib, stdlib_documents
from klray.texts.textset import TextSet, chunk
