"""The values in a safetensors file, looked through without loading it, and the memory that is free. Needs no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from research.models.weights import read_header

_CHUNK = 16 << 20  # bytes
# of the dtypes that numpy does not know: the type of the same size, and the bits that are all set in NaN and infinity
_BITS = {"BF16": ("<u2", 0x7F80), "F8_E5M2": ("u1", 0x7C), "F8_E4M3": ("u1", 0x7F)}
_KNOWN = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def first_not_finite(file: Path) -> str | None:
    """The first tensor of a whole safetensors file with a value that is NaN or infinite."""
    import numpy as np

    for name, tensor in read_header(file).items():
        dtype, bits = _BITS.get(tensor.dtype, (_KNOWN.get(tensor.dtype), 0))
        if dtype is None or not tensor.nbytes:
            continue
        values = np.memmap(file, dtype=np.uint8, mode="r", offset=tensor.start, shape=(tensor.nbytes,))
        for start in range(0, tensor.nbytes, _CHUNK):
            piece = np.frombuffer(values[start : start + _CHUNK].tobytes(), dtype=dtype)
            if bits and ((piece & bits) == bits).any():
                return name
            if not bits and not np.isfinite(piece).all():
                return name
    return None


def free_memory() -> tuple[int | None, int | None]:
    """Bytes of RAM and of the first GPU that are free; None where that cannot be told."""
    ram = None
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                ram = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    if ram is None and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        ram = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch = sys.modules.get("torch")  # not worth importing for this alone
    gpu = int(torch.cuda.mem_get_info()[0]) if torch is not None and torch.cuda.is_available() else None
    return ram, gpu
