"""``make faults``: the fault campaign and its table.

    python -m tests.faults --schedules 10000 --seed 1
    python -m tests.faults machine --schedules 50 --seed 17     # one batch of one kind, as a violation's line says

A campaign of N schedules is cut into batches, each with a seed of its own, counted up from ``--seed``. Batches run in
processes of their own, a few at a time. A batch that finds a violation prints it and the line that runs it again; the
exit status is then 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import io
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from klray.words.tables import text_table
from tests.faults import fleet, machine, network, processes, readers, sharing, verbs
from tests.s3_server import why_no_ceph

Run = Callable[..., collections.Counter[str]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of campaign: its share of N schedules (or a fixed number of runs), and schedules to a batch."""

    run: Run
    place: tuple[Any, ...]  # the server, the library that asks it, and what else the kind is told
    share: float
    batch: int
    runs: int = 0

    def schedules(self, of: int) -> int:
        return self.runs or round(of * self.share)


KINDS = {
    "machine": Kind(machine.run, (), 0.96, 50),
    "network moto": Kind(network.run, ("moto", "s3fs"), 0.01, 50),
    "network ceph": Kind(network.run, ("ceph", "s3fs"), 0.01, 50),
    "network ceph obstore": Kind(network.run, ("ceph", "obstore"), 0.01, 50),
    "readers folder": Kind(readers.run, ("folder",), 0.004, 40),
    "readers moto": Kind(readers.run, ("moto",), 0.003, 30),
    "readers ceph": Kind(readers.run, ("ceph",), 0.003, 30),
    "processes folder": Kind(processes.run, ("folder",), 0, 1, runs=1),
    "processes moto": Kind(processes.run, ("moto",), 0, 1, runs=1),
    "processes ceph": Kind(processes.run, ("ceph",), 0, 1, runs=1),
    "sharing folder": Kind(sharing.run, ("folder",), 0, 1, runs=1),
    "sharing moto": Kind(sharing.run, ("moto",), 0, 1, runs=1),
    "sharing ceph": Kind(sharing.run, ("ceph",), 0, 1, runs=1),
    "sharing ceph slow": Kind(sharing.run, ("ceph", 8.0), 0, 1, runs=1),
    "fleet": Kind(fleet.run, (), 0, 1, runs=1),
    "verbs": Kind(verbs.run, (), 0, 20, runs=20),
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Schedules that run one after the other in one process, and are the same whenever they have the same seed."""

    kind: str
    seed: int
    schedules: int

    @property
    def line(self) -> str:
        return f"python -m tests.faults {self.kind} --schedules {self.schedules} --seed {self.seed}"


def run_batch(batch: Batch) -> tuple[collections.Counter[str], str | None, float]:
    """(what happened how often, the violation or None, seconds)."""
    kind = KINDS[batch.kind]
    began = time.monotonic()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            tally = kind.run(batch.schedules, batch.seed, *kind.place)
    except Exception:  # noqa: BLE001 - whatever it is, the campaign has failed and says so
        return collections.Counter(), printed.getvalue() + traceback.format_exc(), time.monotonic() - began
    return tally, None, time.monotonic() - began


def batches(kinds: list[str], schedules: int, seed: int, *, alone: bool) -> list[Batch]:
    """Batches of the kinds; a kind that is named alone runs all the schedules."""
    found = []
    for name in kinds:
        kind = KINDS[name]
        left = schedules if alone else kind.schedules(schedules)
        while left > 0:
            size = min(left, kind.batch)
            found.append(Batch(name, seed, size))
            seed += size
            left -= size
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.split("\n")[0])
    parser.add_argument("kind", nargs="*", help=f"one of: {', '.join(KINDS)}; all of them by default")
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None, help="of the first batch; drawn from the clock by default")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else time.time_ns() // 1000 % 10**9
    name = " ".join(given.kind)
    kinds = [name] if name in KINDS else [each for each in KINDS if each.startswith(name)]
    if not kinds:
        parser.error(f"there is no kind {name!r}: name one of {', '.join(KINDS)}")
    if why := why_no_ceph():
        print(f"without Ceph: {why}")
        kinds = [each for each in kinds if "ceph" not in KINDS[each].place]
    planned = batches(kinds, given.schedules, seed, alone=name in KINDS)
    print(f"{len(planned)} batches, seeds from {seed}", flush=True)
    return campaign(planned, given.workers)


def campaign(planned: list[Batch], workers: int) -> int:
    """Run the batches and print the table; 1 if there was a violation."""
    tallies: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    violations: collections.Counter[str] = collections.Counter()
    seconds: collections.Counter[str] = collections.Counter()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.machine", "tests.faults.processes"])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(run_batch, batch): batch for batch in planned}
        for done, future in enumerate(as_completed(running), 1):
            batch = running[future]
            tally, violation, took = future.result()
            tallies[batch.kind] += tally
            seconds[batch.kind] += took
            if violation:
                violations[batch.kind] += 1
                print(f"\nVIOLATION\n{violation}\nagain: {batch.line}\n", flush=True)
            elif sys.stdout.isatty() or done % 5 == 0:
                print(f"{done} of {len(planned)} batches, {sum(violations.values())} violations", flush=True)
    print(table(planned, tallies, violations, seconds))
    return 1 if violations else 0


def table(
    planned: list[Batch],
    tallies: dict[str, collections.Counter[str]],
    violations: collections.Counter[str],
    seconds: collections.Counter[str],
) -> str:
    """A line for every kind; below it what was done and injected, by class."""
    rows = []
    for name in dict.fromkeys(batch.kind for batch in planned):
        seeds = [batch.seed for batch in planned if batch.kind == name]
        last = max(batch.seed + batch.schedules - 1 for batch in planned if batch.kind == name)
        schedules = tallies[name]["schedules"]
        rows.append(
            [
                name,
                f"{min(seeds)}-{last}",
                f"{schedules:,}",
                f"{schedules / max(seconds[name], 1e-9):.2f}",
                str(violations[name]),
            ]
        )
    lines = [text_table(["kind", "seeds", "schedules", "per second", "violations"], rows, text_columns=2), ""]
    for name, tally in tallies.items():
        found = ", ".join(f"{count:,} {what}" for what, count in tally.most_common() if what != "schedules")
        lines.append(f"{name}: {found}")
    total = sum(tally["schedules"] for tally in tallies.values())
    lines += ["", f"{total:,} schedules, {sum(violations.values())} violations"]
    return "\n".join(lines)
