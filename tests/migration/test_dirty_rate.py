"""How fast memory changes, on a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.qmp import dispatch, hmp

SIZE = 16 << 20


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = simple_machine("riscv64", "virt", memory=SIZE)
    yield machine
    machine.close()


def call(machine: Machine, name: str, **args: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, name, {key.replace("_", "-"): value for key, value in args.items()})


def test_bounds(machine: Machine) -> None:
    assert call(machine, "query-dirty-rate") == {
        "status": "unstarted", "start-time": 0, "calc-time": 0, "sample-pages": 0, "mode": "page-sampling",
    }  # fmt: skip
    for args, text in (
        ({"calc_time": 0}, r"calc-time is out of range\[1, 60\]\."),
        ({"calc_time": 61}, r"calc-time is out of range\[1, 60\]\."),
        (
            {"calc_time": 1, "sample_pages": 127, "mode": "dirty-bitmap"},
            r"sample-pages is out of range\[128, 16384\]\.",
        ),
        ({"calc_time": 1, "sample_pages": 127}, r"sample-pages is out of range\[128, 16384\]\."),
        ({"calc_time": 1, "mode": "dirty-ring"}, "mode dirty-ring is not enabled, use other method instead."),
    ):
        with pytest.raises(QobraError, match=f"^{text}$"):
            call(machine, "calc-dirty-rate", **args)


@pytest.mark.parametrize(("written", "least", "most"), [(0, 0, 0), (SIZE, 5, 8), (SIZE // 2, 1, 6)])
def test_what_was_written_meanwhile_counts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, written: int, least: int, most: int
) -> None:
    board: Any = machine.board
    ends = []
    now = [5_000_000_000]
    monkeypatch.setattr(machine.clock, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr(machine.control, "call_later", lambda delay_ns, call: ends.append((delay_ns, call)))
    call(machine, "calc-dirty-rate", calc_time=2, sample_pages=16384)
    with pytest.raises(QobraError, match="the dirty rate is already being measured."):
        call(machine, "calc-dirty-rate", calc_time=1)
    assert call(machine, "query-dirty-rate")["status"] == "measuring"
    board.memory.write(0x80000000, b"\x77" * written)
    now[0] += 2_000_000_000
    ((delay_ns, end),) = ends
    assert delay_ns == 2_000_000_000
    with machine.control:
        end()
    info = call(machine, "query-dirty-rate")
    assert least <= info.pop("dirty-rate") <= most
    assert info == {
        "status": "measured", "start-time": 5, "calc-time": 2, "sample-pages": 16384, "mode": "page-sampling",
    }  # fmt: skip
    assert "Status: measured" in hmp.execute(machine, "info dirty_rate")
