"""``make bench``: every benchmark, or those that are named."""

from __future__ import annotations

import sys

from tests.benchmarks import (
    adopting,
    all_pairs,
    anomalies,
    driver,
    lens,
    machine,
    overhead,
    overlap,
    pauses,
    publishing,
    report,
    resolving,
    scoring,
    status,
    token_kl,
)

BENCHMARKS = {
    each.__name__.rsplit(".", 1)[-1]: each.main
    for each in (
        *(
            all_pairs,
            scoring,
            lens,
            token_kl,
            overlap,
            overhead,
            driver,
            pauses,
            resolving,
            publishing,
            adopting,
            status,
            anomalies,
            report,
        ),
    )
}

USAGE = f"python -m tests.benchmarks [NAME ...]: all benchmarks, or those of {', '.join(BENCHMARKS)}"


def main(names: list[str]) -> int:
    """Exit code 0; 2 if a benchmark was named that does not exist, before any is run."""
    if {"-h", "--help"} & set(names):
        print(USAGE)
        return 0
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"there is no benchmark {', '.join(unknown)}: {USAGE}", file=sys.stderr)
        return 2
    print(machine.describe(), end="\n\n", flush=True)
    for name in names or BENCHMARKS:
        print(BENCHMARKS[name](), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
