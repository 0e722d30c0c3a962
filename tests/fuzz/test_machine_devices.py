"""Hostile guests: every device that there is, found in the registry, so that none can be forgotten.

More of the same, as long as one likes: ``python -m qobra.testing.hostile``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.machine.devices import registry
from qobra.testing.hostile.target import BOARDS, Access, Target, devices, draw, own_devices


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    made = Target(request.param, tmp_path)
    yield made
    made.close()


_VALUE = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 2, 3, 4, 7, 0x80, 0xFF, 0x100, 0x200, 0xFFFF, 0x10000, 0x100000, 0xE0000000, 0xFFFFFFFF]),
)
_ACCESS = st.tuples(
    st.integers(0, 255), st.integers(0, 1 << 16), st.sampled_from([1, 2, 4, 8]), _VALUE, st.integers(0, 12)
)


@pytest.mark.soak
@pytest.mark.parametrize("target", devices(), indirect=True)
def test_a_hostile_guest(target: Target, capfd: pytest.CaptureFixture[str]) -> None:
    @given(st.lists(_ACCESS, max_size=40), st.integers(0, 1 << 32))
    def attack(accesses: list[Access], seed: int) -> None:
        target.attack(seed, accesses)

    attack()
    assert "Traceback" not in capfd.readouterr().err


def test_every_device_has_a_board() -> None:
    plugged = {name for name in devices() if getattr(registry.find(name), "pluggable", False)}
    boards = set().union(*map(own_devices, BOARDS))
    assert set(devices()) <= plugged | boards


def test_rounds_follow_from_their_seeds() -> None:
    assert draw(7, 20) == draw(7, 20) != draw(8, 20)


def test_a_run_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = [sys.executable, "-m", "qobra.testing.hostile", "--device", "port92", "--device", "ib700"]
    for count in (1, 2):
        arguments = ["--count", str(count), "--length", "5", "--state", str(state)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == f"2 rounds, 0 went wrong; next seed {count + 1}\n"
    assert json.loads(state.read_text()) == {"port92": 3, "ib700": 3}


@pytest.mark.parametrize("place", ["port", "bridge"])
def test_what_is_behind_a_port_or_a_bridge_is_reached(tmp_path: Path, place: str) -> None:
    target = Target("i6300esb", tmp_path, place)
    (function,) = (each for each in target.functions if each.bdf >> 8)
    assert any(start <= function.bars[0] < end for kind, start, end in target.ranges if kind == "memory")
    target.access(0, 0, 4, (1 << 32) | 1, 2)  # the device goes
    assert function.config(0, 2) == 0xFFFF and target.alive()
    target.close()


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from qobra.testing.hostile import __main__ as program

    monkeypatch.setattr(sys, "argv", ["hostile", "--device", "e1000", "--device", "nothing"])
    with pytest.raises(SystemExit):
        program.main()
    assert capsys.readouterr().err.endswith("error: there is no device nothing\n")
