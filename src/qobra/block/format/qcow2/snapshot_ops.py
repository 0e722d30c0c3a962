"""Taking, applying and deleting internal snapshots. The node is drained while this runs.

A snapshot is a copy of the L1 table; all that it refers to is counted once more, so that a write copies it. In images
of version 3 the dirty bit is set meanwhile: counts and COPIED flags lie in different places and cannot change as one,
so whoever opens the image for writing after a crash counts anew.
"""

from __future__ import annotations

import errno
import time
from array import array

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.resize import grow_l1
from qobra.block.format.qcow2.sharing import (
    References,
    all_or_doubtful,
    change_counts,
    clear_copied,
    discard_free,
    set_copied,
)
from qobra.block.format.qcow2.snapshots import Snapshot, read_l1, read_l1_or_report
from qobra.block.format.qcow2.writeback import words_to_bytes
from qobra.errors import QobraError
from qobra.lean import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.image import Image
    from qobra.block.format.qcow2.node import Qcow2Node


@contextmanager
def _changing(node: Qcow2Node) -> Iterator[tuple[Image, Callable[[], None]]]:
    """The image, which is being marked dirty, and what waits until it is: to be called before anything is changed.

    What has to be read of the tables can be read meanwhile: at 100 GiB that takes as long as the disk does.
    """
    image = node.image
    if node.read_only:
        raise QobraError("Image is read-only", errno=errno.EACCES)
    check_inside(image)
    image.check_usable()
    node.get_ready()
    image.writeback.settle()
    marked = image.header.version >= 3 and not image.header.incompatible & layout.DIRTY
    wait = image.writeback.begin_marking_dirty() if marked else _wait_for_nothing
    try:
        yield image, wait
    finally:
        wait()
        image.overlap.rebuild()
        node.moved(0, max(node.length, 1))
    image.writeback.settle()
    image.writeback.barrier()
    if marked and not node.lazy_refcounts:
        image.writeback.set_incompatible(layout.DIRTY, clear=True)


def _wait_for_nothing() -> None:
    pass


def check_inside(image: Image) -> None:
    """See that the data of ``image`` is its own, so that snapshots may share it. Raises QobraError (ENOTSUP)."""
    if image.external:
        raise QobraError("Snapshots are not supported with an external data file", errno=errno.ENOTSUP)


def find(node: Qcow2Node, id: str | None, name: str | None = None) -> Snapshot:
    """The snapshot with that id and name, as far as they are given. Raises QobraError (ENOENT)."""
    for each in node.snapshots.entries:
        if (id is None or each.id == id) and (name is None or each.name == name):
            return each
    raise QobraError("Can't find the snapshot", errno=errno.ENOENT)


def find_any(node: Qcow2Node, text: str) -> Snapshot:
    """The snapshot with the id ``text``, or else with that name."""
    try:
        return find(node, text)
    except QobraError:
        return find(node, None, text)


def create(
    node: Qcow2Node,
    name: str,
    *,
    vm_state_size: int = 0,
    vm_clock: int = 0,
    icount: int | None = None,
    now_ns: int | None = None,
) -> Snapshot:
    """Take a snapshot called ``name``; its id is the next free number. Raises QobraError."""
    now_ns = time.time_ns() if now_ns is None else now_ns
    if len(node.snapshots.entries) >= layout.MAX_SNAPSHOTS:
        raise QobraError("Too many snapshots", errno=errno.EFBIG)
    numbers = [int(each.id) for each in node.snapshots.entries if each.id.isascii() and each.id.isdigit()]
    snapshot = Snapshot(str(max(numbers, default=0) + 1), name)
    snapshot.seconds, snapshot.nanoseconds = divmod(now_ns, 1_000_000_000)
    snapshot.vm_clock, snapshot.vm_state_size = vm_clock, vm_state_size
    snapshot.disk_size, snapshot.icount = node.length, icount
    with _changing(node) as (image, wait_for_mark):
        l1 = image.tables.l1
        references = References(image, l1)
        wait_for_mark()
        entries = [*node.snapshots.entries, snapshot]
        snapshot.l1_entries = len(l1)
        sizes = len(l1) * 8, len(_packed(entries))
        snapshot.l1_offset, table = _allocate_for(image, sizes, references)
        copy = array("Q", [entry & ~layout.COPIED for entry in l1])
        with all_or_doubtful(image):
            _write_whole(image, snapshot.l1_offset, words_to_bytes(copy))
            clear_copied(image, l1)
            image.file.write(image.header.l1_offset, words_to_bytes(l1))
            _write_table(node, entries, table)
    if vm_state_size:
        # It belongs to the snapshot alone from here on.
        node.forget_vm_state()
    return snapshot


def delete(node: Qcow2Node, snapshot: Snapshot) -> None:
    """Remove a snapshot and free what only it used."""
    with _changing(node) as (image, wait_for_mark):
        l1 = read_l1(image, snapshot)
        references = References(image, l1)
        wait_for_mark()
        with all_or_doubtful(image):
            _write_table(node, [each for each in node.snapshots.entries if each is not snapshot])
            change_counts(image, references, -1)
            image.free(snapshot.l1_offset, -(-len(l1) * 8 // image.cluster_size) * image.cluster_size)
            set_copied(image, image.tables.l1)
            image.file.write(image.header.l1_offset, words_to_bytes(image.tables.l1))
        if node.pass_discard_snapshot:
            discard_free(image, references)


def apply(node: Qcow2Node, snapshot: Snapshot) -> None:
    """Let the disk be what it was when ``snapshot`` was taken; what was written since is lost."""
    read_l1_or_report(node.image, snapshot)  # before anything is changed
    if snapshot.disk_size != node.length:
        node.truncate(snapshot.disk_size)
    grow_l1(node.image, snapshot.l1_entries)
    with _changing(node) as (image, wait_for_mark):
        new = read_l1(image, snapshot)
        old = image.tables.l1
        old_references = References(image, old)
        references = References(image, new)
        wait_for_mark()
        new = array("Q", [entry & ~layout.COPIED for entry in new])
        new.frombytes(bytes(8 * (len(old) - len(new))))
        (offset,) = _allocate_for(image, (len(new) * 8,), references)
        with all_or_doubtful(image):
            image.writeback.commit(durable=False)
            clear_copied(image, new)
            _write_whole(image, offset, words_to_bytes(new))
            image.writeback.barrier()
            header = image.header
            old_offset, header.l1_offset = header.l1_offset, offset
            try:
                image.writeback.write_header()
            except BaseException:
                header.l1_offset = old_offset
                raise
            image.tables.l1 = new
            image.tables.drop()
            change_counts(image, old_references, -1)
        if old_offset:
            image.free(old_offset, -(-len(old) * 8 // image.cluster_size) * image.cluster_size)
    node.forget_computed()
    node.written(0, node.length)


def load(node: Qcow2Node, snapshot: Snapshot) -> None:
    """Show, on a read-only node, what ``snapshot`` holds instead of the disk's present state."""
    if not node.read_only:
        raise QobraError("Device is not readonly", errno=errno.EINVAL)
    image = node.image
    l1 = read_l1(image, snapshot)
    with image.lock:
        missing = image.header.l1_entries - len(l1)
        if missing > 0:
            l1.frombytes(bytes(8 * missing))
        image.tables.l1 = l1
        image.tables.drop()
    node.moved(0, max(node.length, 1))


def _allocate_for(image: Image, sizes: Iterable[int], references: References) -> list[int]:
    """New places of these sizes, and one more reference to each cluster of ``references``: all of it, or nothing."""
    places: list[tuple[int, int]] = []
    try:
        for size in sizes:
            places.append((_allocate(image, size), size))
        change_counts(image, references, 1)
    except BaseException:
        for offset, size in places:
            _release(image, offset, size)
        raise
    return [offset for offset, _size in places]


def _allocate(image: Image, size: int) -> int:
    """Host offset of a new place of ``size`` bytes, which are written so that the disk has room for them."""
    if not size:
        return 0
    count = -(-size >> image.cluster_bits)
    with image.lock:
        first, _count = image.allocator.allocate(count, count)
        image.overlap.guard(first << image.cluster_bits, count << image.cluster_bits)
    offset = first << image.cluster_bits
    try:
        _write_whole(image, offset, bytes(size))
    except BaseException:
        _release(image, offset, size)
        raise
    return offset


def _release(image: Image, offset: int, size: int) -> None:
    """Give back a place that nothing refers to."""
    if size:
        with image.lock:
            image.allocator.release(offset >> image.cluster_bits, -(-size >> image.cluster_bits))


def _write_whole(image: Image, offset: int, data: bytes) -> None:
    """Write ``data`` with zeroes up to the end of its last cluster."""
    if data:
        image.file.write(offset, data + bytes(-len(data) & image.cluster_mask))


def rewrite_table(node: Qcow2Disk) -> None:
    """Write the snapshot table anew, with all the extra data that we know."""
    _write_table(node, node.snapshots.entries)
    node.image.writeback.settle()


def mend_table(node: Qcow2Disk) -> None:
    """Let the image have the snapshots that were found, after some of them, or parts of them, could not be read."""
    if node.snapshots.differs:
        if node.header.snapshot_offset >= node.image.file.length:
            node.snapshots.size = 0  # nothing is counted there that could be freed
        rewrite_table(node)
        return
    node.header.snapshot_count = len(node.snapshots.entries)
    node.image.writeback.write_header()


def _packed(entries: list[Snapshot]) -> bytes:
    data = b"".join(each.pack() for each in entries)
    if len(data) > layout.MAX_SNAPSHOT_TABLE_BYTES:
        raise QobraError("Snapshot table is too big", errno=errno.EFBIG)
    return data


def _write_table(node: Qcow2Disk, entries: list[Snapshot], place: int | None = None) -> None:
    """Put a new snapshot table in place of the old one: at ``place``, which was allocated for it, or wherever."""
    image = node.image
    header = image.header
    data = _packed(entries)
    offset = _allocate(image, len(data)) if place is None else place
    image.writeback.commit(durable=False)
    _write_whole(image, offset, data)
    image.writeback.barrier()
    old_offset, old_size, old_count = header.snapshot_offset, node.snapshots.size, header.snapshot_count
    header.snapshot_offset, header.snapshot_count = offset, len(entries)
    try:
        image.writeback.write_header()
    except BaseException:
        header.snapshot_offset, header.snapshot_count = old_offset, old_count
        raise
    node.snapshots.entries, node.snapshots.size, node.snapshots.differs = entries, len(data), False
    for each in entries:
        each.is_complete = True
    image.overlap.rebuild()
    if old_size:
        image.free(old_offset, -(-old_size // image.cluster_size) * image.cluster_size)
