"""The human monitor's arguments: expressions, formats, sizes; what belongs to one monitor."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.qmp import hmp
from qobra.qmp.hmp_expression import BadExpression, evaluate, signed


@pytest.fixture(scope="module")
def machine() -> Iterator[Any]:
    machine = simple_machine("x86_64", "pc", memory=2 << 20)
    yield machine
    machine.close()


def _value(text: str) -> int:
    value, rest = evaluate(text, {"eip": 0xFFF0, "cs.base": 0xFFFF0000}.get)
    assert rest == ""
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", 7),
        ("2*3+4&6", 10),  # & binds tighter than *
        ("7/-2", -3),
        ("-7%3", -1),
        ("5--3", 8),
        ("~1", -2),
        ("-(3)", -3),
        ("'a'", 97),
        ("010", 8),
        ("0x10", 16),
        ("$eip+$cs.base", 0xFFFFFFF0),
        ("0xffffffffffffffff", -1),
        ("0x7fffffffffffffff + 1", -(1 << 63)),
        (" 1 + 2 ", 3),
    ],
)
def test_expressions(text: str, value: int) -> None:
    assert _value(text) == value


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "unexpected end of expression"),
        ("1+", "unexpected end of expression"),
        ("(1", "')' expected"),
        ("5/0", "division by zero"),
        ("5%0", "division by zero"),
        ("'ab'", "missing terminating ' character"),
        ("'", "character constant expected"),
        ("$nope", "unknown register"),
        ("$", "unknown register"),
        ("@", "invalid char '@' in expression"),
        ("18446744073709551616", "number too large"),
        ("0" * 5000, "number too large"),
        ("-" * 500 + "1", "expression is too deep"),
        ("(" * 500, "expression is too deep"),
    ],
)
def test_what_is_no_expression(text: str, error: str) -> None:
    with pytest.raises(BadExpression) as caught:
        evaluate(text, lambda name: None)
    assert str(caught.value) == error


def test_what_follows_an_expression_is_left() -> None:
    for text, rest in (("1 2", "2"), ("0x", "x"), ("08", "8"), ("1e5", "e5"), ("5)", ")")):
        assert evaluate(text, lambda name: None)[1] == rest


def test_sums_at_random() -> None:
    chance = random.Random(5)
    for _ in range(200):
        numbers = [chance.randrange(1 << 20) for _ in range(chance.randint(1, 6))]
        signs = [chance.choice("+-") for _ in numbers[1:]]
        text = str(numbers[0]) + "".join(f" {sign}{number:#x}" for sign, number in zip(signs, numbers[1:], strict=True))
        expected = numbers[0] + sum(n if s == "+" else -n for s, n in zip(signs, numbers[1:], strict=True))
        assert _value(text) == signed(expected)


def _run(machine: Any, line: str, monitor: hmp.HmpMonitor | None = None) -> str:
    return hmp.execute(machine, line, monitor).replace("\r\n", "\n")


def test_formats_stay_until_another_is_given(machine: Any) -> None:
    assert _run(machine, "p /x 255") == "0xff\n"
    assert _run(machine, "p 255") == "0xff\n"
    assert _run(machine, "p /d -1") == "-1\n"
    assert _run(machine, "p/u -1") == "18446744073709551615\n"
    assert _run(machine, "p /o 8") == "010\n"
    assert [_run(machine, f"p /c {n}") for n in (65, 10, 39, 0, 255, -1)] == [
        *("'A'\n", "'\\n'\n", "'\\''\n", "'\\x00'\n", "'\\xff'\n", "'\\xffffffff'\n")
    ]
    assert _run(machine, "p /q 1") == "invalid char in format: 'q'\nTry \"help p\" for more information\n"
    _run(machine, "p /xw 0")


def test_memory_as_numbers(machine: Any) -> None:
    machine.board.memory.write(4096, bytes(range(0xF0, 0x100)))
    for line, text in (
        ("xp/2xg 0x1000", "0xf7f6f5f4f3f2f1f0 0xfffefdfcfbfaf9f8"),
        ("x /2dw 4*1024", "4092785136 4160157172"),
        ("x /1dg 4096", f"{-0x08090A0B0C0D0E10:20}"),
        ("x /4oh 4096", "0170760 0171762 0172764 0173766"),
        ("x /3ub 4096", "240 241 242"),
        ("x /2cb 4110", "'\\xfe' '\\xff'"),
    ):
        assert _run(machine, line).split(": ", 1)[1].strip("\n") == text
    assert _run(machine, "x /4xw 0x7fffffff0") == "00000007fffffff0: Cannot access memory\n"
    assert _run(machine, "x /999999xg 0") == "Error: no more than 1048576 bytes are shown at a time\n"
    assert _run(machine, "x /0xw 0") == ""


def test_mebibytes(machine: Any) -> None:
    assert _run(machine, "balloon -5").startswith("enter a positive value\n")
    assert _run(machine, "balloon 5+5") == "Error: No balloon device has been activated\n"
    assert _run(machine, "balloon 5K").startswith("balloon: extraneous characters at the end of line\n")


def test_a_monitor_looks_at_one_cpu() -> None:
    machine = simple_machine("x86_64", "pc", memory=2 << 20, cpus=2)
    monitor = hmp.HmpMonitor()
    try:
        assert _run(machine, "cpu 2", monitor) == "invalid CPU index\n"
        assert _run(machine, "cpu 1", monitor) == ""
        assert _run(machine, "info registers", monitor).startswith("\nCPU#1\nEAX=00000000")
        assert _run(machine, "info cpus", monitor).startswith("  CPU #0")
        assert _run(machine, "info registers").startswith("\nCPU#0\n")
        assert _run(machine, "info registers 7") == "CPU#7 not available\n"
        assert _run(machine, "info registers -a").count("EIP=0000fff0") == 2
    finally:
        machine.close()


def test_addresses(machine: Any) -> None:
    import ctypes

    machine.board.memory.write(0x1234, b"here")
    text = _run(machine, "gpa2hva 0x1234")
    assert text.startswith("Host virtual address for 0x1234 (pc.ram) is 0x")
    assert ctypes.string_at(int(text.split()[-1], 16), 4) == b"here"
    assert _run(machine, "gpa2hva 0x7fffffff0") == "No memory is mapped at address 0x7fffffff0\n"
    assert _run(machine, "gpa2hva 0xfec00000") == "Memory at address 0xfec00000 is not RAM\n"
    assert _run(machine, "gva2gpa 0") == "gpa: 0\n"
    assert _run(machine, "gva2gpa -1") == "gpa: 0xfffffffffffff\n"
    physical = _run(machine, "gpa2hpa 0x1234")
    assert physical.startswith(("Host physical address for 0x1234 (pc.ram) is 0x", "Error: "))
