"""Scoring a model while it is trained: a function for any training loop, and a callback for transformers' Trainer.

The callback is ``klray.KlrayCallback``, in ``klray.watch.callback``, which needs transformers' trainer.
"""

from klray.watch.recording import Recorded, Run, record
from klray.watch.watching import Watch
