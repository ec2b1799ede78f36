"""What the command line sets for its whole process, which a library must not.

Read before PyTorch is loaded, and so free of it.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_USERS_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def spin_briefly() -> None:
    """Let OpenMP's threads sleep soon between two uses, unless the user has decided on it.

    GNU's spin for some 3 ms by default, as long as a step of Atari's simulators takes, on the cores
    that these need. OpenMP reads it when PyTorch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # some 20 us: from kernel to kernel


def keep_freed_memory() -> bool:
    """Keep freed memory for the next iteration, which needs the same again; return whether.

    glibc gives tensors of some MB back to the system when they are freed, and gets them anew page
    by page, zeroed: a seventh of a gradient step of the Nature CNN. It holds for the process and
    cannot be taken back, so it is for programs, not for libraries. Nothing is changed where the
    user has set glibc's own variables, or there is no glibc.
    """
    chosen = any(name in os.environ for name in _USERS_CHOICE)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
