"""From L2 entries to extents: where a range of guest data lives."""

from __future__ import annotations

from array import array

from qobra.block.extents import ABSENT, COMPRESSED, COMPUTED, DATA, WRITABLE, ZERO, Extent
from qobra.block.format.qcow2 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image
    from qobra.block.format.qcow2.tables import Slice

_COPIED = layout.COPIED
_OFFSET = layout.OFFSET_MASK
_PLAIN_ZERO = layout.ZERO_FLAG

_ABSENT_WORDS = array("Q", bytes(8 << 13))
_ZERO_WORDS = array("Q", [_PLAIN_ZERO]) * (1 << 13)


def map_range(image: Image, offset: int, length: int, *, raw: bool = False) -> list[Extent]:
    """The extents of ``length`` bytes from guest ``offset``, merged where they touch.

    Encrypted data is COMPUTED, with ``raw`` the DATA that it is.
    """
    hidden = image.encrypted and not raw
    tables = image.tables
    bits = image.cluster_bits
    run_of = extended_run if image.extended else standard_run
    end = offset + length
    extents: list[Extent] = []
    with image.lock:
        if image.is_corrupt:
            image.check_usable()
        while offset < end:
            cluster = offset >> bits
            part = tables.find(cluster)
            if part is None:
                size = min(((cluster >> tables.table_bits) + 1) << (tables.table_bits + bits), end) - offset
                extent = Extent(size, ABSENT)
            else:
                extent = run_of(image, part, offset, end, hidden)
            if extents:
                last = extents[-1]
                if (
                    last.kind == extent.kind
                    and last.flags == extent.flags
                    and last.child is extent.child
                    and (extent.child is None or last.offset + last.length == extent.offset)
                ):
                    extents[-1] = last._replace(length=last.length + extent.length)
                    offset += extent.length
                    continue
            extents.append(extent)
            offset += extent.length
    return extents


def standard_run(image: Image, part: Slice, offset: int, end: int, hidden: bool) -> Extent:
    """The longest extent at guest ``offset`` within its slice, up to guest offset ``end``; plain L2 entries."""
    bits = image.cluster_bits
    words = part.words
    cluster = offset >> bits
    index = cluster & image.tables.slice_mask
    limit = min(len(words), index + ((end - 1) >> bits) - cluster + 1)
    inside = offset & image.cluster_mask
    word = words[index]
    if word & layout.COMPRESSED_FLAG:
        stop = index + 1
        while stop < limit and words[stop] & layout.COMPRESSED_FLAG:
            stop += 1
        check_compressed(image, part, index)
        return Extent(min(((stop - index) << bits) - inside, end - offset), COMPUTED, None, 0, COMPRESSED)
    host = word & _OFFSET
    if not host and not word & _PLAIN_ZERO and not (word & _COPIED and image.external):
        stop = _run_of(words, index, limit, word, _ABSENT_WORDS) if word == 0 else index + 1
        return Extent(min(((stop - index) << bits) - inside, end - offset), ABSENT)
    if word == _PLAIN_ZERO:
        check_zero(image, part, index)
        stop = _run_of(words, index, limit, word, _ZERO_WORDS)
        return Extent(min(((stop - index) << bits) - inside, end - offset), ZERO)
    stop = index + 1
    if stop < limit:
        step = image.cluster_size
        expected = word + step
        while stop < limit and words[stop] == expected:
            stop += 1
            expected += step
    size = min(((stop - index) << bits) - inside, end - offset)
    if word & _PLAIN_ZERO:
        check_zero(image, part, index)
        if not host and not (word & _COPIED and image.external):
            return Extent(size, ZERO)
        check_host(image, part, index, host, cluster)
        return Extent(size, ZERO, image.data, host + inside)
    check_host(image, part, index, host, cluster)
    if hidden:
        return Extent(size, COMPUTED)
    flags = 0
    if word & _COPIED and not image.node.read_only:
        if image.external or not image.overlap.touches(host >> bits, stop - index):
            flags = WRITABLE
    return Extent(size, DATA, image.data, host + inside, flags)


def _run_of(words: array[int], index: int, limit: int, word: int, pattern: array[int]) -> int:
    """Where the run of ``word`` that begins at ``index`` ends, at most at ``limit``; by memcmp of growing pieces."""
    at = index + 1
    size = 16
    while at < limit:
        piece = words[at : at + size] if at + size <= limit else words[at:limit]
        count = len(piece)
        if piece != pattern[:count]:
            if not word:
                return at + ((8 * count - len(piece.tobytes().lstrip(b"\0"))) >> 3)
            for value in piece:
                if value != word:
                    return at
                at += 1
        at += count
        size = min(size * 8, len(pattern))
    return at


def extended_run(image: Image, part: Slice, offset: int, end: int, hidden: bool) -> Extent:
    """As :func:`standard_run`, of extended L2 entries: runs of subclusters."""
    bits = image.cluster_bits
    sub_bits = bits - 5
    words = part.words
    cluster = offset >> bits
    index = (cluster & image.tables.slice_mask) * 2
    kind, host, copied, stop = _sub_state(image, part, index, cluster, (offset & image.cluster_mask) >> sub_bits)
    inside = offset & image.cluster_mask
    size = (stop << sub_bits) - inside
    place = host + inside
    last = min(len(words), index + 2 * (((end - 1) >> bits) - cluster + 1))
    following = index + 2
    while stop == layout.SUBCLUSTERS and following < last:
        cluster += 1
        next_kind, host, next_copied, stop = _sub_state(image, part, following, cluster, 0)
        if next_kind != kind or (kind == DATA and (next_copied != copied or host != place + size)):
            break
        if kind == ZERO and (host or place):
            break
        size += stop << sub_bits
        following += 2
    size = min(size, end - offset)
    if kind == COMPUTED:
        return Extent(size, COMPUTED, None, 0, COMPRESSED)
    if kind == ABSENT:
        return Extent(size, ABSENT)
    if kind == ZERO:
        return Extent(size, ZERO, image.data, place) if place > inside else Extent(size, ZERO)
    if hidden:
        return Extent(size, COMPUTED)
    flags = 0
    if copied and not image.node.read_only:
        first = place >> bits
        if image.external or not image.overlap.touches(first, ((place + size - 1) >> bits) - first + 1):
            flags = WRITABLE
    return Extent(size, DATA, image.data, place, flags)


def _sub_state(image: Image, part: Slice, index: int, cluster: int, sub: int) -> tuple[int, int, bool, int]:
    """Of an extended entry: kind, host offset of the cluster, COPIED, first subcluster past ``sub`` that differs."""
    word, bitmap = part.words[index], part.words[index + 1]
    if word & layout.COMPRESSED_FLAG:
        check_compressed(image, part, index)
        return COMPUTED, 0, False, layout.SUBCLUSTERS
    host = word & _OFFSET
    allocated, zero = bitmap & layout.ALL_ALLOCATED, bitmap >> 32
    check_subclusters(image, part, index, gap="  ")
    if host or allocated:
        check_host(image, part, index, host, cluster)
    if allocated >> sub & 1:
        kind, same = DATA, allocated
    elif zero >> sub & 1:
        kind, same = ZERO, zero
    else:
        kind, same = ABSENT, ~(allocated | zero) & layout.ALL_ALLOCATED
    # Count the ones from bit `sub` on: the lowest zero above it ends the run.
    differs = ~(same >> sub)
    stop = sub + (differs & -differs).bit_length() - 1
    return kind, host, bool(word & _COPIED), min(stop, layout.SUBCLUSTERS)


# -- entries that cannot be --------------------------------------------------------------------------------------


def _l2_index(image: Image, part: Slice, index: int) -> int:
    """The number in its whole L2 table of the entry at word ``index`` of ``part``."""
    return ((part.offset & image.cluster_mask) // 8 + index) >> image.tables.word_bits


def _place_text(image: Image, part: Slice, index: int) -> str:
    number = layout.hexadecimal(_l2_index(image, part, index))
    return f"(L2 offset: {part.offset & ~image.cluster_mask:#x}, L2 index: {number})"


def check_host(
    image: Image, part: Slice, index: int, host: int, cluster: int, written: tuple[str, int] | None = None
) -> None:
    """Refuse a host offset that is not on a cluster, or in an external file not the guest's.

    ``written`` is what kind of cluster is about to be written and from which guest offset.
    """
    if host & image.cluster_mask:
        if written is not None:
            what, place = f"{written[0]} cluster", f"(guest offset: {layout.hexadecimal(written[1])})"
        else:
            what, place = "Cluster allocation", _place_text(image, part, index)
        image.corrupt(f"{what} offset {host:#x} unaligned {place}", fatal=True)
    if image.external and host != cluster << image.cluster_bits:
        image.corrupt(
            f"External data file host cluster offset {host:#x} does not match guest cluster offset: "
            f"{layout.hexadecimal(cluster << image.cluster_bits)}, L2 index: "
            f"{layout.hexadecimal(_l2_index(image, part, index))})",
            fatal=True,
        )


def check_subclusters(image: Image, part: Slice, index: int, gap: str = " ") -> None:
    """Refuse an extended entry whose subclusters are allocated nowhere, or allocated and zero.

    ``gap``: QEMU says it with one space more to those who read than to those who write.
    """
    word, bitmap = part.words[index], part.words[index + 1]
    allocated = bitmap & layout.ALL_ALLOCATED
    if allocated & bitmap >> 32 or (allocated and not word & _OFFSET and not (word & _COPIED and image.external)):
        image.corrupt(f"Invalid cluster entry found{gap}{_place_text(image, part, index)}", fatal=True)


def check_inside(image: Image, host: int, size: int) -> None:
    """Refuse to write in place where the image file has never been: a damaged entry, or the file lost its end."""
    end = (image.data.length + image.cluster_mask) & ~image.cluster_mask
    if host + size > end and not image.external:
        image.data.check_write(host, size)  # a file of a fixed size has no space there, whatever the image is like
        image.corrupt(f"Cluster at host offset {host:#x} is past the end of the image file", fatal=True)


def check_zero(image: Image, part: Slice, index: int) -> None:
    """Refuse a zero flag in a version 2 image."""
    if image.header.version < 3:
        image.corrupt(f"Zero cluster entry found in pre-v3 image {_place_text(image, part, index)}", fatal=True)


def check_compressed(image: Image, part: Slice, index: int) -> None:
    """Refuse a compressed cluster where there can be none."""
    if image.external:
        image.corrupt(
            f"Compressed cluster entry found in image with external data file {_place_text(image, part, index)}",
            fatal=True,
        )
