"""Snapshots of whole machines: one internal snapshot in every image that is written to, and in one of them the state.

The state lies past the end of the disk, where the image format has it (``vm-state-size``), as the stream that a
migration would carry.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qobra.block.activation import activate_all
from qobra.errors import QobraError, strerror
from qobra.migration import machine_state
from qobra.migration.configuration import put_configuration
from qobra.migration.ram import RamSender, put_blocks, ram_blocks
from qobra.migration.state_reader import StateReader
from qobra.migration.stream import BLOCKS, CONFIGURATION, END, StreamReader, StreamWriter

if TYPE_CHECKING:
    from qobra.block.node import BlockNode
    from qobra.machine.machine import Machine

_NO_VMSTATE = "no block device can store vmstate for snapshot"
_BUFFER = 1 << 20


class _Disk:
    """A disk as QEMU calls it in errors, and the node under its filters that has the snapshots."""

    def __init__(self, name: str, node: BlockNode) -> None:
        self.name = name
        self.node = node
        self.image: Any = node.snapshot_keeper()

    @property
    def supports_snapshots(self) -> bool:
        """Whether snapshots of it can be taken: not while its image is another process's, around a migration."""
        return self.image is not None and not (self.image.read_only or self.image.inactive)

    def find(self, tag: str) -> dict[str, Any] | None:
        """SnapshotInfo of the snapshot ``tag``."""
        return next((each for each in self.image.snapshot_list() if each["name"] == tag), None)


def _disks(machine: Machine, names: list[str] | None = None) -> list[_Disk]:
    """The disks that a snapshot is of: those that were named, or all that are written to. Raises QobraError."""
    layer = machine.block
    if names is not None:
        nodes = [layer.find_node(name) for name in names]
        disks = [_Disk(layer.device_or_node_name(node), node) for node in nodes]
    else:
        disks = _written_disks(machine)
    for disk in disks:
        if not disk.supports_snapshots:
            raise QobraError(f"Device '{disk.name}' is writable but does not support snapshots")
    return disks


def _written_disks(machine: Machine) -> list[_Disk]:
    layer = machine.block
    top = [node for node in layer.graph.nodes.values() if not layer.graph.parents(node) and node.monitor_owned]
    used = [node for node, _perm, _shared in layer.graph.state.roots.values()]
    nodes = [node for node in dict.fromkeys([*used, *top]) if not node.read_only]
    return [_Disk(layer.device_or_node_name(node), node) for node in nodes]


def _state_disk(disks: list[_Disk], name: str | None) -> _Disk:
    """The disk that keeps the machine's state. Raises QobraError."""
    for disk in disks:
        if name is None or disk.node.node_name == name:
            return disk
    if name is not None:
        raise QobraError(f"vmstate block device '{name}' does not exist")
    raise QobraError(_NO_VMSTATE)


def save(
    machine: Machine,
    tag: str | None,
    *,
    vmstate: str | None = None,
    devices: list[str] | None = None,
    overwrite: bool = True,
) -> None:
    """Save the machine as the snapshot ``tag`` (None: named after the time). In the strand. Raises QobraError.

    ``devices`` names the nodes of which a snapshot is taken, ``vmstate`` the one that keeps the state.
    """
    board = machine.board
    if board is not None:
        machine_state.check_declared(board)
    disks = _disks(machine, devices)
    now_ns = machine.clock.time_ns()
    if tag is None:
        tag = time.strftime("vm-%Y%m%d%H%M%S", time.localtime(now_ns // 10**9))
    if overwrite:
        _delete(disks, tag)
    elif any(disk.find(tag) for disk in disks):
        raise QobraError(f"Snapshot '{tag}' already exists in one or more devices")
    keeper = _state_disk(disks, vmstate)
    with standing_still(machine, "save-vm") as before, machine.block.drained():
        size = _write_state(machine, keeper, before)
        clock_ns = board.clock.now_ns() if board is not None else 0
        for disk in disks:
            try:
                disk.image.snapshot_create(
                    tag, vm_state_size=size if disk is keeper else 0, vm_clock=clock_ns, now_ns=now_ns
                )
            except (OSError, QobraError) as error:
                raise QobraError(f"Error while creating snapshot on '{disk.name}': {_text(error)}")


def load(machine: Machine, tag: str, *, vmstate: str | None = None, devices: list[str] | None = None) -> None:
    """Go back to the snapshot ``tag``. In the strand. Raises QobraError; a machine that ran stands still then."""
    disks = _disks(machine, devices)
    keeper = _state_disk(disks, vmstate)
    if any(disk.find(tag) is None for disk in disks):
        raise QobraError(f"Snapshot '{tag}' does not exist in one or more devices")
    info = keeper.find(tag)
    if info is None or not info["vm-state-size"]:
        raise QobraError("This is a disk-only snapshot. Revert to it  offline using qemu-img")
    with standing_still(machine, "restore-vm"):
        activate_all(machine.block)
        with machine.block.drained():
            for disk in disks:
                try:
                    disk.image.snapshot_apply(tag)
                except (OSError, QobraError) as error:
                    raise QobraError(f"Could not load snapshot '{tag}' on '{disk.name}': {_text(error)}")
            if machine.board is not None:
                machine.board.reset_all()
            try:
                _read_state(machine, keeper, info["vm-state-size"])
            except (OSError, QobraError) as error:
                raise QobraError(f"Error while loading VM state: {_text(error)}")


def delete(machine: Machine, tag: str, *, devices: list[str] | None = None) -> None:
    """Delete the snapshot ``tag`` wherever it is. In the strand. Raises QobraError."""
    _delete(_disks(machine, devices), tag)


def _delete(disks: list[_Disk], tag: str) -> None:
    for disk in disks:
        found = disk.find(tag)
        if found is not None:
            try:
                disk.image.snapshot_delete(found["id"], tag)
            except (OSError, QobraError) as error:
                raise QobraError(f"Could not delete snapshot '{tag}' on '{disk.name}': {_text(error)}")


def listing(machine: Machine) -> list[tuple[str, bool, list[dict[str, Any]]]]:
    """Of each disk: its name, whether it keeps the state, and its snapshots (SnapshotInfo). Raises QobraError."""
    disks = _written_disks(machine)
    keeper = next((disk for disk in disks if disk.supports_snapshots), None)
    if keeper is None:
        raise QobraError(_NO_VMSTATE)
    return [
        (disk.name, disk is keeper, disk.image.snapshot_list() if disk.supports_snapshots else []) for disk in disks
    ]


@contextmanager
def standing_still(machine: Machine, state: str) -> Iterator[str]:
    """Keep the guest from running meanwhile; gives the run state from before. It runs on only if all went well."""
    run_state = machine.run_state
    before = run_state.state
    was_running = run_state.running
    run_state.stop(state)
    run_state.settle()
    try:
        yield before
    except BaseException:
        if was_running and state == "save-vm":
            run_state.start()
        raise
    if was_running:
        run_state.start()


class _StateSink:
    """Writes the stream into the place for a machine's state, in large pieces. ``size`` is what was written."""

    def __init__(self, image: Any) -> None:
        self._image = image
        self._buffer = bytearray()
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        if self._buffer:
            self._image.write_vm_state(self.size, bytes(self._buffer))
            self.size += len(self._buffer)
            self._buffer.clear()


class _StateSource:
    """Reads a saved state."""

    def __init__(self, image: Any, size: int) -> None:
        self._image = image
        self._size = size
        self._position = 0

    def read(self, length: int) -> bytes:
        length = min(length, self._size - self._position)
        data: bytes = self._image.read_vm_state(self._position, length) if length else b""
        self._position += length
        return data


def _write_state(machine: Machine, keeper: _Disk, run_state: str) -> int:
    sink = _StateSink(keeper.image)
    out = StreamWriter(sink)
    board = machine.board
    blocks = ram_blocks(board) if board is not None else []
    listed = bytearray()
    put_blocks(listed, blocks)
    try:
        out.begin()
        out.record(CONFIGURATION, put_configuration(machine, with_uuid=False))
        out.record(BLOCKS, listed)
        RamSender(blocks, lambda _block: False).send_pass(out, lambda: None)
        machine_state.write_devices(out, machine_state.save_devices(machine, run_state))
        out.record(END)
        sink.flush()
    except OSError as error:
        raise QobraError(f"Error while writing VM state: {strerror(error)}")
    return sink.size


def _read_state(machine: Machine, keeper: _Disk, size: int) -> None:
    reader = StreamReader(_StateSource(keeper.image, size))
    state = StateReader(machine)
    reader.begin()
    while True:
        kind, payload = reader.record()
        if kind == END:
            break
        state.take(kind, payload)
    state.load_devices()


def _text(error: OSError | QobraError) -> str:
    return strerror(error) if isinstance(error, OSError) else str(error)
