"""convert from a source that cannot be read, or mapped, everywhere; and from one that has to see its reads."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from qobra.cli import img

MIB = 1 << 20
SECTOR = 512


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.raw").write_bytes(random.Random(5).randbytes(4 * MIB))
    return tmp_path


def _source(*rules: tuple[str, int], driver: str = "blkdebug") -> str:
    errors = [{"event": "none", "iotype": kind, "errno": 5, "sector": at // SECTOR} for kind, at in rules]
    image = {"driver": "raw", "file": {"driver": "file", "filename": "a.raw"}}
    return "json:" + json.dumps({"driver": driver, "image": image, "inject-error": errors})


def test_what_is_lost_is_told_in_order_and_zero(capfd: pytest.CaptureFixture[str]) -> None:
    early, both, late = MIB + 8192, 2 * MIB + 512, 3 * MIB
    source = _source(("block-status", early), ("block-status", both), ("read", both), ("read", late))
    assert img.main(["convert", "--salvage", "-O", "raw", source, "b.raw"], "qobra-img") == 0
    told = [line.partition("error while reading ")[2] for line in capfd.readouterr().err.splitlines()]
    status = [f"block status at offset {at}: Input/output error" for at in (early, both)]
    data = [f"offset {at}: Input/output error" for at in (both, late)]
    assert told == [*status, *status, *data]
    expected = bytearray(Path("a.raw").read_bytes())
    for at in (both, late):
        expected[at : at + SECTOR] = bytes(SECTOR)
    assert Path("b.raw").read_bytes() == expected


@pytest.mark.parametrize("how", [[], ["-W"], ["-r", "100M"], ["-n"], ["-O", "qcow2"]])
def test_a_filter_that_sees_reads_is_asked_for_them(how: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    Path("b.img").write_bytes(bytes(4 * MIB))
    how = how if "-O" in how else [*how, "-O", "raw"]
    assert img.main(["convert", *how, _source(("read", 3 * MIB)), "b.img"], "qobra-img") == 1
    assert "error while reading at byte" in capfd.readouterr().err
