from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qobra import trace


class Base:
    def work(self, value: int) -> int:
        return value + 1


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two events at one seam, written to a file."""
    monkeypatch.setattr(trace, "_events", {})
    monkeypatch.setattr(trace, "_seams", {})
    monkeypatch.setattr(trace, "_descriptor", trace.STANDARD_ERROR)
    monkeypatch.setattr(trace, "SOURCES", ())

    @trace.event("asked", "base %p value %d (%s)", (Base, "work"))
    def asked(base: Base, value: int) -> tuple[Any, ...] | None:
        return (base, value, "x") if value else None

    @trace.event("answered", "result 0x%x", (Base, "work"), after=True)
    def answered(result: int, *_args: Any) -> tuple[Any, ...]:
        return (result,)

    trace.write_to(str(tmp_path / "log"))
    return tmp_path / "log"


def test_a_seam_is_wrapped_while_an_event_is_on(made: Path) -> None:
    untouched, base = Base.work, Base()
    for event in trace.events().values():
        event.set(True)
    assert base.work(15) == 16
    assert base.work(0) == 1
    trace.events()["asked"].set(False)
    trace.events()["asked"].set(False)
    assert base.work(1) == 2
    trace.events()["answered"].set(False)
    assert base.work(1) == 2
    assert Base.work is untouched
    assert made.read_text().splitlines() == [
        f"asked base {id(base):#x} value 15 (x)",
        "answered result 0x10",
        "answered result 0x1",
        "answered result 0x2",
    ]


def test_patterns(made: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [event.name for event in trace.matching(pattern)]

    assert names("a*e?") == ["asked", "answered"]
    assert names("a?[k]ed*") == names("[a]*") == names("nosuch") == []
    assert names("asked") == ["asked"]


def test_whoever_does_not_read_disturbs_nobody(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(trace, "_descriptor", writer)
    trace.events()["asked"].set(True)
    assert Base().work(1) == 2
    trace.events()["asked"].set(False)
    os.close(writer)
