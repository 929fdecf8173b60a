"""What a process can say about the machine under it."""

from __future__ import annotations

import resource
import sys


def memory_bytes() -> int:
    """Peak memory of this process so far: on the GPU if there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name() -> str:
    """Name of the device that trains."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def device_memory() -> int:
    """Bytes of that device: all of a GPU's memory, or what this machine has free."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return int(psutil.virtual_memory().available)
