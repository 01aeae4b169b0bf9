"""Tests in several processes, which one that has imported and collected all of them forks: ``--processes 3``.

Each takes a file at a time, those with most slow tests first, so that what a file's tests share is made once. Processes
of pytest-xdist would each import and collect everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import pytest

# Whether there is a GPU is asked in the first process, and would keep CUDA from all that it forks.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processes", type=int, default=1, help="run the tests in so many processes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    config = session.config
    if config.option.processes == 1 or config.option.collectonly or session.testsfailed or not session.items:
        return None  # pytest's own loop
    config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one folder for all
    files = by_file(session.items)
    queue, fill = os.pipe()
    os.write(fill, bytes(range(len(files))))
    os.close(fill)
    reports: dict[Connection, int] = {}
    for _ in range(config.option.processes):
        ours, theirs = Pipe(duplex=False)
        child = os.fork()
        if not child:
            ours.close()
            in_this_process(config, theirs)
            run(session, (item for (number,) in iter(lambda: os.read(queue, 1), b"") for item in files[number]))
            return True
        theirs.close()
        reports[ours] = child
    tell(session, reports)
    return True


def by_file(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def length(tests: list[pytest.Item]) -> tuple[int, int]:
        return sum(item.get_closest_marker("slow") is not None for item in tests), len(tests)

    return sorted(files.values(), key=length, reverse=True)


def in_this_process(config: pytest.Config, reports: Connection) -> None:
    """The process tells what it finds and prints nothing."""
    manager = config.pluginmanager
    manager.unregister(name="terminalreporter")
    manager.register(Telling(config, reports))
    config.workerinput = {}  # type: ignore[attr-defined]  # as pytest-xdist does: pytest's cache is the first one's
    capture: Any = manager.getplugin("capturemanager")
    capture.stop_global_capturing()  # its file is the first process's
    capture.start_global_capturing()


class Telling:
    def __init__(self, config: pytest.Config, reports: Connection):
        self.config, self.reports = config, reports

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.reports.send(("pytest_runtest_logstart", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self.reports.send(("pytest_runtest_logfinish", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.reports.send(("pytest_runtest_logreport", {"report": told}))


def run(session: pytest.Session, items: Iterator[pytest.Item]) -> None:
    item = next(items, None)
    while item is not None and not (session.shouldfail or session.shouldstop):
        after = next(items, None)
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        item = after


def tell(session: pytest.Session, reports: dict[Connection, int]) -> None:
    """What the processes find, as if it were found here; a test in which a process ends has failed."""
    hook, started, finished = session.config.hook, dict[Connection, dict[str, Any]](), 0
    while reports:
        for each in wait(list(reports)):
            assert isinstance(each, Connection)
            try:
                name, said = each.recv()
            except EOFError:
                _, status = os.waitpid(reports.pop(each), 0)
                if test := started.pop(each, None):
                    why = f"the process of this test ended: {os.waitstatus_to_exitcode(status)}"
                    died = pytest.TestReport(**test, keywords={}, outcome="failed", longrepr=why, when="call")
                    hook.pytest_runtest_logreport(report=died)
                continue
            if name == "pytest_runtest_logreport":
                said["report"] = hook.pytest_report_from_serializable(config=session.config, data=said["report"])
            elif name == "pytest_runtest_logstart":
                started[each] = said
            else:
                finished += 1
                del started[each]
            getattr(hook, name)(**said)
    if finished < len(session.items) and not session.shouldstop:
        session.shouldfail = session.shouldfail or f"{len(session.items) - finished} tests did not run"
        raise session.Failed(session.shouldfail)
