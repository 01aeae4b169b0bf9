"""Jobs: one short entry per verb of the command line."""

import os
import sys
from pathlib import Path

# ``python -m jobs.VERB`` has put the working directory on the path, where any file could stand in for a module of a
# library; not if this very package is there, which then is found in no other way.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and Path(__file__).resolve().parents[1] != Path.cwd():
    sys.path[:] = [each for each in sys.path if each not in ("", os.getcwd())]  # noqa: PTH109 - as Python writes it
