"""``make bench``: every benchmark, or those that are named."""

from __future__ import annotations

import sys

from tests.benchmarks import all_pairs, machine, publishing, scoring

BENCHMARKS = {"all_pairs": all_pairs.main, "scoring": scoring.main, "publishing": publishing.main}

print(machine.describe(), end="\n\n", flush=True)
for name in sys.argv[1:] or BENCHMARKS:
    print(BENCHMARKS[name](), flush=True)
