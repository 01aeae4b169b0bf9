"""A snapshot on the texts of one domain: another text set as far as every analysis is concerned."""

import re

import numpy as np
import xarray as xr

from klray.errors import KlrayError
from klray.words.numbers import counted


def of_domain(dataset: xr.Dataset, domain: str) -> xr.Dataset:
    """The snapshot on the texts with this domain label; "" gives it back as it is.

    Its ``text_set`` is the snapshot's with the domain behind it, so that a recipe or a result of other texts never
    passes for one of these. KlrayError: there is no such domain, or it has fewer than 2 texts.
    """
    if not domain:
        return dataset
    labels = np.array([str(label) for label in dataset["domain"].values])
    chosen = np.flatnonzero(labels == domain)
    if len(chosen) < 2:
        there = ", ".join(
            f"{name or '(none)'} ({counted((labels == name).sum(), 'text')})" for name in np.unique(labels)
        )
        raise KlrayError(
            f"domain {domain!r} was asked for and has {counted(len(chosen), 'text')}, at least 2 are needed: choose "
            f"one of {there}"
        )
    restricted = dataset.isel(text=chosen)
    restricted.attrs = {
        **dataset.attrs,
        "domain": domain,
        "text_set": f"{dataset.attrs.get('text_set', '')}:{domain}",
        "text_set_name": f"{dataset.attrs.get('text_set_name', '')} ({domain})".strip(),
    }
    return restricted


def result_name(name: str, domain: str) -> str:
    """Name of an analysis on one domain: ``trajectory-prose``; characters that a name cannot have become "_"."""
    return f"{name}-{re.sub(r'[^A-Za-z0-9._-]', '_', domain)}" if domain else name
