"""The qtest protocol: answers as QEMU gives them, refusals where QEMU aborts."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.qtest import QtestSession


class Client:
    def __init__(self, architecture: str = "x86_64", board: str = "pc", **options: Any) -> None:
        self.machine = simple_machine(architecture, board, memory=32 << 20, **options)
        self.answers: list[str] = []
        assert self.machine.board is not None
        self.session = QtestSession(self.machine.board, lambda text: self.answers.append(text.rstrip("\n")))

    def __call__(self, line: str) -> str:
        self.session.receive(line.encode() + b"\n")
        return self.answers[-1]


@pytest.fixture
def client() -> Any:
    client = Client()
    yield client
    client.machine.close()


def test_memory_in_every_width(client: Client) -> None:
    assert client("writeq 0x100000 0x1122334455667788") == "OK"
    assert client("readb 0x100000") == "OK 0x0000000000000088"
    assert client("readw 0x100000") == "OK 0x0000000000007788"
    assert client("readl 0x100000") == "OK 0x0000000055667788"
    assert client("readq 0x100000") == "OK 0x1122334455667788"
    assert client("read 0x100000 0x8") == "OK 0x8877665544332211"
    assert client("write 0x100000 0x4 0xaabbccdd") == "OK"
    assert client("write 0x100000 0x4 0xaabb") == "OK"
    assert client("read 0x100000 0x8") == "OK 0xaabb000044332211"
    assert client("b64read 0x100000 0x8") == "OK qrsAAEQzIhE="
    assert client("b64write 0x100000 0x3 AAAA") == "OK"
    assert client("memset 0x100000 0x2 0x55") == "OK"
    assert client("read 0x100000 0x4") == "OK 0x55550000"
    assert client("readb 0x1000000000000") == "OK 0x0000000000000000"


def test_ports(client: Client) -> None:
    assert client("outl 0xcf8 0x80000000") == "OK"
    assert client("inl 0xcfc") == "OK 0x12378086"
    assert client("inw 0xcfc") == "OK 0x8086"
    assert client("inb 0x70") == "OK 0x00ff"


@pytest.mark.parametrize(
    "line",
    [
        "readb",
        "readb zz",
        "read 0x0 0",
        "read 0x0 0xffffffffffff",
        "write 0x0 0x4 0x",
        "b64write 0x0 0x4 A",
        "clock_step -1",
        "set_irq_in ioapic unnamed-gpio-in 99 1",
        "set_irq_in nowhere unnamed-gpio-in 0 1",
        "module_load a b",
        "bogus",
        "",
        "readb 1_0",
    ],
)
def test_nonsense_is_refused_and_the_session_goes_on(client: Client, line: str) -> None:
    assert client(line).startswith("FAIL")
    assert client("endianness") == "OK little"


def test_lines_may_come_in_pieces(client: Client) -> None:
    client.session.receive(b"read")
    client.session.receive(b"b 0x100000\r\nendian")
    assert client.answers == ["OK 0x0000000000000000"]
    client.session.receive(b"ness\n")
    assert client.answers[-1] == "OK little"


def test_the_clock_moves_only_when_told(client: Client) -> None:
    assert client("clock_step 100") == "OK 100"
    assert client("clock_set 50") == "OK 100"
    assert client("clock_set 1000") == "OK 1000"
    # The next timer is the PIT's: 18.2 times a second.
    assert 1000 < int(client("clock_step").split()[1]) < 60_000_000


def test_intercepted_interrupts_are_reported(client: Client) -> None:
    assert client("irq_intercept_in ioapic") == "OK"
    assert client("irq_intercept_in nowhere") == "FAIL Unknown device"
    assert client("irq_intercept_in rtc") == "FAIL Unknown device"
    # The clock's periodic interrupt, line 8.
    for register, value in ((0x0A, 0x26), (0x0B, 0x42)):
        client(f"outb 0x70 {register:#x}")
        client(f"outb 0x71 {value:#x}")
    client.answers.clear()
    client("clock_step 2000000")
    assert client.answers[0] == "IRQ raise 8"
    client("outb 0x70 0xc")
    client.answers.clear()
    # The update flag beside them, 0x10, is there if a second of the host's began meanwhile.
    assert client("inb 0x71") in ("OK 0x00c0", "OK 0x00d0")
    assert client.answers[0] == "IRQ lower 8"


def test_without_the_qtest_accelerator_there_is_no_clock_to_step() -> None:
    client = Client(accelerator="tcg")
    assert client("clock_step 1") == "FAIL Unknown command 'clock_step'"
    client.machine.close()


def test_the_answer_comes_before_what_the_command_sets_off() -> None:
    client = Client()
    seen: list[str] = []
    client.machine.events.subscribe(lambda event: seen.append(event["event"]))
    client.session._send = lambda text: seen.append(text.split()[0])
    with client.machine.control:
        client.machine.run_state.start()
    del seen[:]
    client.session.command("outb 0xcf9 0x6")  # the reset register
    assert seen == ["OK", "RESET"]
    client.machine.close()


def test_a_digit_that_is_none_sets_bits(client: Client) -> None:
    client("memset 0x100000 4 0")
    assert client("write 0x100000 3 0xzz4zz5") == "OK"
    assert client("read 0x100000 4") == "OK 0xfffff500"


def test_an_empty_block_can_be_filled(client: Client) -> None:
    assert client("memset 0x100000 0 0xcc") == "OK"


def test_the_speaker_shows_the_third_counter(client: Client) -> None:
    looks = [int(client("inb 0x61")[3:], 16) for _ in range(2)]
    assert [look ^ looks[0] for look in looks] == [0, 0x10]  # memory is refreshed meanwhile
    assert looks[0] & 0x2F == 0x20
    client("outb 0x61 0xff")
    assert int(client("inb 0x61")[3:], 16) & 0x0F == 3
    client("outb 0x43 0xb0")  # mode 0 lets the output fall until the count is over
    client("outb 0x42 2")
    client("outb 0x42 0")
    assert not int(client("inb 0x61")[3:], 16) & 0x20
    client("clock_step 1000000")
    assert int(client("inb 0x61")[3:], 16) & 0x20
