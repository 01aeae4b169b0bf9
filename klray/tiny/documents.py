"""The documents on which the embedded family is trained."""

from __future__ import annotations

import hashlib

from klray.texts import Document, stdlib_documents


def training_documents(bytes_per_domain: int) -> list[Document]:
    """Documents of the training half, at least ``bytes_per_domain`` UTF-8 bytes of each domain or all that it has.

    They come in the order of the SHA-256 of their names, so that a part of the code is not the first letters of the
    alphabet.

    Raises
    ------
    KlrayError
        This Python has no documents to read; see :func:`klray.texts.stdlib_documents`.
    """
    chosen = []
    bytes_of_domain: dict[str, int] = {}
    documents = stdlib_documents("train")
    for document in sorted(documents, key=lambda document: hashlib.sha256(document.name.encode()).digest()):
        taken = bytes_of_domain.get(document.domain, 0)
        if taken < bytes_per_domain:
            bytes_of_domain[document.domain] = taken + len(document.text.encode())
            chosen.append(document)
    return chosen
