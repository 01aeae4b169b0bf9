"""Pickles of tensors: looked through before they are read, so that a small file cannot unfold to a large memory.

PyTorch's ``weights_only`` lets no pickle run code. It does let one call what allocates: text that is encoded again and
again, tensors of a size that is only named, views of one number in a shape of any size.
"""

import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO

import torch

_ZIP = b"PK\x03\x04"
_SCRIPT_BYTES = 1 << 24  # a pickle of 20,000 tensors has 2 MB, without their numbers
_SHARED = 64  # tied tensors are stored once: bytes of all by bytes of the file, at most

# What rebuilds a dictionary of dense tensors, by module and name.
_REBUILDS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v[23])?|parameter)|torch\.nn\.parameter Parameter"
    r"|torch\.serialization _get_layout|torch\.storage (Unt|T)ypedStorage|torch (Size|device|\w+Storage)"
    r"|torch (bool|b?float\w+|u?int\d+)"
)
_PICKLES_OF_OLD = 5  # magic number, protocol, machine, tensors, keys of their numbers: the format before PyTorch 1.6


def read_pickled(file: Path) -> dict[str, torch.Tensor]:
    """Dense tensors by name that ``torch.save`` wrote, mapped from the file where its format can be: not before
    PyTorch 1.6, which wrote no zip file.

    Raises pickle.UnpicklingError if the file holds anything else, or more than its bytes can.
    """
    with file.open("rb") as stream:
        zipped = stream.read(len(_ZIP)) == _ZIP
        stream.seek(0)
        if zipped:
            _look_through(_script(file.name, stream), file.name)
        else:
            for _ in range(_PICKLES_OF_OLD):
                _look_through(stream, file.name)
    found = torch.load(file, map_location="cpu", mmap=zipped, weights_only=True)
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise pickle.UnpicklingError(f"{file.name} is no dictionary of tensors by name")
    _check_bytes(found, file)
    return found


def _script(name: str, stream: IO[bytes]) -> IO[bytes]:
    """The pickle inside a zip file, whose entries are stored as they are: PyTorch compresses none."""
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            scripts = [each for each in entries if each.filename.endswith("/data.pkl")]
            if len(scripts) != 1 or any(each.compress_type != zipfile.ZIP_STORED for each in entries):
                raise pickle.UnpicklingError(f"{name} is no zip file as PyTorch writes it, one pickle, not compressed")
            if scripts[0].file_size > _SCRIPT_BYTES:
                raise pickle.UnpicklingError(_long(name))
            return io.BytesIO(archive.read(scripts[0]))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"{name} is a zip file that is cut or damaged: {error}") from error


def _look_through(stream: IO[bytes], name: str) -> None:
    """Refuse what calls anything but ``_REBUILDS``; the stream stands behind the pickle then."""
    end = stream.tell() + _SCRIPT_BYTES
    try:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                raise pickle.UnpicklingError(f"{name} builds objects ({operation.name})")
            if operation.name == "GLOBAL" and not _REBUILDS.fullmatch(str(argument)):
                raise pickle.UnpicklingError(f"{name} calls {argument}")
            if stream.tell() > end:
                raise pickle.UnpicklingError(_long(name))
    except (ValueError, EOFError, UnicodeError) as error:
        raise ValueError(f"{name} is no pickle of tensors: {error}") from error


def _long(name: str) -> str:
    return f"{name} has a pickle of over {_SCRIPT_BYTES >> 20} MB beside its numbers"


def _check_bytes(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Refuse tensors that claim more numbers than are stored."""
    size = file.stat().st_size
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise pickle.UnpicklingError(
                f"{name} in {file.name} claims the shape {tuple(tensor.shape)}, of which {tensor.dtype} takes "
                f"{tensor.nbytes:,} bytes, and {tensor.untyped_storage().nbytes():,} are stored"
            )
    claimed = max(sum(storages.values()), sum(tensor.nbytes for tensor in tensors.values()) // _SHARED)
    if claimed > size:
        raise pickle.UnpicklingError(f"the tensors in {file.name} claim {claimed:,} bytes, and it has {size:,}")
