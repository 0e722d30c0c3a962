"""The FIFO interface: whose turn it is, commands in and responses out, interrupts; and what moves with a machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device, remove_device
from qobra.migration import machine_state
from qobra.testing.guest import BoardAccess
from qobra.testing.tpm import TpmEmulator, connect
from qobra.testing.waiting import wait_until
from qobra.tpm import control_channel as control
from qobra.tpm import messages

_BASE = 0xFED40000
_COMMAND = bytes.fromhex("80010000000c0000017b0010")


class Guest:
    """A machine with a TPM device on an emulator in this process."""

    def __init__(self, directory: Path, model: str = "tpm-tis", *, is_20: bool = True, **options: str) -> None:
        directory.mkdir(exist_ok=True)
        self.emulator = TpmEmulator(directory, is_20=is_20)
        self.machine: Machine = simple_machine(memory=1 << 20)
        self.access = BoardAccess(self.machine)
        with self.machine.control:
            connect(self.machine, self.emulator.path)
            board = self.machine.board
            assert board is not None
            board.ready = False
            self.device = add_device(
                self.machine, {"driver": model, "id": "tpm", "tpmdev": "tpm0"} | options, keyval=True
            )
            board.ready = True
            board.reset_all()

    def close(self) -> None:
        self.machine.close()
        self.emulator.close()

    def get(self, register: int, locality: int = 0, width: int = 4) -> int:
        return self.access.load(_BASE + (locality << 12) + register, width)

    def set(self, register: int, value: int, locality: int = 0, width: int = 4) -> None:
        self.access.store(_BASE + (locality << 12) + register, width, value)

    def send(self, command: bytes, locality: int = 0) -> None:
        self.set(0x18, 0x40, locality)
        for value in command:
            self.set(0x24, value, locality, 1)
        self.set(0x18, 0x20, locality)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path)
    yield made
    made.close()


def test_localities_take_turns(guest: Guest) -> None:
    def shown() -> list[int]:
        return [guest.get(0, n, 1) for n in range(5)]

    assert shown() == [0x81] * 5
    guest.set(0, 0x02, 0, 1)
    guest.set(0, 0x02, 1, 1)
    assert shown() == [0xA5, 0x83, 0x85, 0x85, 0x85]
    guest.set(0, 0x08, 2, 1)  # seizes
    assert shown() == [0x95, 0x83, 0xA5, 0x85, 0x85]
    guest.set(0, 0x08, 1, 1)  # is not above
    assert shown() == [0x95, 0x83, 0xA5, 0x85, 0x85]
    guest.set(0, 0x20, 2, 1)
    assert shown() == [0x91, 0xA1, 0x81, 0x81, 0x81]
    guest.set(0, 0x22, 1, 1)  # gives back, and cannot ask at once
    assert shown() == [0x91, 0x81, 0x81, 0x81, 0x81]
    guest.set(0, 0xFF, 4, 1)  # belongs to hardware
    assert shown() == [0x91, 0x81, 0x81, 0x81, 0x81]


def test_a_command(guest: Guest) -> None:
    guest.set(0, 0x02, 0, 1)
    guest.set(0x18, 0x40)
    assert guest.get(0x18) == 0x04100040
    for number, value in enumerate(_COMMAND, 1):
        guest.set(0x24, value, 0, 1)
        assert guest.get(0x18) == 0x04000000 | 4096 - number << 8 | (0x88 if number < len(_COMMAND) else 0x80)
    guest.set(0x24, 0xFF, 0, 1)  # one too many is lost
    guest.set(0x18, 0x20)
    wait_until(lambda: bool(guest.get(0x18, width=1) & 0x10))
    assert guest.emulator.commands[-1] == (0, _COMMAND)
    assert [guest.get(0x24), guest.get(0x80), guest.get(0x24, width=2)] == [0x00000180, 0x00000A00, 0]
    assert (guest.get(0x18, width=1), guest.get(0x24, width=1)) == (0x80, 0xFF)
    guest.set(0x18, 0x02)  # again from the start
    assert guest.get(0x18) == 0x04000A90
    guest.set(0x18, 0x40)
    assert guest.get(0x18, width=1) == 0x40


def test_interrupts(guest: Guest) -> None:
    levels: list[int] = []
    with guest.machine.control:
        guest.machine.board.gsi[5].intercept(levels.append)  # type: ignore[union-attr]
    guest.set(0, 0x02, 0, 1)
    guest.set(0x08, 0x80000081)
    guest.send(_COMMAND)
    wait_until(lambda: guest.get(0x10) == 0x81)
    guest.set(0x10, 0x81)
    assert levels[0] == 1
    assert levels[-1] == 0
    assert guest.get(0x08) == 0x80000081
    assert guest.get(0x0C) == 5


def test_another_locality_waits_for_the_end_of_a_command(guest: Guest) -> None:
    emulator = guest.emulator

    def answer_once_cancelled(command: bytes) -> bytes:
        wait_until(lambda: control.CANCEL_TPM_CMD in [request for request, _arguments in emulator.requests])
        return emulator.succeed(command)

    emulator.answer = answer_once_cancelled
    guest.set(0, 0x02, 0, 1)
    guest.send(_COMMAND)
    guest.set(0, 0x08, 1, 1)
    wait_until(lambda: guest.get(0, 1, 1) & 0x20 == 0x20)
    assert guest.get(0, 0, 1) & 0x30 == 0x10


def test_the_self_test_of_version_1_2_is_remembered(tmp_path: Path) -> None:
    guest = Guest(tmp_path, is_20=False)
    guest.set(0, 0x02, 0, 1)
    guest.send(bytes.fromhex("00c10000000a00000053"))
    wait_until(lambda: bool(guest.get(0x18, width=1) & 0x10))
    assert guest.get(0x18, width=1) == 0x94
    assert guest.get(0x14) == 0x20000697
    guest.close()


def test_what_is_refused(guest: Guest) -> None:
    with guest.machine.control:
        board = guest.machine.board
        assert board is not None
        with pytest.raises(QobraError, match="does not support hotplugging|pluggable"):
            remove_device(guest.machine, "tpm")
        board.ready = False
        for options, text in (
            ({}, "'tpmdev' property is required"),
            ({"tpmdev": "zz"}, "can't find value 'zz'"),
            ({"tpmdev": "tpm0"}, "TPM backend 'tpm0' is already initialized"),
        ):
            with pytest.raises(QobraError, match=text):
                add_device(guest.machine, {"driver": "tpm-crb"} | options, keyval=True)


@pytest.mark.parametrize("model", ["tpm-tis", "tpm-crb"])
def test_state_moves(tmp_path: Path, model: str) -> None:
    here, there = Guest(tmp_path / "here", model), Guest(tmp_path / "there", model)
    here.set(0x00 if model == "tpm-tis" else 0x08, 0x02 if model == "tpm-tis" else 1, 0, 1)
    if model == "tpm-tis":
        here.send(_COMMAND)
        wait_until(lambda: bool(here.get(0x18, width=1) & 0x10))
        here.get(0x24)
    else:
        here.access.write(_BASE + 0x80, _COMMAND)
    here.access.store(0xFED45100, 4, 0x1234)
    here.emulator.blobs[1] = (2, b"keys")
    registers = [*range(0, 0x24, 4), *range(0x40, 0x4C, 4)]
    shown = [here.get(register) for register in registers]
    records = {}
    with here.machine.control:
        saved = machine_state.save_devices(here.machine, "running")
    for kind, record in saved:
        records.setdefault(kind, []).append(bytes(record))
    with there.machine.control:
        machine_state.load_devices(there.machine, records[machine_state.MACHINE][0], records[machine_state.DEVICE])
    assert [there.get(register) for register in registers] == shown
    assert there.access.load(0xFED45100, 4) == 0x1234
    assert there.emulator.blobs[1] == (2, b"keys")
    if model == "tpm-tis":
        assert there.get(0x24) == 0x00000A00
    here.close()
    there.close()


def test_memory_is_overwritten_at_a_reset_that_was_asked_for(guest: Guest) -> None:
    guest.access.write(0x80000, b"secret")
    with guest.machine.control:
        guest.machine.board.reset_all()  # type: ignore[union-attr]
    assert guest.access.read(0x80000, 6) == b"secret"
    guest.access.store(0xFED4515A, 1, 1)
    with guest.machine.control:
        guest.machine.board.reset_all()  # type: ignore[union-attr]
    assert guest.access.read(0x80000, 6) == bytes(6)


def test_a_tpm_that_is_gone_fails_commands(guest: Guest) -> None:
    guest.emulator.close()
    guest.set(0, 0x02, 0, 1)
    guest.send(_COMMAND)
    wait_until(lambda: bool(guest.get(0x18, width=1) & 0x10))
    assert bytes(guest.get(0x24, width=1) for _ in range(10)) == messages.FAILURE
