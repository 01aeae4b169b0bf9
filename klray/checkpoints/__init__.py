"""Checkpoints of model families on a hub or in folders: which there are, at which commit, and their files on disk.

``resolve`` turns a ``Selection`` into checkpoints once; a ``Cache`` then fetches, verifies and evicts them by commit,
and a ``Fetcher`` does so ahead of time.
"""

from klray.checkpoints.cache import Cache, Fetcher, larger_than_cache
from klray.checkpoints.checkpoint import Checkpoint, Facts, RemoteFile, Unavailable
from klray.checkpoints.files import CONFIG
from klray.checkpoints.hub import Hub, contact
from klray.checkpoints.local_folder import architecture, check_small_files, model_config
from klray.checkpoints.patience import Patience
from klray.checkpoints.selection import RepositorySpec, Selection, resolve
from klray.words.revisions import step_of
