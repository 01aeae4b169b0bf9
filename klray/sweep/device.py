"""Whether a device works: a product that has one right result, in the process that is to have the models."""

import os

import torch

from klray.sweep.replies import DeviceError

_WIDTH = 64


def tried(device: str) -> tuple[str, int]:
    """Name and bytes of memory of ``device``: "cpu", "cuda", or "auto" for every GPU that this process sees.

    Raises DeviceError: PyTorch finds no such device, or what it computes there is wrong.
    """
    if device == "cpu":
        _product("cpu")
        return "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not torch.cuda.is_available():
        raise DeviceError(f"PyTorch {torch.__version__} finds no CUDA device")
    numbers = range(torch.cuda.device_count()) if device == "auto" else [torch.cuda.current_device()]
    for number in numbers:
        _product(f"cuda:{number}")
    found = [torch.cuda.get_device_properties(number) for number in numbers]
    return " + ".join(each.name for each in found), sum(int(each.total_memory) for each in found)


def _product(device: str) -> None:
    ones = torch.ones(_WIDTH, _WIDTH, device=device)
    if (total := float((ones @ ones).sum())) != _WIDTH**3:
        raise DeviceError(f"a product of ones on {device} gave {total:g} in place of {_WIDTH**3}")
