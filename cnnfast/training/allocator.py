"""The C library's allocator, set for training: memory that was freed is kept for the next step.

By default glibc returns every large block to the system at once, and the next step's tensors come back as
pages to be cleared one by one: a third of a step of VGG-11 (docs/performance.md).
"""

import ctypes
import platform

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = -1  # as an unsigned number, a threshold beyond all memory


def keep_freed_memory(step: int = 64 << 20) -> bool:
    """Let this process keep the memory that it frees, and take new memory `step` bytes at a time.

    For a program of one's own alone: the setting holds for all of the process and cannot be taken back.

    Returns:
        True where the C library is glibc and took the setting, else False: nothing has changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, step))
    return all([mallopt(name, value) for name, value in settings])
