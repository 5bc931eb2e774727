"""The heap of `pam_node`, by glibc: one for all threads, set on import, before libraries start threads.

`trim` gives its holes back to the system.

glibc gives threads heaps of their own, up to eight for each core, and each keeps its holes: the process grew
while images changed their size and clients came and went. One heap has fewer holes and grows less.

Large blocks return to the system as soon as they are freed. glibc raises the limit for them to 32 MiB once a
process frees larger ones; the growing caches of text generation then fragment the heap, and the process grows
for minutes. Images stay below the limit: to map and unmap their memory took as long as all else that is
done with an image.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

TRIM_S = 30.0  # between two calls of `trim`, seconds
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of malloc.h
_LARGE_BLOCK_BYTES = 8 * 1024 * 1024  # more than an image of 1920 x 1080

_libc: ctypes.CDLL | None = None
with suppress(OSError, AttributeError):  # another libc: nothing changes
    _libc = ctypes.CDLL("libc.so.6")
    _libc.mallopt(_M_ARENA_MAX, 1)
    _libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def trim() -> None:
    """Gives free pages back to the system; other threads that allocate wait, 20 to 50 ms for 400 MiB.

    Holes accumulate: after half an hour of `pam soak --hostile` a call returned 91 of 521 MiB.
    """
    if _libc is not None:
        _libc.malloc_trim(0)
