"""How the C library treats the memory of CPU tensors that are freed."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h; see mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Keeps the memory of freed CPU tensors in this process, for its next ones.

    glibc gives blocks above 32 MB back to the system at once, and the top of its heap soon; a
    training step that allocates the like again pays for every page anew. On mini-ImageNet's images
    that is over a quarter of a step (``benchmarks/NOTES.md``). The price is memory: the process
    does not shrink below its peak until it ends, and may peak somewhat higher. ``fastmeta train``
    does this; in your own program it is your choice. There is no way back.

    Returns:
        Whether it could be done: on Linux with glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))
