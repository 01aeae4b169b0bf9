"""``make bench``: every benchmark, or those that are named."""

from __future__ import annotations

import sys

from tests.benchmarks import all_pairs, anomalies, lens, machine, overhead, overlap, publishing, scoring, status

BENCHMARKS = {
    each.__name__.rsplit(".", 1)[-1]: each.main
    for each in (all_pairs, scoring, lens, overlap, overhead, publishing, status, anomalies)
}

print(machine.describe(), end="\n\n", flush=True)
for name in sys.argv[1:] or BENCHMARKS:
    print(BENCHMARKS[name](), flush=True)
