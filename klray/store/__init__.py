"""The store: a folder or an S3 prefix that many jobs write to at once and analysts read from anywhere.

layout      where everything is
identity    what determines a column
zarr_store  Zarr on objects
datasets    groups made in memory; what plain xarray opens
columns     write, commit, read one checkpoint's column
jobs        what running jobs say of themselves
claims      which checkpoints jobs say that they are scoring
records     why a checkpoint has no column, what jobs were asked to score
snapshots   what is published: manifests, LATEST, opening
catalog     the facts about all committed columns
chunks      the log-likelihoods of a snapshot
publishing  gather committed columns into a snapshot
results     what analyses wrote
text_facts  lengths and domains of the texts
root        the claim on a place for one text set
audit       what is damaged, what is left over
store       all of it behind one door
"""

from klray.store.columns import Column, Commit
from klray.store.identity import Identity, unresolved
from klray.store.records import Failure
from klray.store.snapshots import Manifest
from klray.store.store import Store, open_dataset, open_result
