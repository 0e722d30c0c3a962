"""Snapshots of whole machines in qcow2 images."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.block.activation import deactivate_all
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.migration import snapshots
from qobra.migration.machine_state import load_devices, save_devices, state_owners
from qobra.qmp import dispatch
from qobra.qmp.hmp import execute
from qobra.testing.waiting import wait_until


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = simple_machine("x86_64", "pc", memory=1 << 20)
    with made.control:
        for name in ("one", "two"):
            file = {"driver": "file", "filename": str(tmp_path / name)}
            (tmp_path / name).touch()
            node = made.block.add_node({**file, "node-name": f"{name}-file"})
            from qobra.block.format.qcow2.node import Qcow2Node

            made.block.delete_node(node.node_name)
            make(Qcow2Node, made, file)
            made.block.add_node({"driver": "qcow2", "node-name": name, "file": file})
        made.board.ready = False
        add_device(made, {"driver": "virtio-blk-pci", "drive": "one", "id": "disk"}, keyval=True)
        made.board.ready = True
    yield made
    made.close()


def make(cls: Any, machine: Machine, file: dict[str, Any]) -> None:
    """An empty image of 1 MiB."""
    machine.block.add_node({**file, "node-name": "new"})
    dispatch.call(
        machine,
        "blockdev-create",
        {"job-id": "make", "options": {"driver": "qcow2", "file": "new", "size": 1 << 20}},
    )
    with_job_done(machine, "make")
    machine.block.delete_node("new")


def with_job_done(machine: Machine, job_id: str) -> None:
    import time

    deadline = time.monotonic() + 60
    while (job := machine.block.jobs.find(job_id)).status != "concluded":
        assert time.monotonic() < deadline
        machine.control.serve()
        time.sleep(0.001)
    assert job.error is None, job.error
    dispatch.call(machine, "job-dismiss", {"id": job_id})


def write(machine: Machine, node: str, data: bytes) -> None:
    machine.block.graph.nodes[node].write(0, data)


def test_save_and_load_bring_memory_devices_disks_and_time_back(machine: Machine) -> None:
    with machine.control:
        board = machine.board
        machine.run_state.start()
        board.memory.write(0x1000, b"then")
        board.ports.store(0x70, 1, 0x3C)
        board.clock.set(7_000_000_000)
        write(machine, "one", b"disk then")
        snapshots.save(machine, "s")
        assert machine.run_state.running
        board.memory.write(0x1000, b"now!")
        board.ports.store(0x71, 1, 0x99)
        board.ports.store(0x70, 1, 0x00)
        board.clock.set(9_000_000_000)
        write(machine, "one", b"disk now!")
        write(machine, "two", b"more")
        snapshots.load(machine, "s")
        assert board.memory.read(0x1000, 4) == b"then"
        assert board.ports.load(0x71, 1) != 0x99
        assert board.clock.now_ns() == 7_000_000_000
        assert machine.block.graph.nodes["one"].read(0, 9) == b"disk then"
        assert machine.block.graph.nodes["two"].read(0, 4) == bytes(4)
        assert machine.run_state.running


def test_the_state_lies_in_one_image_only_and_qemu_img_sees_it(machine: Machine, tmp_path: Path) -> None:
    with machine.control:
        machine.board.clock.set(61_000_000_000)
        snapshots.save(machine, "s")
        (one,), (two,) = (machine.block.graph.nodes[name].snapshot_list() for name in ("one", "two"))
        sizes = sorted((one["vm-state-size"], two["vm-state-size"]))
        assert sizes[0] == 0 and sizes[1] > 1000
        assert one["vm-clock-sec"] == two["vm-clock-sec"] == 61
        machine.block.graph.nodes["one"].flush()
    from shutil import which

    if which("qemu-img") is None:
        pytest.skip("qemu-img is not there to be asked")
    shown = subprocess.run(
        ["qemu-img", "snapshot", "-U", "-l", str(tmp_path / "one")], capture_output=True, text=True, check=True
    ).stdout
    assert "00:01:01.000" in shown and " s " in shown


def test_saving_again_replaces_and_deleting_deletes_everywhere(machine: Machine) -> None:
    with machine.control:
        snapshots.save(machine, "s")
        snapshots.save(machine, "s")
        assert [len(machine.block.graph.nodes[name].snapshot_list()) for name in ("one", "two")] == [1, 1]
        snapshots.delete(machine, "s")
        snapshots.delete(machine, "s")
        assert [len(machine.block.graph.nodes[name].snapshot_list()) for name in ("one", "two")] == [0, 0]


def test_monitor(machine: Machine) -> None:
    assert execute(machine, "info snapshots") == "There is no snapshot available.\r\n"
    assert execute(machine, "savevm s") == ""
    assert execute(machine, "info snapshots").startswith("List of snapshots present on all disks:\r\nID")
    assert execute(machine, "loadvm t") == "Error: Snapshot 't' does not exist in one or more devices\r\n"
    assert execute(machine, "loadvm s") == ""
    assert execute(machine, "delvm s") == ""
    assert execute(machine, "info snapshots") == "There is no snapshot available.\r\n"


def test_jobs(machine: Machine) -> None:
    with machine.control:
        machine.board.memory.write(0x1000, b"then")
        arguments = {"tag": "s", "vmstate": "two", "devices": ["one", "two"]}
    with machine.control:
        dispatch.call(machine, "snapshot-save", {"job-id": "a", **arguments})
    wait(machine, "a", None)
    machine.board.memory.write(0x1000, b"now!")
    with machine.control:
        dispatch.call(machine, "snapshot-save", {"job-id": "b", **arguments})
    wait(machine, "b", "Snapshot 's' already exists in one or more devices")
    with machine.control:
        dispatch.call(machine, "snapshot-load", {"job-id": "c", **arguments})
    wait(machine, "c", None)
    assert machine.board.memory.read(0x1000, 4) == b"then"
    with machine.control:
        dispatch.call(machine, "snapshot-delete", {"job-id": "d", "tag": "s", "devices": ["one", "two"]})
    wait(machine, "d", None)
    assert machine.block.graph.nodes["two"].snapshot_list() == []


def test_a_machine_ends_while_a_job_waits_for_its_turn(machine: Machine) -> None:
    arguments = {"tag": "s", "vmstate": "two", "devices": ["one", "two"]}

    def end() -> None:
        with machine.control:
            dispatch.call(machine, "snapshot-save", {"job-id": "a", **arguments})
            machine.block.jobs.close()

    ender = threading.Thread(target=end, daemon=True)
    ender.start()
    ender.join(10)
    assert not ender.is_alive()
    assert machine.block.graph.nodes["two"].snapshot_list() == []


def wait(machine: Machine, job_id: str, error: str | None) -> None:
    job = machine.block.jobs.find(job_id)
    wait_until(lambda: job.status == "concluded", 60)
    assert (str(job.error) if job.error is not None else None) == error


def test_refusals(machine: Machine) -> None:
    with machine.control:
        machine.block.add_node({"driver": "null-co", "node-name": "plain"})
        with pytest.raises(QobraError, match="Device 'plain' is writable but does not support snapshots"):
            snapshots.save(machine, "s")
        machine.block.graph.nodes["one"].snapshot_create("disk-only")
        machine.block.graph.nodes["two"].snapshot_create("disk-only")
    # A disk without snapshots has none of those that the others have.
    shown = execute(machine, "info snapshots")
    assert "present on all disks:\r\nNone\r\n" in shown and "snapshots on 'one'" in shown and "'plain'" not in shown
    with machine.control:
        machine.block.delete_node("plain")
        with pytest.raises(QobraError, match="This is a disk-only snapshot. Revert to it  offline using qemu-img"):
            snapshots.load(machine, "disk-only")
        with pytest.raises(QobraError, match="vmstate block device 'three' does not exist"):
            snapshots.save(machine, "s", vmstate="three", devices=["one"])
    bare = simple_machine("x86_64", "pc", memory=1 << 20)
    try:
        with bare.control, pytest.raises(QobraError, match="no block device can store vmstate for snapshot"):
            snapshots.save(bare, "s")
    finally:
        bare.close()


def test_images_of_another_process_have_no_snapshots_taken(machine: Machine) -> None:
    with machine.control:
        snapshots.save(machine, "s")
        deactivate_all(machine.block)
        for call in (snapshots.save, snapshots.load, snapshots.delete):
            with pytest.raises(QobraError, match="Device '(disk|one|two)' is writable but does not support snapshots"):
                call(machine, "s")
    assert execute(machine, "info snapshots") == "no block device can store vmstate for snapshot\r\n"
    assert len(machine.block.graph.nodes["two"].snapshot_list()) == 1


def test_a_damaged_state_is_one_error_and_the_machine_stands_still(machine: Machine) -> None:
    with machine.control:
        machine.run_state.start()
        snapshots.save(machine, "s")
        image = next(
            machine.block.graph.nodes[name]
            for name in ("one", "two")
            if machine.block.graph.nodes[name].snapshot_list()[0]["vm-state-size"]
        )
        read = image.read_vm_state
        image.read_vm_state = lambda position, length: bytes(len(read(position, length)))
        with pytest.raises(QobraError, match="Error while loading VM state: Not a migration stream"):
            snapshots.load(machine, "s")
        assert machine.run_state.state == "restore-vm"


@pytest.mark.parametrize(("board", "place"), [("q35", {"bus": "ide.%d"}), ("pc", {"bus": "ide.%d", "unit": "1"})])
def test_disks_of_one_controller_are_told_apart(tmp_path: Path, board: str, place: dict[str, str]) -> None:
    made = simple_machine("x86_64", board, memory=1 << 20)
    with made.control:
        made.board.ready = False
        for number in (0, 1):
            made.block.add_node({"driver": "null-co", "node-name": f"disk{number}", "size": 1 << 20})
            where = {key: value.replace("%d", str(number)) for key, value in place.items()}
            add_device(made, {"driver": "ide-hd", "drive": f"disk{number}"} | where, keyval=True)
        made.board.ready = True
        names = [name for name, _owner in state_owners(made.board)]
        assert len(names) == len(set(names))
        (head, *sections) = [bytes(payload) for _kind, payload in save_devices(made, "paused")]
        assert load_devices(made, head, sections) == "paused"
    made.close()
