"""The store: a folder or an S3 prefix that many jobs write to at once and analysts read from anywhere.

layout      where everything is
datasets    what plain xarray opens
identity    what determines a column
objects     create, put, get on a folder; s3 the same on S3
probe       whether a place keeps the promises that the store rests on
columns     write, commit, read one checkpoint's column
failures    why a checkpoint has no column
snapshots   gather committed columns into what xarray opens
results     what analyses wrote
audit       what is damaged, what is left over
store       all of it behind one door
"""

from klray.store.columns import Column, Commit
from klray.store.failures import Failure
from klray.store.identity import Identity, unresolved
from klray.store.snapshots import Manifest
from klray.store.store import Store, open_dataset, open_result

__all__ = ["Column", "Commit", "Failure", "Identity", "Manifest", "Store", "open_dataset", "open_result", "unresolved"]
