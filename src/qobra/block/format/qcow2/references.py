"""The loops over L2 entries, what they refer to, and the counts of that, for :mod:`.sharing`.

What is referred to is in *runs*: a run is a word that has the first of its clusters from bit 16 on and their number
less one below. The compiled form is ``native/references.pyx``.
"""

from __future__ import annotations

from array import array

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.refcount import pack_counts
from qobra.block.format.qcow2.runs import table_runs
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.format.qcow2.refcount import Counts

_OFFSET = layout.OFFSET_MASK
COUNT_BITS = 16
"""The bits of a run below its first cluster."""
_COUNT_MASK = (1 << COUNT_BITS) - 1
_NO_FLAG = bytes(value & 0x7F for value in range(256))
"""On disk, COPIED is the first bit of an entry."""
_IS_ONE = bytes((0, 1)) + bytes(254)


def pure_collect(
    table: memoryview, at: int, step: int, bits: int, limit: int, split: int, runs: array[int], count: int
) -> tuple[int, int]:
    """Append to the ``count`` words of ``runs`` what the entries of ``table`` refer to, ``step`` bytes each.

    This begins with the entry at byte ``at``. Clusters have ``1 << bits`` bytes; runs are cut at multiples of
    ``1 << split`` clusters. Returns the byte position of the first entry that refers to where nothing can be (at or
    past cluster ``limit``, or not to a cluster's begin) or for which ``runs`` has no room of two words, the table's
    length if there is none, and the new number of runs.
    """
    size, room, part = 1 << bits, len(runs) - 2, 1 << split
    for begin, number, word in _entry_runs(bytes(table[at:]), step, size):
        done = 0
        while done < number:
            place, entry, taken = at + begin + done * step, word + done * size, 1
            if count > room:
                return place, count
            if entry & layout.COMPRESSED_FLAG:
                offset, length = layout.compressed_place(entry, bits)
                first = offset >> bits
                if first >= limit:
                    return place, count
                last = min((offset + length - 1) >> bits, limit - 1)
                count = push(runs, count, first, last - first + 1, split)
            elif entry & _OFFSET:
                first = (entry & _OFFSET) >> bits
                if entry & _OFFSET & (size - 1) or first >= limit:
                    return place, count
                taken = min(number - done, limit - first, part - first % part)
                count = push(runs, count, first, taken, split)
            done += taken
    return len(table), count


def _entry_runs(table: bytes, step: int, size: int) -> Iterator[tuple[int, int, int]]:
    """As :func:`table_runs`, for plain and extended entries alike."""
    if step == 8:
        yield from table_runs(table, size)
        return
    for at in range(0, len(table), step):
        word = int.from_bytes(table[at : at + 8], "big")
        if word:
            yield at, 1, word


def push(runs: array[int], count: int, first: int, clusters: int, split: int) -> int:
    """Append ``clusters`` clusters from ``first`` to ``count`` runs, as :func:`pure_collect`; their new number."""
    mask = (1 << split) - 1
    while clusters:
        size = min(clusters, mask + 1 - (first & mask))
        runs[count] = first << COUNT_BITS | size - 1
        count += 1
        first += size
        clusters -= size
    return count


def pure_sort(runs: array[int], count: int) -> None:
    """Bring the first ``count`` words into ascending order."""
    runs[:count] = array("Q", sorted(runs[:count]))


def pure_add(
    counts: Counts, width: int, base: int, runs: array[int], at: int, end: int, sign: int, maximum: int
) -> int:
    """Add ``sign`` to the counts of runs ``at`` to ``end``, in a block that begins with cluster ``base``.

    ``width`` is the bytes of a count in memory. Returns the first run that was left as it is: it is not in the block,
    or a count of it would leave its bounds, 0 to ``maximum``.
    """
    entries = len(counts)
    while at < end:
        low = (runs[at] >> COUNT_BITS) - base
        high = low + (runs[at] & _COUNT_MASK) + 1
        if low < 0 or high > entries:
            break
        part = counts[low:high]
        if (maximum if sign > 0 else 0) in part:
            break
        if part == part[:1] * (high - low):
            part[0] += sign
            counts[low:high] = part[:1] * (high - low)  # type: ignore[assignment]
        else:
            for position in range(low, high):
                counts[position] += sign
        at += 1
    return at


def pure_free_of(
    counts: Counts, width: int, base: int, runs: array[int], at: int, end: int, into: array[int]
) -> tuple[int, int]:
    """Put the clusters of runs ``at`` to ``end`` whose count is 0 into ``into``, as pairs of first and number.

    Arguments as for :func:`pure_add`. Returns the first run that is not in the block, or for which there is no room (a
    run has at most ``1 << 16`` clusters), and the number of pairs.
    """
    made = done = 0
    while at < end:
        low = (runs[at] >> COUNT_BITS) - base
        high = low + (runs[at] & _COUNT_MASK) + 1
        if low < 0 or high > len(counts) or made + (high - low + 1) // 2 > len(into) // 2:
            break
        for each in range(max(low, done), high):
            if not counts[each]:
                if made and into[2 * made - 2] + into[2 * made - 1] == base + each:
                    into[2 * made - 1] += 1
                else:
                    into[2 * made], into[2 * made + 1] = base + each, 1
                    made += 1
        done = max(done, high)
        at += 1
    return at, made


def pure_note_ones(counts: Counts, width: int, ones: bytearray, first: int) -> None:
    """Set the bits of ``ones`` from bit ``first`` on, a multiple of 8, where counts are 1."""
    flags = counts.translate(_IS_ONE) if isinstance(counts, bytearray) else bytes(count == 1 for count in counts)
    packed = pack_counts(bytearray(flags), 0)
    at = first >> 3
    ones[at : at + len(packed)] = packed[: max(0, len(ones) - at)]


def pure_clear_flags(table: memoryview, step: int) -> tuple[int, int]:
    """Clear COPIED in every entry; the byte positions between which ``table`` has changed, (0, 0) if it has not."""
    heads = bytes(table[::step])
    cleared = heads.translate(_NO_FLAG)
    if cleared == heads:
        return 0, 0
    table[::step] = cleared
    return 0, len(table)


def pure_set_flags(table: memoryview, step: int, bits: int, ones: bytearray, base: int) -> tuple[int, int]:
    """Set COPIED in entries for clusters that have a bit in ``ones`` and clear it where they have none.

    The first bit is that of cluster ``base``; entries for clusters before it and past the last stay as they are.
    Returns the byte positions between which ``table`` has changed, (0, 0) if it has not.
    """
    first = last = -1
    for at, number, word in _entry_runs(bytes(table), step, 1 << bits):
        if word & layout.COMPRESSED_FLAG or not word & _OFFSET:
            continue
        for each in range(number):
            cluster = ((word & _OFFSET) >> bits) + each - base
            place = at + each * step
            if 0 <= cluster < len(ones) << 3 and table[place] >> 7 != ones[cluster >> 3] >> (cluster & 7) & 1:
                table[place] ^= 0x80
                first = place if first < 0 else first
                last = place
    return (0, 0) if first < 0 else (first, last + step)


_compiled = compiled("references")
collect, sort, add, free_of, note_ones, clear_flags, set_flags = (
    (pure_collect, pure_sort, pure_add, pure_free_of, pure_note_ones, pure_clear_flags, pure_set_flags)
    if _compiled is None
    else (
        _compiled.collect,
        _compiled.sort,
        _compiled.add,
        _compiled.free_of,
        _compiled.note_ones,
        _compiled.clear_flags,
        _compiled.set_flags,
    )
)
