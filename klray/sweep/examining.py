"""Whether a worker is fit: its libraries, folders, store, disk and device, before it is given work."""

import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from klray.checkpoints import Cache, Checkpoint
from klray.checkpoints.download import verify
from klray.errors import KlrayError, StoreError
from klray.store.objects import Objects, open_objects, probe
from klray.sweep.replies import DeviceError, Fault, Place, Unfit, WorkerFacts
from klray.words.numbers import duration
from klray.words.secrets import without_secrets

LIBRARIES = ("klray", "torch", "ray", "transformers", "tokenizers")
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL",
               "AWS_ENDPOINT_URL_S3")  # fmt: skip
FOLDERS = 100  # local models that are looked at, at most
TRIAL_BYTES = 1 << 20
SKEW_SECONDS = 60.0  # between the clocks of a worker and the driver, above which it is said
SHARE = "give all nodes one folder under the same path, as by NFS, or set store.url=s3://bucket/prefix"


@dataclass(frozen=True)
class Expected:
    """What the driver has, and a worker must have, too."""

    versions: Mapping[str, str]
    common: tuple[str, bytes]  # key and body of an object in the store
    credentials: tuple[str, ...]  # names of variables that are set for the store
    folders: tuple[Checkpoint, ...]  # local models that are to be scored
    least_bytes: int  # of the smallest checkpoint that is to be fetched
    job: str = ""  # 32 hex digits, which commits name


class UnfitError(Exception):
    """One finding; never leaves the worker."""

    def __init__(self, fault: Fault, found: str, cure: str):
        super().__init__(found)
        self.fault, self.found, self.cure = fault, without_secrets(found), cure


def expected(common: tuple[str, bytes], todo: Iterable[Checkpoint], job: str = "") -> Expected:
    """What workers are held against, as this process has it; ``common`` is that of ``probe.common``."""
    todo = list(todo)
    local = {each.directory: each for each in todo if each.directory}
    return Expected(
        versions=installed(),
        common=common,
        credentials=tuple(name for name in CREDENTIALS if os.environ.get(name)),
        folders=tuple(local.values())[:FOLDERS],
        least_bytes=min((each.bytes for each in todo if not each.directory), default=0),
        job=job,
    )


def installed() -> dict[str, str]:
    """Versions of what must be equal everywhere, without the build: a driver may have PyTorch for CPUs alone."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found


def examine(
    place: Place,
    wanted: Expected,
    url: str,
    objects: Callable[[], Objects],
    cache: Callable[[], Cache],
    device: Callable[[], tuple[str, int]],
) -> WorkerFacts | Unfit:
    """Look at everything in turn; the first that is not fit is replied.

    What is passed opens the objects of the store at ``url``, opens the cache, and tries the device.
    """
    try:
        check_versions(wanted.versions)
        check_folders(wanted.folders)
        check_store(url, objects, wanted)
        room = check_disk(cache, wanted.least_bytes)
        name, memory = check_device(device)
    except UnfitError as unfit:
        return Unfit(place, unfit.fault, unfit.found, unfit.cure)
    return WorkerFacts(place, name, memory, room, time.time())


def here(node: str = "") -> Place:
    """The place of this process."""
    return Place(socket.gethostname(), node, os.getpid())


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raises UnfitError: a library is another one than the driver's."""
    mine = installed()
    other = [f"{name} {mine.get(name)} (the driver has {each})" for name, each in wanted.items() if mine[name] != each]
    if other:
        raise UnfitError("versions", f"other versions: {', '.join(other)}", "install the driver's versions there")


def check_folders(folders: Iterable[Checkpoint]) -> None:
    """Raises UnfitError: a local model is not there, or is another. Weights are hashed when they are scored."""
    for each in folders:
        folder = Path(each.directory)
        for file in each.files:
            path = folder / file.path
            wrong = "" if path.is_file() else f"has no {file.path}" if folder.is_dir() else "is not there"
            if not wrong and (path.stat().st_size != file.size_bytes or (not file.is_weight and verify(path, file))):
                wrong = f"has another {file.path}"
            if wrong:
                cure = "mount the driver's folder there, under the same path"
                raise UnfitError("folder", f"model folder {folder} {wrong}", cure)


def check_store(url: str, objects: Callable[[], Objects], wanted: Expected) -> None:
    """Raises UnfitError: the store at ``url`` is not the driver's, or cannot be read and written."""
    folder = "://" not in url.removeprefix("file://")
    lacking = [name for name in wanted.credentials if not os.environ.get(name)]
    keys = f"the driver has {', '.join(lacking)}: start Ray there with them, or give the nodes a role"
    try:
        if probe.is_common(objects(), *wanted.common):
            return
        found, cure = f"store {url} is another one there than the driver's", "check the endpoint of this node"
    except (StoreError, OSError, ValueError) as error:
        found, cure = probe.found_and_cure(error)
    if folder:
        found = f"store {url} is a folder that this node does not share with the driver"
    raise UnfitError("store", found, SHARE if folder else keys if lacking else cure)


def shares(url: str, common: tuple[str, bytes]) -> tuple[str, bool]:
    """The host's name, and whether the folder at ``url`` is the one where the driver put the object."""
    return socket.gethostname(), open_objects(url).get(common[0]) == common[1]


def clock_fault(clock: float) -> str:
    """What is to be said of a node whose clock showed ``clock`` just now, in seconds since 1970; "" if it is right."""
    skew = abs(clock - time.time())
    return f"is {duration(skew)} off: set it by NTP" if skew > SKEW_SECONDS else ""


def check_disk(cache: Callable[[], Cache], least_bytes: int) -> int:
    """Bytes that the cache may use. Raises UnfitError: less than ``least_bytes``, or nothing can be written."""
    cure = "make room there, or set scoring.cache_dir to a folder on a larger disk"
    try:
        opened = cache()
        with tempfile.TemporaryFile(dir=opened.root) as file:
            file.write(bytes(TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(opened.root).free + opened.bytes
    except (KlrayError, OSError) as error:
        number = getattr(error, "errno", None) or getattr(error.__cause__, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT)
        raise UnfitError("disk", "disk full" if full else str(error), cure) from error
    if free < least_bytes:
        found = f"disk full: {free:,} bytes are free in {opened.root}, the smallest checkpoint takes {least_bytes:,}"
        raise UnfitError("disk", found, cure)
    return min(free, opened.max_bytes)


def check_device(device: Callable[[], tuple[str, int]]) -> tuple[str, int]:
    """Name and memory. Raises UnfitError: PyTorch cannot use the device, or the lens is not the driver's."""
    try:
        return device()
    except DeviceError as error:
        words = str(error)
    except KlrayError as error:
        raise UnfitError("lens", str(error), "mount the driver's lens folder there, under the same path") from error
    except Exception as error:  # noqa: BLE001 - whatever a driver or a library fails with
        words = f"{type(error).__name__}: {error}"
    cure = "install a PyTorch for that node's CUDA driver, or score on CPUs with ray.gpus_per_worker=0"
    raise UnfitError("device", f"the device does not work: {words}", cure)
