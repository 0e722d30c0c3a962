"""Memory that a virtual machine's host does not take away between two runs, so that all runs find the same.

A host that is told which pages are free (virtio-balloon's reporting) takes them back within seconds, and has to find
new ones when they are written: that took three times as long as all else that a conversion does, for whichever program
came to such pages. Told are blocks of 2 MiB and more. So a process (this file, run as a program) writes all pages once,
and keeps one in every MiB for as long as it lives.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 1 << 20
SPARE = 1 << 30
"""Bytes of free memory that are left alone, for whoever else needs some meanwhile."""


@contextmanager
def warm_memory() -> Iterator[None]:
    """Keep memory warm meanwhile."""
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def keep_warm(size: int) -> mmap.mmap:
    """Memory with ``size`` bytes of free pages in it that are not told of."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    for start in range(0, size, mmap.PAGESIZE):
        pages[start] = 1
    for start in range(0, size, MIB):
        pages.madvise(mmap.MADV_DONTNEED, start + mmap.PAGESIZE, MIB - mmap.PAGESIZE)
    return pages


def free_memory() -> int:
    """Bytes of memory that nobody has: where what the programs write goes first."""
    with open("/proc/meminfo") as stream:
        found = {name: value for name, _colon, value in (line.partition(":") for line in stream)}
    return int(found["MemFree"].split()[0]) << 10


if __name__ == "__main__":
    kept = keep_warm(max(free_memory() - SPARE, MIB) // MIB * MIB)
    print(flush=True)
    sys.stdin.read()
