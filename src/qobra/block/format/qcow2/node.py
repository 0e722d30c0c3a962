"""The qcow2 block driver: a :class:`.disk.Qcow2Disk` with all that is done to an image beside reading and writing."""

from __future__ import annotations

import errno

from qobra.block.buffers import Buffer
from qobra.block.contracts import BitmapStore
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.disk import Qcow2Disk
from qobra.block.format.qcow2.header import l1_entries_for, l1_shift
from qobra.block.node import BlockNode, Options, drivers
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


@drivers.register("qcow2")
class Qcow2Node(Qcow2Disk, BitmapStore):
    """A qcow2 image as a node: snapshots, bitmaps, amending, information. What does the work is imported when asked."""

    creatable = True
    keeps_snapshots = True
    can_amend_encryption = True

    def info(self) -> Options:
        from qobra.block.format.qcow2.info import image_info

        return image_info(self)

    def make_empty(self) -> bool:
        from qobra.block.format.qcow2.empty import can_be_emptied, make_completely_empty

        self.get_ready()
        if can_be_emptied(self):
            make_completely_empty(self)
        else:
            self.forget_range(0, -(-self.length >> self.image.cluster_bits))
        self.written(0, self.length)
        return True

    def snapshot_list(self) -> list[Options]:
        from qobra.block.format.qcow2.info import snapshot_info

        return [snapshot_info(each) for each in self.snapshots.entries]

    def snapshot_create(
        self,
        name: str,
        *,
        vm_state_size: int = 0,
        vm_clock: int = 0,
        icount: int | None = None,
        now_ns: int | None = None,
    ) -> Options:
        """Take an internal snapshot (the node is drained) and return its SnapshotInfo."""
        from qobra.block.format.qcow2 import snapshot_ops
        from qobra.block.format.qcow2.info import snapshot_info

        return snapshot_info(
            snapshot_ops.create(
                self, name, vm_state_size=vm_state_size, vm_clock=vm_clock, icount=icount, now_ns=now_ns
            )
        )

    def snapshot_delete(self, id: str | None, name: str | None) -> None:
        """Delete the snapshot with that id and name, as far as given. Raises QobraError (ENOENT)."""
        from qobra.block.format.qcow2 import snapshot_ops

        snapshot_ops.delete(self, snapshot_ops.find(self, id, name))

    def snapshot_apply(self, id_or_name: str) -> None:
        """Return the disk to the snapshot with that id or else name (the node is drained).

        Raises QobraError with EBUSY where bitmaps would not learn what changes.
        """
        from qobra.block.format.qcow2 import snapshot_ops

        if self.bitmaps or self.stored_bitmaps.entries:
            raise QobraError("Device has active dirty bitmaps", errno=errno.EBUSY)
        snapshot_ops.check_inside(self.image)
        snapshot_ops.apply(self, snapshot_ops.find_any(self, id_or_name))

    def snapshot_load(self, id_or_name: str) -> None:
        """Show a snapshot's contents on this read-only node."""
        from qobra.block.format.qcow2 import snapshot_ops

        snapshot_ops.load(self, snapshot_ops.find_any(self, id_or_name))

    # -- the state of a machine, which is kept past the end of the disk ------------------------------------------

    @property
    def vm_state_offset(self) -> int:
        shift = l1_shift(self.header)
        return -(-self.length >> shift) << shift

    def write_vm_state(self, position: int, data: Buffer) -> None:
        from qobra.block.format.qcow2.resize import grow_l1

        self.get_ready()
        self.file.debug_event("vmstate_save")
        offset = self.vm_state_offset + position
        grow_l1(self.image, l1_entries_for(self.header, offset + len(data)))
        self.write_past_end(offset, memoryview(data).cast("B"))

    def read_vm_state(self, position: int, length: int) -> bytes:
        self.file.debug_event("vmstate_load")
        data = bytearray(length)
        self.read_old(self.vm_state_offset + position, memoryview(data))
        return bytes(data)

    def forget_vm_state(self) -> None:
        """Unmap the saved state."""
        image = self.image
        first = self.vm_state_offset >> image.cluster_bits
        self.forget_range(first, image.header.l1_entries << image.tables.table_bits)

    # -- bitmaps ----------------------------------------------------------------------------------------------

    has_bitmap_format = True

    @property
    def stores_bitmaps(self) -> bool:
        return self.header.version >= 3

    def check_new_bitmap(self, name: str, granularity: int) -> None:
        try:
            self.stored_bitmaps.check_new(name, granularity)
        except QobraError as error:
            where = self.layer.device_or_node_name(self)
            raise error.prefixed(f"Can't make bitmap '{name}' persistent in '{where}': ")

    def remove_stored_bitmap(self, name: str) -> None:
        self.get_ready()
        self.stored_bitmaps.remove(name)

    # -- changing and making images -----------------------------------------------------------------------------

    def amend_encryption(self, options: Options, force: bool) -> None:
        """x-blockdev-amend (BlockdevAmendOptionsQcow2)."""
        if "encrypt" not in options:
            return
        if not self.image.encrypted:
            raise QobraError("image is not encrypted, can't amend")
        if options["encrypt"]["format"] != "luks":
            raise QobraError("Amend can't be used to change the qcow2 encryption format")
        if self.header.crypt_method != layout.CRYPT_LUKS:
            raise QobraError("Only LUKS encryption options can be amended for qcow2 with blockdev-amend")
        from qobra.block.format.qcow2.crypt import amend_crypt

        self.get_ready()
        amend_crypt(self, options["encrypt"], force=force)

    def require_key_slots(self) -> None:
        """Raise QobraError unless the image has key slots, which can be amended."""
        from qobra.block.format.qcow2.crypt import require_luks

        require_luks(self)

    def amend(
        self, options: Options, progress: Callable[[int, int], None] | None = None, *, force: bool = False
    ) -> None:
        """Change what can be changed (the node is drained); see :func:`.amend.amend`."""
        from qobra.block.format.qcow2.amend import amend

        self.get_ready()
        amend(self, options, progress, force=force)

    def change_backing_file(self, filename: str, backing_format: str) -> None:
        self.get_ready()
        if len(filename.encode("utf-8", "surrogateescape")) > layout.MAX_BACKING_NAME:
            raise QobraError("Backing file name too long", errno=errno.EINVAL)
        if filename and self.data_file_raw:
            raise QobraError("Cannot set a backing file with a raw external data file", errno=errno.EINVAL)
        # What was copied from the old backing file is not to be looked for in the new one, whatever happens.
        self.image.writeback.commit()
        header = self.header
        before = header.backing_file, header.backing_format
        header.backing_file, header.backing_format = filename, backing_format if filename else ""
        try:
            self.image.writeback.write_header()
        except QobraError:
            header.backing_file, header.backing_format = before
            raise
        self.backing_filename, self.backing_format = header.backing_file, header.backing_format
        # The node below was not opened by this name; and names of this node and of those above may be other ones now.
        self.auto_backing = None
        self.layer.changed()

    @classmethod
    def measure(cls, options: Options, source: BlockNode | None = None) -> Options:
        """BlockMeasureInfo of a new image; see :func:`.measure.measure`."""
        from qobra.block.format.qcow2.measure import measure

        return measure(options, source)

    @classmethod
    def check_creation(cls, options: Options) -> None:
        from qobra.block.format.qcow2.create import header_for

        header_for(options)

    @classmethod
    def create(cls, options: Options, file: BlockNode, data_file: BlockNode | None = None) -> None:
        """blockdev-create (BlockdevCreateOptionsQcow2); see :mod:`.create`."""
        from qobra.block.format.qcow2.create import create

        create(options, file, data_file)
