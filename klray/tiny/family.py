"""The embedded family on disk: trained when missing, kept between runs, laid out as a hub's repositories.

``<cache>/<fingerprint of the recipe>/`` holds ``hub/<organization>/<name>/<revision>/``, the files of each checkpoint
as on the hub. A run, child or merge is complete when its ``complete.json`` is there; an interrupted one is made again
from its first step. Children wait for their parents.
"""

import contextlib
import json
import logging
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

import filelock

from klray.errors import KlrayError
from klray.sweep.processes import module_command, safe_environment
from klray.tiny.family_recipe import DEFAULT, Child, FamilyRecipe, FamilyRun, Merge
from klray.words.progress import Progress

logger = logging.getLogger("klray")

Made = FamilyRun | Child | Merge
_COMPLETE = "complete.json"


def family_root(recipe: FamilyRecipe = DEFAULT, cache_root: Path | None = None) -> Path:
    """Folder of the family's repositories, there or not: ``<root>/<organization>/<name>/<revision>/<files>``.

    Families are kept in ``cache_root``; None takes ``$XDG_CACHE_HOME/klray/embedded``, or ``~/.cache/klray/embedded``.
    """
    if cache_root is None:
        cache_root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "klray" / "embedded"
    return cache_root.absolute() / recipe.fingerprint() / "hub"


def train_family(recipe: FamilyRecipe = DEFAULT, cache_root: Path | None = None, workers: int | None = None) -> Path:
    """Train the models that are missing, and return :func:`family_root`.

    They are trained by processes of one thread each, ``workers`` at the same time; None takes the number of processors
    that this process may use. Of several processes that ask for one family at the same time, one trains it and the
    others wait.

    Raises KlrayError if a training process failed (with its last words), or this Python has no documents to train on;
    OSError that names the family's folder if it takes no files, or is full.
    """
    if workers is not None and workers < 1:
        raise KlrayError(f"workers={workers}: training needs at least one; set workers to 1 or more, or leave it out")
    root = family_root(recipe, cache_root)
    if _missing(recipe, root):
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _only_process(root.parent / "lock"):
                if runs := _missing(recipe, root):
                    _train(recipe, runs, root.parent, min(workers or _processors(), len(runs)))
        except OSError as error:  # of a file that was being written it has no name
            raise OSError(error.errno, error.strerror, error.filename or str(root.parent)) from error
    return root


def _missing(recipe: FamilyRecipe, root: Path) -> list[Made]:
    return [made for made in recipe.all if not (root / made.repository / _COMPLETE).exists()]


def _only_process(path: Path) -> contextlib.AbstractContextManager[object]:
    lock = filelock.FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.info("embedded family: another process is training it, waiting for %s", path)
        return lock.acquire()


def _train(recipe: FamilyRecipe, models: Sequence[Made], folder: Path, workers: int) -> None:
    start = time.monotonic()
    steps = sum(map(recipe.updates, models))
    logger.info(
        "embedded family: training %d of %d models, %d steps in all, %d at a time, into %s",
        len(models), len(recipe.all), steps, workers, folder,
    )  # fmt: skip
    recipe.write(folder)
    with contextlib.ExitStack() as stack:
        jobs = stack.enter_context(_Jobs(folder))
        if not (folder / "texts").exists():
            jobs.tokenize()
        losses = _Losses(stack.enter_context(Progress(steps, "train", "step")), recipe)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(jobs.stop)  # before the pool waits for its threads
        waiting = {made.repository: made for made in models}
        running: dict[Future[None], str] = {}
        try:
            while waiting or running:
                unmade = {*waiting, *running.values()}
                for made in [each for each in waiting.values() if unmade.isdisjoint(each.parents)]:
                    running[pool.submit(jobs.make, made.repository, losses.follow(made))] = made.repository
                    del waiting[made.repository]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    del running[future]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    logger.info("embedded family: trained in %.0f s", time.monotonic() - start)


class _Losses:
    """The progress of all models in one line: the steps done by any of them, and the losses of those at work."""

    def __init__(self, bar: Progress, recipe: FamilyRecipe):
        self._bar = bar
        self._recipe = recipe
        self._lock = threading.Lock()
        self._latest: dict[str, str] = {}

    def follow(self, made: Made) -> Callable[[dict[str, Any]], None]:
        """A function that takes what the model's process says."""
        name = made.repository.partition("/tiny-")[2]
        before = 0

        def take(said: dict[str, Any]) -> None:
            nonlocal before
            with self._lock:
                self._latest[name] = f"{name} {said['loss']:.2f}"
                self._bar.advance(said["step"] - before, "loss " + ", ".join(self._latest.values()))
                before = said["step"]
                if before == self._recipe.updates(made):
                    del self._latest[name]

        return take


class _Jobs:
    """Python modules run as processes: the tokenizer's, and for each thread one that makes models one after another.

    Not multiprocessing: its processes run the user's script again, which then has to be written for that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._lock = threading.Lock()
        self._processes: list[tuple[subprocess.Popen[str], IO[str]]] = []
        self._of_thread = threading.local()
        self._stopped = False

    def __enter__(self) -> "_Jobs":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for process, complaints in self._processes:
            with process, complaints:
                pass  # waits for it

    def tokenize(self) -> None:
        """Make the family's tokenizer and its texts' tokens."""
        started = self._start("klray.tiny.tokenizer")
        if started is not None:
            started[0].communicate()
            if started[0].returncode:
                raise self._failure(*started, "klray.tiny.tokenizer")

    def make(self, repository: str, take: Callable[[dict[str, Any]], None]) -> None:
        """Have the process of this thread make a model, handing what it says to ``take``."""
        started = getattr(self._of_thread, "started", None) or self._start("klray.tiny.training")
        if started is None:
            return
        self._of_thread.started = started
        process, complaints = started
        assert process.stdin and process.stdout
        with contextlib.suppress(OSError):  # of one that has ended, which the end of its output tells
            process.stdin.write(f"{repository}\n")
            process.stdin.flush()
        for line in process.stdout:
            said = json.loads(line)
            if "made" in said:
                return
            take(said)
        process.wait()
        if not self._stopped:
            raise self._failure(process, complaints, "klray.tiny.training", repository)

    def stop(self) -> None:
        """End the processes that still run, and start no more."""
        with self._lock:
            self._stopped = True
            for process, _ in self._processes:
                process.terminate()

    def _start(self, module: str) -> "tuple[subprocess.Popen[str], IO[str]] | None":
        with self._lock:
            if self._stopped:
                return None
            complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see __exit__
            process = subprocess.Popen(  # noqa: S603 (the modules are klray's own)
                module_command(module, self._folder),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, env=_environment(),
            )  # fmt: skip
            self._processes.append((process, complaints))
            return process, complaints

    def _failure(self, process: subprocess.Popen[str], complaints: IO[str], module: str, *words: str) -> KlrayError:
        complaints.seek(0)
        return KlrayError(
            f"training the embedded family failed: {' '.join([module, self._folder, *words])} ended with status "
            f"{process.returncode}: {complaints.read()[-2000:].strip() or 'it said nothing'}\n"
            "Complete runs are kept: start again to train the others."
        )


def _environment() -> dict[str, str]:
    """One thread, no GPU, no network."""
    return {
        **os.environ,
        **safe_environment(),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
