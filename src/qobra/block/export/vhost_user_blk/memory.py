"""The front end's memory, mapped: what guest and front-end addresses mean here."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from qobra.block.export.vhost_user_blk import protocol as vu
from qobra.block.export.vhost_user_blk.guard import SharedMemory, share
from qobra.errors import QobraError


class Region(NamedTuple):
    """A run of memory: ``size`` bytes at ``guest`` for the guest and at ``user`` for the front end."""

    guest: int
    size: int
    user: int
    view: memoryview
    mapping: SharedMemory


class Memory:
    """All regions. Replaced as a whole, so that whoever works with one sees a consistent state."""

    def __init__(self, regions: tuple[Region, ...] = ()) -> None:
        self._regions = regions

    def guest(self, address: int, length: int) -> memoryview:
        """``length`` bytes at a guest address. Raises QobraError where they are not all in one region."""
        for region in self._regions:
            start = address - region.guest
            if start >= 0 and start + length <= region.size:
                return region.view[start : start + length]
        raise QobraError(f"vhost-user: no memory at guest address 0x{address:x}", errno=errno.EFAULT)

    def user(self, address: int, length: int) -> memoryview:
        """``length`` bytes at an address of the front end's."""
        for region in self._regions:
            start = address - region.user
            if start >= 0 and start + length <= region.size:
                return region.view[start : start + length]
        raise QobraError(f"vhost-user: no memory at address 0x{address:x}", errno=errno.EFAULT)

    def check(self) -> None:
        """Raise QobraError where a file became too short: what was read since may be zeroes, and is not to be used."""
        for region in self._regions:
            if region.mapping.lost:
                raise QobraError("vhost-user: memory that is not there any more", errno=errno.EFAULT)

    def plus(self, region: Region) -> Memory:
        """With one more region. Raises QobraError where it overlaps another, or there are too many."""
        if len(self._regions) >= vu.MAX_REGIONS:
            raise QobraError("vhost-user: too many memory regions", errno=errno.EPROTO)
        for other in self._regions:
            if region.guest < other.guest + other.size and other.guest < region.guest + region.size:
                raise QobraError("vhost-user: memory regions overlap", errno=errno.EPROTO)
        return Memory((*self._regions, region))

    def minus(self, guest: int, size: int, user: int) -> Memory:
        """Without that region. Raises QobraError where it is not there."""
        left = tuple(each for each in self._regions if (each.guest, each.size, each.user) != (guest, size, user))
        if len(left) == len(self._regions):
            raise QobraError("vhost-user: no such memory region", errno=errno.EPROTO)
        return Memory(left)


def map_region(fd: int, guest: int, size: int, user: int, offset: int) -> Region:
    """Map ``size`` bytes at ``offset`` of ``fd``, which stays the caller's. Raises QobraError."""
    if not size or guest + size > 1 << 64 or user + size > 1 << 64:
        raise QobraError("vhost-user: malformed memory region", errno=errno.EPROTO)
    try:
        if offset + size > os.fstat(fd).st_size:
            raise QobraError("vhost-user: memory region beyond the end of its file", errno=errno.EPROTO)
        # mmap wants whole pages to skip, of a size that huge page files alone know; so map from the beginning.
        mapping = share(fd, offset + size)
    except (OSError, ValueError, OverflowError) as error:
        raise QobraError(f"vhost-user: memory region cannot be mapped: {error}", errno=errno.EINVAL)
    return Region(guest, size, user, memoryview(mapping)[offset : offset + size], mapping)
