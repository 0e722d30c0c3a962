"""Disks around a migration: who may use an image, what bitmaps do, and requests that wait after an error."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.block.activation import activate, activate_all, deactivate_all
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction
from qobra.testing.guest_drivers import BlockDriver
from qobra.testing.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    from qobra.block.creation._image import plan

    path = tmp_path / "disk.qcow2"
    layer = BlockLayer()
    plan(layer, str(path), "qcow2", size=MIB).run(layer)
    layer.close()
    return path


def options(image: Path, name: str = "disk") -> dict[str, Any]:
    return {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": str(image)}}


@pytest.fixture
def two(image: Path) -> Iterator[tuple[BlockLayer, BlockLayer]]:
    """Two layers with the same image: one that uses it, one that waits."""
    here, there = BlockLayer(), BlockLayer()
    here.add_node(options(image))
    there.opens_inactive = True
    there.add_node(options(image))
    yield here, there
    here.close()
    there.close()


def test_an_inactive_node_holds_no_locks_and_changes_nothing(two: tuple[BlockLayer, BlockLayer]) -> None:
    here, there = two
    with pytest.raises(OSError) as refused:
        there.graph.nodes["disk"].write(0, b"x" * 512)
    assert refused.value.errno == errno.EPERM
    here.graph.nodes["disk"].write(0, b"x" * 512)


def test_activation_needs_the_image_and_sees_what_was_written(two: tuple[BlockLayer, BlockLayer]) -> None:
    here, there = two
    with pytest.raises(QobraError, match="Failed to get"):
        activate_all(there)
    assert there.opens_inactive and there.graph.nodes["disk"].inactive
    here.graph.nodes["disk"].write(0x10000, b"moved" * 1000)
    deactivate_all(here)
    activate_all(there)
    assert there.graph.nodes["disk"].read(0x10000, 5000) == b"moved" * 1000
    there.graph.nodes["disk"].write(0x20000, b"there")
    with pytest.raises(QobraError, match="Failed to get"):
        activate_all(here)
    deactivate_all(there)
    activate_all(here)
    assert here.graph.nodes["disk"].read(0x20000, 5) == b"there"


def test_persistent_bitmaps_are_with_whoever_is_active(two: tuple[BlockLayer, BlockLayer]) -> None:
    from qobra.block.bitmap import DirtyBitmap

    here, there = two
    node, other = here.graph.nodes["disk"], there.graph.nodes["disk"]
    DirtyBitmap(node, "b", 65536, persistent=True)
    node.write(0x10000, b"x" * 512)
    deactivate_all(here)
    assert not node.bitmaps
    activate_all(there)
    assert list(other.bitmaps["b"].dirty_ranges()) == [(0x10000, 0x10000)] and other.bitmaps["b"].enabled


def test_bitmaps_that_have_not_all_come_are_not_stored(two: tuple[BlockLayer, BlockLayer]) -> None:
    from qobra.block.bitmap import DirtyBitmap
    from qobra.migration.bitmaps import BitmapReceiver, BitmapSender

    class Settings:
        mapping = None

    records: list[bytes] = []

    class Out:
        def record(self, _kind: int, *parts: bytes) -> None:
            records.append(b"".join(parts))

    here, there = two
    node, other = here.graph.nodes["disk"], there.graph.nodes["disk"]
    for name in ("whole", "half"):
        DirtyBitmap(node, name, 65536, persistent=True).set(0, 65536)
    sender: Any = BitmapSender(here, Settings())  # type: ignore[arg-type]
    sender.announce(Out())
    sender.send(Out(), lambda: None)
    sender.end(moved=True)
    deactivate_all(here)
    activate_all(there)
    receiver = BitmapReceiver(there, Settings())  # type: ignore[arg-type]
    for record in records[:-1]:
        receiver.take(record)
    assert list(other.bitmaps) == ["whole", "half"] and other.bitmaps["half"].busy
    receiver.give_up()  # as when the program ends in the middle
    deactivate_all(there)
    assert not other.bitmaps
    activate_all(there)
    assert list(other.bitmaps) == ["whole"]


def test_a_length_that_changed_meanwhile_is_seen_above(two: tuple[BlockLayer, BlockLayer]) -> None:
    here, there = two
    there.add_node({"driver": "copy-on-read", "node-name": "above", "file": "disk"})
    here.graph.nodes["disk"].truncate(2 * MIB)
    deactivate_all(here)
    activate_all(there)
    assert there.graph.nodes["above"].length == 2 * MIB


def test_a_user_that_goes_on_writing_keeps_the_disks_here(image: Path) -> None:
    from qobra.block import permissions
    from qobra.block.backend import BlockBackend

    layer = BlockLayer()
    layer.add_node(options(image))
    job = BlockBackend(layer, perm=permissions.WRITE, description="a job")
    job.insert(layer.graph.nodes["disk"])
    with pytest.raises(QobraError, match="Operation not permitted"):
        deactivate_all(layer)
    assert not layer.graph.nodes["disk"].inactive
    layer.graph.nodes["disk"].write(0, b"x")
    job.yields = True
    deactivate_all(layer)
    assert (layer.graph.nodes["disk"].perm, layer.graph.nodes["disk"].inactive) == (0, True)
    activate(layer, layer.graph.nodes.values())
    assert layer.graph.nodes["disk"].perm & permissions.WRITE
    job.remove()
    layer.close()


# -- machines


def with_disk(image: Path) -> Callable[[], Machine]:
    """Makes machines that share a disk: the first uses it, those that follow wait."""
    made: list[Machine] = []

    def make() -> Machine:
        machine = simple_machine("x86_64", "pc", memory=4 << 20)
        with machine.control:
            if made:
                machine.migration.expect()
            machine.block.add_node(options(image))
            machine.board.ready = False
            disk = {"driver": "virtio-blk-pci", "drive": "disk", "addr": "5", "werror": "stop"}
            add_device(machine, disk, keyval=True)
            machine.board.ready = True
        made.append(machine)
        return machine

    return make


def guest_of(machine: Machine) -> tuple[BlockDriver, BoardAccess, Memory]:
    access = BoardAccess(machine)
    function = PciFunction(access, 5 << 3)
    function.enable()
    memory = Memory(1 << 20)
    return BlockDriver(ModernPci(function), memory), access, memory


def test_a_guest_goes_on_with_its_disk(pair_of: Callable[..., Any], image: Path) -> None:
    pair = pair_of(with_disk(image))
    with pair.source.control:
        pair.source.run_state.start()
    driver, _access, _memory = guest_of(pair.source)
    assert driver.request(1, 0, b"before" + bytes(506)) == (0, b"")
    pair.migrate()
    backend = pair.destination.block.graph.nodes["disk"]
    assert backend.read(0, 6) == b"before"
    queue = pair.destination.objects.resolve("/machine/peripheral-anon/device[0]/virtio-backend").queues[0]
    assert queue.ready and queue.ring is not None and queue.position == [1, 1, 1]


def test_requests_that_wait_after_an_error_are_tried_at_the_destination(
    pair_of: Callable[..., Any], image: Path
) -> None:
    pair = pair_of(with_disk(image))
    with pair.source.control:
        pair.source.run_state.start()
    driver, access, memory = guest_of(pair.source)

    def failing(offset: int, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pair.source.block.find_node("disk")._write = failing
    header, status, data = memory.take(16), memory.take(1), memory.take(512)
    access.write(header, (1).to_bytes(4, "little") + bytes(12))
    access.write(data, b"late!" + bytes(507))
    access.write(status, b"\xff")
    driver.queue.send([(header, 16, False), (data, 512, False), (status, 1, True)])
    wait_until(lambda: pair.source.run_state.state == "io-error")
    pair.migrate()
    assert pair.destination.run_state.state == "io-error"
    there = pair.destination.board.memory
    assert there.read(status, 1) == b"\xff"
    with pair.destination.control:
        pair.destination.run_state.cont()
    wait_until(lambda: there.read(status, 1) == b"\0")
    assert pair.destination.block.graph.nodes["disk"].read(0, 5) == b"late!"


def test_bitmaps_move_under_other_names(pair_of: Callable[..., Any]) -> None:
    pair = pair_of()
    pair.set_capability("dirty-bitmaps")
    for machine, name in ((pair.source, "here"), (pair.destination, "there")):
        with machine.control:
            machine.block.add_node({"driver": "null-co", "node-name": name, "size": 64 * MIB, "read-zeroes": True})
    with pair.source.control:
        for name, enabled in (("b", True), ("off", False)):
            dispatch.call(
                pair.source, "block-dirty-bitmap-add", {"node": "here", "name": name, "disabled": not enabled}
            )
        bitmaps = pair.source.block.graph.nodes["here"].bitmaps
        bitmaps["b"].set(5 * MIB, 3 * MIB)
        mapping = [
            {"node-name": "here", "alias": "n", "bitmaps": [{"name": "b", "alias": "x"}, {"name": "off", "alias": "y"}]}
        ]
        pair.source.migration.settings.set_parameters({"block-bitmap-mapping": mapping})
    with pair.destination.control:
        mapping = [
            {
                "node-name": "there",
                "alias": "n",
                "bitmaps": [{"name": "c", "alias": "x"}, {"name": "off", "alias": "y"}],
            }
        ]
        pair.destination.migration.settings.set_parameters({"block-bitmap-mapping": mapping})
    pair.migrate()
    found = pair.destination.block.graph.nodes["there"].bitmaps
    assert list(found["c"].dirty_ranges()) == [(5 * MIB, 3 * MIB)]
    assert (found["c"].enabled, found["off"].enabled, found["c"].busy) == (True, False, False)


def test_in_postcopy_bitmaps_follow_and_note_what_is_written_meanwhile(pair_of: Callable[..., Any]) -> None:
    pair = pair_of()
    pair.set_capability("dirty-bitmaps")
    for machine in (pair.source, pair.destination):
        with machine.control:
            machine.block.add_node({"driver": "null-co", "node-name": "n", "size": 64 * MIB, "read-zeroes": True})
    with pair.source.control:
        pair.source.run_state.start()
        dispatch.call(pair.source, "block-dirty-bitmap-add", {"node": "n", "name": "b"})
        pair.source.block.graph.nodes["n"].bitmaps["b"].set(0, MIB)
    outgoing = pair.start()
    with pair.source.control:
        if not outgoing.ended:
            outgoing.start_postcopy()
    assert pair.source.migration.wait(60) and pair.destination.migration.wait(60)
    assert list(pair.destination.block.graph.nodes["n"].bitmaps["b"].dirty_ranges()) == [(0, MIB)]
    assert pair.destination.run_state.running


def test_after_the_switch_of_postcopy_a_failure_does_not_start_the_guest_here_again(
    pair_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qobra.migration.bitmaps import BitmapSender
    from qobra.migration.outgoing import Outgoing

    def fail(*_args: Any) -> None:
        raise OSError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(BitmapSender, "send", fail)
    monkeypatch.setattr(Outgoing, "_send_while_it_runs", lambda self, _out: self.start_postcopy())
    pair = pair_of()
    pair.set_capability("dirty-bitmaps")
    with pair.source.control:
        pair.source.block.add_node({"driver": "null-co", "node-name": "n", "size": MIB})
        dispatch.call(pair.source, "block-dirty-bitmap-add", {"node": "n", "name": "b"})
        pair.source.run_state.start()
    pair.start()
    assert pair.source.migration.wait(60) and pair.destination.migration.wait(60)
    assert pair.source.migration.describe()["status"] == "failed"
    assert pair.source.run_state.state == "postmigrate"
    assert pair.source.block.graph.nodes["n"].bitmaps["b"].moving
    with pair.source.control:
        dispatch.call(pair.source, "cont", {})
    assert not pair.source.block.graph.nodes["n"].bitmaps["b"].moving


def test_an_unknown_place_of_a_bitmap_is_told_and_the_machine_moves_nevertheless(
    pair_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pair = pair_of()
    pair.set_capability("dirty-bitmaps")
    with pair.source.control:
        pair.source.block.add_node({"driver": "null-co", "node-name": "n", "size": MIB})
        dispatch.call(pair.source, "block-dirty-bitmap-add", {"node": "n", "name": "b"})
    pair.migrate()
    assert "Cannot find device='n' nor node-name='n'" in capsys.readouterr().err
    assert pair.events[pair.destination][-1] == "completed"
