"""Dirty bitmaps: which parts of a node were written since some moment.

A bitmap belongs to a node, has a name (those of jobs have none), and notes writes while it is *enabled*. A job or an
export that reads it makes it *busy*. A job that will clear it at its end *freezes* it: what is written meanwhile is
recorded apart, and at the end either takes the place of the old content (:meth:`DirtyBitmap.abdicate`) or is added
to it (:meth:`DirtyBitmap.reclaim`).

Loops without the GIL mark a bitmap past its lock, in bits of their own (:mod:`qobra.native.marks`). Whoever looks at
the bitmap, or changes it, takes those over first, so that they count from the moment that they were marked. No write is
lost between such a loop and a job, because each keeps an order: the loop writes, marks, and leaves its slot; the job
clears a mark, and then reads what it copies. A mark that was cleared was made for data that the job reads; one that
comes later stays. Whoever has to know of them all drains first, and so does a job when it makes its bitmap: a loop that
began before knows nothing of that.
"""

from __future__ import annotations

from qobra.block.bits import Bits
from qobra.block.contracts import WriteTracker
from qobra.block.node import BlockNode
from qobra.errors import QobraError
from qobra.lean import Lock
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from qobra.block.contracts import Marks as Markable
    from qobra.native.in_step import InStep
    from qobra.native.marks import Marks


MAX_NAME = 1023
"""Longest name of a bitmap in bytes (qcow2's limit)."""

DEFAULT_GRANULARITY = 65536
MIN_GRANULARITY = 512


class DirtyBitmap(WriteTracker):
    """A bitmap of ``node`` with a bit for each ``granularity`` bytes (a power of two, at least 512).

    Made enabled unless ``enabled`` is False. A named one is in ``node.bitmaps`` from now on; QobraError if the name
    or the granularity will not do. Thread-safe: writers mark it while jobs read and clear it.
    """

    def __init__(
        self,
        node: BlockNode,
        name: str | None,
        granularity: int,
        *,
        enabled: bool = True,
        persistent: bool = False,
        length: int | None = None,
    ) -> None:
        check_granularity(granularity)
        if name is not None:
            if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
                raise QobraError(f"Bitmap name too long: {name}")
            if name in node.bitmaps:
                raise QobraError(f"Bitmap already exists: {name}")
        self.node = node
        self.name = name
        self.granularity = granularity
        self.persistent = persistent
        self.busy = False
        self.read_only = False
        """Loaded from an image that cannot be written: must not change, so must not be enabled."""
        self.moving = False
        """Is removed, or goes to another process on its own way: it is not to be stored in the image."""
        self.inconsistent = False
        """Was not stored when its image was last closed: its content means nothing."""
        self.length = node.length if length is None else length
        """Bytes of the node that the bitmap covers."""
        self._shift = granularity.bit_length() - 1
        self._bits = Bits(self._granules(self.length))
        self._since_frozen: Bits | None = None
        self._marks: Marks | None = None
        """What loops mark; a new one when the length has changed."""
        self._marked: tuple[Marks, ...] = ()
        """That, and what some loop may still mark instead."""
        self.in_step: InStep | None = None
        """What is in step with another disk, if a job has whoever writes the node past it write that, too."""
        self._lock = Lock()
        self._enabled = False
        if name is not None:
            node.bitmaps[name] = self
        if enabled:
            self.enable()

    def __repr__(self) -> str:
        return f"<bitmap {self.name!r} of {self.node.node_name!r}>"

    def _granules(self, length: int) -> int:
        return (length + self.granularity - 1) >> self._shift

    # -- state ------------------------------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether writes are noted."""
        return self._enabled

    def enable(self) -> None:
        """Note writes from now on."""
        if not self._enabled:
            self._enabled = True
            self.node.add_tracker(self)

    def disable(self) -> None:
        """Note no more writes."""
        if self._enabled:
            self._enabled = False
            self.node.remove_tracker(self)

    def remove(self) -> None:
        """Take the bitmap off its node; one that is stored in the image stays there."""
        self.disable()
        if self.name is not None and self.node.bitmaps.get(self.name) is self:
            del self.node.bitmaps[self.name]

    def restore(self, enabled: bool) -> None:
        """Undo :meth:`remove`."""
        assert self.name is not None
        self.node.bitmaps[self.name] = self
        if enabled:
            self.enable()

    def check(self, *, busy: bool = True, read_only: bool = True, inconsistent: bool = True) -> None:
        """Raise QobraError if the bitmap is busy, read-only or inconsistent, as far as each is asked for."""
        if busy and self.busy:
            raise QobraError(f"Bitmap '{self.name}' is currently in use by another operation and cannot be used")
        if read_only and self.read_only:
            raise QobraError(f"Bitmap '{self.name}' is readonly and cannot be modified")
        if inconsistent and self.inconsistent:
            raise QobraError(f"Bitmap '{self.name}' is inconsistent and cannot be used")

    # -- changing ---------------------------------------------------------------------------------------------

    def mark(self, offset: int, length: int) -> None:
        """A write of the node; see :class:`WriteTracker`."""
        marks = self._marks
        if marks is not None and offset + length <= self.length:
            marks.mark(offset, length)  # without the lock
        else:
            self.set(offset, length)

    def marks(self) -> Markable | None:
        """See :class:`WriteTracker`. None for a bitmap of more granules than marks are kept of."""
        form = compiled("marks")
        if form is None:
            return self
        with self._lock:
            if self._marks is None:
                try:
                    self._marks = form.Marks(self._granules(self.length), self._shift)
                except ValueError:
                    return None
                self._marked = (*self._marked, self._marks)
            return self._marks

    def keep_in_step(self) -> None:
        """Have what is in step with another disk, where there is a compiled form for that. Before it is enabled."""
        form = compiled("in_step")
        marks = self.marks()
        if form is not None and marks is not None:
            self.in_step = form.InStep(marks)

    def _take_marks(self) -> None:
        """Have in the bits what loops have marked. Under the lock."""
        for marks in self._marked:
            if marks.waiting:
                bits = self._bits if self._since_frozen is None else self._since_frozen
                found = marks.take()
                if found is None:
                    bits.set(0, bits.size)
                else:
                    bits.add_pages(found)

    def set(self, offset: int, length: int) -> None:
        """Make ``length`` bytes from ``offset`` dirty (recorded apart while the bitmap is frozen)."""
        if length <= 0:
            return
        first = offset >> self._shift
        last = (offset + length - 1) >> self._shift
        with self._lock:
            bits = self._bits if self._since_frozen is None else self._since_frozen
            if first != last or first not in bits:
                bits.set(first, last + 1)

    def clear(self, offset: int, length: int) -> None:
        """Make the whole granules that ``length`` bytes from ``offset`` touch clean."""
        if length > 0:
            with self._lock:
                self._take_marks()
                self._bits.clear(offset >> self._shift, self._granules(offset + length))

    def take(self, offset: int, length: int) -> bytearray:
        """Make the granules of a range clean, and return their bits as :meth:`to_bytes` does. See :meth:`give_back`."""
        first, end = offset >> self._shift, self._granules(offset + length)
        with self._lock:
            self._take_marks()
            bits = bytearray(self._bits.to_bytes(first, end))
            self._bits.clear(first, end)
        if end & 7:
            bits[-1] &= 0xFF >> (-end & 7)
        return bits

    def give_back(self, offset: int, bits: bytearray) -> None:
        """Make dirty what is set in ``bits``, from :meth:`take` of the same ``offset``."""
        if any(bits):
            content = Bits(self._bits.size)
            content.load(offset >> self._shift, bits)
            self.add_back(content)

    def set_all(self) -> None:
        """Make everything dirty."""
        self.set(0, self.length)

    def clear_all(self) -> Bits:
        """Make everything clean and return the old content, for :meth:`put_back`."""
        with self._lock:
            self._take_marks()
            old, self._bits = self._bits, Bits(self._bits.size)
        return old

    def snapshot(self) -> Bits:
        """A copy of the content."""
        with self._lock:
            self._take_marks()
            return self._bits.copy()

    def put_back(self, content: Bits) -> None:
        """Let ``content``, from :meth:`clear_all` or :meth:`snapshot`, be the content again."""
        with self._lock:
            self._take_marks()
            self._bits = content

    def add_back(self, content: Bits) -> None:
        """Add ``content``, from :meth:`clear_all`, to what was marked since."""
        with self._lock:
            self._bits.merge(content)

    def merge(self, source: DirtyBitmap) -> None:
        """Make dirty what is dirty in ``source``. Raises QobraError where the two cover different lengths."""
        ours, theirs = (-(-each.length // 512) * 512 for each in (self, source))
        if ours != theirs:
            raise QobraError(
                f"Bitmaps are of different sizes (destination size is {ours}, source size is {theirs}) "
                "and can't be merged"
            )
        content = source.snapshot()
        if source.granularity == self.granularity:
            with self._lock:
                self._bits.merge(content)
        else:
            for first, end in content.runs(0, content.size):
                start = first << source._shift
                stop = min(end << source._shift, self.length)
                with self._lock:
                    self._bits.set(start >> self._shift, self._granules(stop))

    def resize(self, length: int) -> None:
        """The node has another length now; what is new of it is clean until it is written."""
        if self.in_step is not None:
            self.in_step.aim(None)
            self.in_step = None
        with self._lock:
            self._take_marks()
            self.length = length
            self._bits.resize(self._granules(length))
            if self._since_frozen is not None:
                self._since_frozen.resize(self._granules(length))
            old, self._marks = self._marks, None
        if old is not None:
            layer = self.node.layer
            layer.changed()
            layer.flight.retire(lambda: self._forget_marks(old))

    def _forget_marks(self, old: Marks) -> None:
        """No loop knows ``old`` any more."""
        with self._lock:
            self._take_marks()
            self._marked = tuple(each for each in self._marked if each is not old)

    # -- frozen -----------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Keep the content as it is, and record what is written from now on apart."""
        with self._lock:
            self._take_marks()
            self._since_frozen = Bits(self._bits.size)
        self.busy = True

    def abdicate(self) -> None:
        """End a freeze: what was recorded meanwhile is the content from now on."""
        with self._lock:
            assert self._since_frozen is not None
            self._take_marks()
            self._bits, self._since_frozen = self._since_frozen, None
        self.busy = False
        if self.name is not None:
            # It is listed as what it is: newer than bitmaps that were added before the freeze.
            self.node.bitmaps[self.name] = self.node.bitmaps.pop(self.name)

    def reclaim(self) -> None:
        """End a freeze: what was recorded meanwhile is added to the content."""
        with self._lock:
            assert self._since_frozen is not None
            self._bits.merge(self._since_frozen)
            self._since_frozen = None
        self.busy = False

    # -- reading ----------------------------------------------------------------------------------------------

    def is_dirty(self, offset: int) -> bool:
        """Whether the granule that holds the byte ``offset`` is dirty."""
        if self._marked:
            with self._lock:
                self._take_marks()
        return offset >> self._shift in self._bits

    def count(self) -> int:
        """Dirty bytes, in whole granules as QEMU counts them."""
        with self._lock:
            self._take_marks()
            return self._bits.count() << self._shift

    def next_dirty(self, offset: int, end: int | None = None) -> int:
        """The first dirty byte from ``offset`` on, or ``end`` (default: the bitmap's length) where there is none."""
        end = self.length if end is None else end
        with self._lock:
            self._take_marks()
            found = self._bits.next_set(offset >> self._shift, self._granules(end))
        return min(end, max(offset, found << self._shift))

    def next_clean(self, offset: int, end: int | None = None) -> int:
        """The first clean byte from ``offset`` on, or ``end``."""
        end = self.length if end is None else end
        with self._lock:
            self._take_marks()
            found = self._bits.next_clear(offset >> self._shift, self._granules(end))
        return min(end, max(offset, found << self._shift))

    def dirty_ranges(self, offset: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """The dirty ranges ``(offset, length)`` in bytes, in order, cut to ``offset`` .. ``end``."""
        end = self.length if end is None else end
        while (start := self.next_dirty(offset, end)) < end:
            offset = self.next_clean(start, end)
            yield start, offset - start

    # -- stored -----------------------------------------------------------------------------------------------

    def to_bytes(self, offset: int, length: int) -> bytes:
        """A bit for each granule of ``length`` bytes from ``offset``, lowest bit first, as qcow2 and NBD store them.

        ``offset`` is a multiple of eight granules.
        """
        with self._lock:
            self._take_marks()
            return self._bits.to_bytes(offset >> self._shift, self._granules(offset + length))

    def load(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Take the bits from ``offset``, a multiple of eight granules, on from ``data``; see :meth:`to_bytes`."""
        with self._lock:
            self._bits.load(offset >> self._shift, data)

    def refer(self, offset: int, read: Callable[[int, int], bytes], place: int, length: int) -> None:
        """:meth:`load` of ``length`` bytes at ``place`` that are to be read whenever they are looked at."""
        with self._lock:
            self._bits.refer(offset >> self._shift, read, place, length)

    def loaded(self) -> None:
        """The content is what is stored."""
        with self._lock:
            self._bits.changed = False

    @property
    def changed(self) -> bool:
        """Whether the content may be another than when :meth:`loaded` was called."""
        with self._lock:
            self._take_marks()
            return self._bits.changed or self._since_frozen is not None

    def sha256(self) -> str:
        """The hash of the bits as QEMU keeps them: in words of eight bytes, at least one."""
        import hashlib

        size = (max(self._bits.size, 1) + 63) // 64 * 64
        with self._lock:
            self._take_marks()
            content = self._bits.to_bytes(0, size)
        return hashlib.sha256(content).hexdigest()

    def info(self) -> dict[str, Any]:
        """BlockDirtyInfo."""
        recording = self._enabled
        if self.inconsistent:
            status = "inconsistent"
        elif self._since_frozen is not None:
            status = "frozen"
        elif self.busy:
            status = "locked"
        else:
            status = "active" if recording else "disabled"
        result: dict[str, Any] = {} if self.name is None else {"name": self.name}
        result.update(
            recording=recording,
            persistent=self.persistent,
            busy=self.busy,
            granularity=self.granularity,
            status=status,
            count=self.count(),
        )
        if self.inconsistent:
            result["inconsistent"] = True
        return result

    def info_since_frozen(self) -> dict[str, Any] | None:
        """BlockDirtyInfo, without a name, of what is recorded apart while the bitmap is frozen; None if it is not."""
        with self._lock:
            if self._since_frozen is None:
                return None
            self._take_marks()
            count = self._since_frozen.count() << self._shift
        return {
            "recording": self._enabled,
            "persistent": False,
            "busy": False,
            "granularity": self.granularity,
            "status": "active" if self._enabled else "disabled",
            "count": count,
        }


def check_granularity(granularity: int) -> None:
    """Raise QobraError if no bitmap can have this ``granularity``."""
    if granularity < MIN_GRANULARITY or granularity & (granularity - 1):
        raise QobraError("Granularity must be power of 2 and at least 512")


def default_granularity(node: BlockNode) -> int:
    """What a mirror to ``node`` keeps account in: its cluster size, at least 4 KiB; 64 KiB where it has none."""
    return max(4096, node.cluster_size()) if node.cluster_size() else DEFAULT_GRANULARITY
