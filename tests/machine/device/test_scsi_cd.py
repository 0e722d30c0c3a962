"""CDs on a SCSI bus: what is told first, what is not kept waiting for that, how much comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.machine.scsi import sense
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction
from qobra.testing.guest_drivers import ScsiDriver

_TEST_UNIT_READY = bytes(6)
_REQUEST_SENSE = bytes((0x03, 0, 0, 0, 18, 0))
_EVENTS = bytes((0x4A, 1, 0, 0, 0x10, 0, 0, 0, 32, 0))


class Cd:
    """A CD drive without a medium, and the driver of its host adapter."""

    def __init__(self, machine: Any) -> None:
        function = PciFunction(BoardAccess(machine), 5 << 3)
        function.enable()
        self._driver = ScsiDriver(ModernPci(function), Memory())
        self.device: Any = machine.objects.resolve("/machine/peripheral/cd")

    def run(self, cdb: bytes, read: int = 0) -> tuple[int, tuple[int, int, int], bytes]:
        """Status, sense key with its codes, and data."""
        _response, status, sense, data = self._driver.command(cdb, read=read)
        return status, (sense[2], sense[12], sense[13]) if status else (0, 0, 0), data


@pytest.fixture
def cd() -> Iterator[Cd]:
    machine = simple_machine("x86_64", "pc", memory=16 << 20)
    board: Any = machine.board
    with machine.control:
        board.ready = False
        add_device(machine, {"driver": "virtio-scsi-pci", "addr": "5"}, keyval=True)
        add_device(machine, {"driver": "scsi-cd", "id": "cd"}, keyval=True)
        board.ready = True
    yield Cd(machine)
    machine.close()


def test_events_and_profiles_can_be_asked_for_before_an_attention_was_told(cd: Cd) -> None:
    assert cd.device.attention == sense.RESET_OCCURRED
    assert cd.run(_EVENTS, 32)[0] == 0
    assert cd.run(bytes((0x46, 0, 0, 0, 0, 0, 0, 0, 64, 0)), 64)[0] == 0
    assert cd.device.attention == sense.RESET_OCCURRED
    assert cd.run(_TEST_UNIT_READY)[1] == sense.RESET_OCCURRED
    assert cd.device.attention is None


def test_a_change_of_the_medium_waits_behind_a_reset_but_not_the_other_way_round(cd: Cd) -> None:
    cd.device.tray_moved()
    assert cd.run(_TEST_UNIT_READY)[1] == sense.RESET_OCCURRED
    cd.device.tray_moved()
    cd.device.reset()
    assert cd.run(_TEST_UNIT_READY)[1] == sense.RESET_OCCURRED


def test_an_attention_is_told_once_and_a_failure_again(cd: Cd) -> None:
    assert cd.run(_REQUEST_SENSE, 18)[1] == sense.RESET_OCCURRED
    assert cd.run(_REQUEST_SENSE, 18) == (0, (0, 0, 0), sense.Sense(0, 0).data())
    assert cd.run(_TEST_UNIT_READY)[1] == sense.NO_MEDIUM
    assert cd.run(_REQUEST_SENSE, 18)[2] == sense.Sense(*sense.NO_MEDIUM).data()


def test_an_open_tray_is_no_medium(cd: Cd) -> None:
    cd.run(_TEST_UNIT_READY)
    cd.device.move_tray(True)
    assert cd.run(_TEST_UNIT_READY)[1] == sense.MEDIUM_GONE
    assert cd.run(_TEST_UNIT_READY)[1] == sense.NO_MEDIUM


def test_a_reset_closes_the_tray_and_keeps_the_event(cd: Cd) -> None:
    cd.device.move_tray(True)
    cd.device.move_tray(False)
    cd.device.reset()
    assert cd.run(_EVENTS, 32)[2][4] == 2
    assert cd.run(_EVENTS, 32)[2][4] == 0


def test_answers_are_filled_up_to_what_the_command_allows(cd: Cd) -> None:
    cd.run(_TEST_UNIT_READY)
    status, _sense, data = cd.run(_EVENTS, 100)
    assert (status, data[:4], len(data)) == (0, b"\0\x04\x04\x10", 32)
    data = cd.run(bytes((0x12, 0, 0, 0, 64, 0)), 64)[2]
    assert (len(data), data[4]) == (64, 59)
    assert cd.run(bytes((0x12, 0, 0, 0, 20, 0)), 20)[2][4] == 31


def test_what_drives_refuse(cd: Cd) -> None:
    cd.run(_TEST_UNIT_READY)
    assert cd.run(bytes((0x01, 0, 0, 0, 0, 0)))[1] == sense.INVALID_OPCODE
    assert cd.run(bytes((0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0)), 8)[1] == sense.INVALID_FIELD
    assert cd.run(bytes((0x16, 1, 0, 0, 0, 0)))[1] == sense.INVALID_FIELD
    assert cd.run(bytes((0x9E, 0x11, *bytes(11), 8, 0, 0)), 8)[1] == sense.INVALID_FIELD
    assert cd.run(bytes((0x55, 0, 0, 0, 0, 0, 0, 0, 0, 0)))[0] == 0
