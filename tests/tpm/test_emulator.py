"""The back end on a TPM emulator: what it asks it, and what becomes of answers that cannot be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.testing.tpm import TpmEmulator, connect
from qobra.testing.waiting import wait_until
from qobra.tpm import control_channel as control
from qobra.tpm import messages

_CLOCK = messages.PROBE_20


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[TpmEmulator]:
    made = TpmEmulator(tmp_path)
    yield made
    made.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = simple_machine(memory=1 << 20)
    yield made
    made.close()


def _names(emulator: TpmEmulator) -> list[str]:
    return [control.NAMES[request] for request, _arguments in emulator.requests]


def _execute(machine: Machine, backend: Any, command: bytes, locality: int = 0) -> bytes:
    found: list[bytes] = []
    with machine.control:
        backend.execute(locality, command, found.append)
    wait_until(lambda: bool(found))
    return found[0]


def test_it_is_asked_as_qemu_asks_it(machine: Machine, emulator: TpmEmulator) -> None:
    with machine.control:
        backend = connect(machine, emulator.path)
        assert (backend.is_20, backend.migrates, backend.buffer_size) == (True, True, 4096)
        assert emulator.commands == [(0, messages.PROBE_20)]
        backend.start()
    opened = ["CMD_SET_DATAFD", "CMD_GET_CAPABILITY", "CMD_STOP", "CMD_SET_BUFFERSIZE"]
    assert _names(emulator) == [*opened, "CMD_STOP", "CMD_SET_BUFFERSIZE", "CMD_INIT"]
    assert emulator.requests[-2:] == [(control.SET_BUFFERSIZE, b"\0\0\x10\0"), (control.INIT, bytes(4))]


def test_version_1_2_is_told_apart(machine: Machine, tmp_path: Path) -> None:
    emulator = TpmEmulator(tmp_path, is_20=False)
    with machine.control:
        assert not connect(machine, emulator.path).is_20
    assert [command for _locality, command in emulator.commands] == [messages.PROBE_20, messages.PROBE_12]
    emulator.close()


def test_commands_come_from_their_locality(machine: Machine, emulator: TpmEmulator) -> None:
    with machine.control:
        backend = connect(machine, emulator.path)
        backend.start()
    assert _execute(machine, backend, _CLOCK) == emulator.succeed(_CLOCK)
    assert _execute(machine, backend, _CLOCK, 3) == emulator.succeed(_CLOCK)
    assert _execute(machine, backend, _CLOCK, 3) == emulator.succeed(_CLOCK)
    assert [locality for locality, _command in emulator.commands[1:]] == [0, 3, 3]
    assert _names(emulator).count("CMD_SET_LOCALITY") == 2


@pytest.mark.parametrize("answer", [b"\x80\x01\0\0\0\3\0\0\0\0", b"\x80\x01\x7f\xff\xff\xff\0\0\0\0", bytes(10)])
def test_a_malformed_response_is_a_failure_from_then_on(machine: Machine, emulator: TpmEmulator, answer: bytes) -> None:
    with machine.control:
        backend = connect(machine, emulator.path)
    emulator.answer = lambda _command: answer
    assert _execute(machine, backend, _CLOCK) == messages.FAILURE
    emulator.answer = emulator.succeed
    assert _execute(machine, backend, _CLOCK) == messages.FAILURE


@pytest.mark.parametrize("command", [b"", b"\x80\x01\0\0\0\6", bytes(9)])
@pytest.mark.parametrize("is_20", [True, False])
def test_a_command_without_a_header_never_reaches_the_tpm(
    machine: Machine, tmp_path: Path, command: bytes, is_20: bool
) -> None:
    emulator = TpmEmulator(tmp_path, is_20=is_20)
    with machine.control:
        backend = connect(machine, emulator.path)
    before = len(emulator.commands)
    tag, length, code = messages.HEADER.unpack(_execute(machine, backend, command))
    assert (tag, length, code) == ((0x8001, 10, 0x142) if is_20 else (0x00C4, 10, 0x19))
    assert len(emulator.commands) == before
    emulator.close()


def test_an_emulator_that_leaves_ends_commands(machine: Machine, emulator: TpmEmulator) -> None:
    with machine.control:
        backend = connect(machine, emulator.path)
    emulator.answer = lambda _command: b""  # it does not answer
    found: list[bytes] = []
    with machine.control:
        backend.execute(0, _CLOCK, found.append)
    emulator.close()
    with machine.control:
        backend.finish()
        assert found == [messages.FAILURE]
        with pytest.raises(QobraError, match="CMD_STOP"):
            backend.start()


def test_a_response_is_for_its_own_command_alone(machine: Machine, emulator: TpmEmulator) -> None:
    go_on = threading.Event()
    with machine.control:
        backend = connect(machine, emulator.path)
        first: list[bytes] = []
        second: list[bytes] = []
        backend.execute(0, _CLOCK, first.append)
        backend.finish()
        assert first == [emulator.succeed(_CLOCK)]

        def answer_later(command: bytes) -> bytes:
            go_on.wait(20)
            return b"\x80\1\0\0\0\x0b\0\0\0\0!"

        emulator.answer = answer_later
        backend.execute(0, _CLOCK, second.append)
    # What the first had posted has run by now.
    with machine.control:
        assert (len(first), second, backend.busy) == (1, [], True)
        go_on.set()
        backend.finish()
        assert second == [b"\x80\1\0\0\0\x0b\0\0\0\0!"]


def test_a_silent_emulator_is_asked_once(
    machine: Machine, emulator: TpmEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine.control:
        backend = connect(machine, emulator.path)
        backend.start()
        emulator.silent.add(control.GET_TPMESTABLISHED)
        emulator.requests.clear()
        monkeypatch.setattr(control, "TIMEOUT_SECONDS", 0.02)
        assert [backend.established() for _ in range(3)] == [False] * 3
        with pytest.raises(QobraError, match="CMD_STOP: the emulator is not there"):
            backend.start()
    assert _names(emulator) in ([], ["CMD_GET_TPMESTABLISHED"])  # it may be slower than we were patient


def test_an_emulator_that_answers_no_command_is_not_waited_for(
    machine: Machine, emulator: TpmEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "TIMEOUT_SECONDS", 0.5)
    emulator.answer = lambda _command: b""
    with machine.control, pytest.raises(QobraError, match="the emulator does not answer commands"):
        connect(machine, emulator.path)


def test_the_end_of_the_machine_shuts_it_down(emulator: TpmEmulator) -> None:
    machine = simple_machine(memory=1 << 20)
    with machine.control:
        connect(machine, emulator.path)
    machine.close()
    assert _names(emulator)[-1] == "CMD_SHUTDOWN"


def test_what_it_cannot_do(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    few = TpmEmulator(tmp_path / "few", capabilities=0xFFFF & ~control.CAPABILITY[control.SET_LOCALITY])
    with machine.control:
        with pytest.raises(QobraError, match="minimum set of required capabilities"):
            connect(machine, few.path, id="a")
        assert list(machine.tpms) == []
        stays = TpmEmulator(tmp_path, capabilities=0xFFFF & ~control.CAPABILITY[control.SET_STATEBLOB])
        assert not connect(machine, stays.path, id="b").migrates
    few.close()
    stays.close()


def test_requests_that_fail_are_told(machine: Machine, emulator: TpmEmulator) -> None:
    emulator.results[control.SET_DATAFD] = 9
    with machine.control, pytest.raises(QobraError, match="TPM result for CMD_SET_DATAFD: 0x9"):
        connect(machine, emulator.path)


def test_what_is_refused(machine: Machine, emulator: TpmEmulator) -> None:
    def text(**options: str) -> str:
        with pytest.raises(QobraError) as raised:
            machine.tpms.create(options)
        return raised.value.desc

    with machine.control:
        machine.chardevs.create("none", {"type": "null", "data": {}})
        assert text(type="emulator") == "Parameter 'id' is missing"
        assert text(type="emulator", id="1") == "Parameter 'id' expects an identifier"
        assert text(id="t") == "Parameter 'type' is missing"
        assert text(type="foo", id="t") == "Parameter 'type' expects a TPM backend type"
        assert text(type="emulator", id="t", foo="1") == "Invalid parameter 'foo'"
        assert text(type="emulator", id="t") == "tpm-emulator: parameter 'chardev' is missing"
        assert text(type="emulator", id="t", chardev="c") == "tpm-emulator: tpm chardev 'c' not found"
        assert text(type="emulator", id="t", chardev="none").startswith("tpm-emulator: Failed to send CMD_SET_DATAFD")
        assert machine.chardevs.get("none").available
        path = "/dev/null"
        assert text(type="passthrough", id="t", path=path) == f"'{path}' is not a TPM device."
        gone = text(type="passthrough", id="t", path="/dev/nothing")
        assert gone == "Cannot access TPM device using '/dev/nothing': No such file or directory"
        connect(machine, emulator.path)
        assert text(type="passthrough", id="t") == "Only one TPM is allowed."


def test_state_goes_from_one_to_another(machine: Machine, emulator: TpmEmulator) -> None:
    emulator.blobs[3] = (0, b"")  # as long as nobody has had it keep its state
    with machine.control:
        backend = connect(machine, emulator.path)
        blobs = backend.save()
        assert blobs == [emulator.blobs[kind] for kind in control.STATE_TYPES]
        emulator.requests.clear()
        with pytest.raises(QobraError, match="1 blobs"):
            backend.load([(0, b"")])
        backend.load([(2, b"permanent"), (0, b""), (0, bytes(100_000))])
    assert emulator.blobs == {1: (2, b"permanent"), 2: (0, b"\2" * 200), 3: (0, bytes(100_000))}
    assert _names(emulator) == ["CMD_STOP", *["CMD_SET_STATEBLOB"] * 2, "CMD_INIT"]
    assert emulator.requests[-1] == (control.INIT, (control.INIT_DELETE_VOLATILE).to_bytes(4, "big"))
