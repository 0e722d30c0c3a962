"""Options that say how, not what: how much is in flight, in what order, past which cache, with which trace."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from qobra import trace
from qobra.block.backend import BlockBackend
from qobra.cli import img, io

MIB = 1 << 20


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return img.main(list(arguments), "qobra-img")


@pytest.mark.parametrize("how", [["-m", "1"], ["-m", "16", "-W"], ["-W"], ["-m", "3", "-c"], ["-m", "2", "--salvage"]])
def test_convert_with_any_number_of_workers(how: list[str]) -> None:
    data = b"".join(bytes((number,)) * 300_000 for number in range(40))
    Path("a.raw").write_bytes(data + bytes(-len(data) % 512))
    assert run("convert", *how, "-f", "raw", "-O", "qcow2", "a.raw", "b.q") == 0
    assert run("compare", "-f", "raw", "-F", "qcow2", "a.raw", "b.q") == 0
    assert run("convert", *[text for text in how if text != "-c"], "-O", "raw", "b.q", "c.raw") == 0
    assert Path("c.raw").read_bytes() == Path("a.raw").read_bytes()


def test_workers_are_what_m_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from qobra.block.copy import engine, in_order, moving

    seen: list[int] = []
    pool, reader, mover = engine.CopyPool, in_order._Reader, moving._Moving
    monkeypatch.setattr(moving, "_Moving", lambda *arguments: seen.append(arguments[-1]) or mover(*arguments))
    monkeypatch.setattr(
        engine, "CopyPool", lambda work, done, helpers: seen.append(helpers) or pool(work, done, helpers)
    )
    monkeypatch.setattr(in_order, "_Reader", lambda *arguments: seen.append(arguments[2]) or reader(*arguments))
    Path("a.raw").write_bytes(b"x" * MIB + bytes(4096) + b"x" * 4096)
    assert run("convert", "-m", "3", "-O", "qcow2", "-f", "raw", "a.raw", "b.q") == 0
    assert os.path.getsize("b.q") % 65536 == 0
    assert run("convert", "-m", "5", "-c", "-O", "qcow2", "-f", "raw", "a.raw", "b.q") == 0
    assert os.path.getsize("b.q") % 512 == 0
    assert seen == [3, 5]


def test_bench_has_as_many_requests_in_flight_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("create", "-q", "-f", "raw", "a.raw", "4M") == 0
    met = threading.Barrier(5, timeout=20)
    read_into = BlockBackend.read_into

    def read(self: Any, offset: int, view: memoryview) -> None:
        met.wait()  # nobody goes on until five are here
        read_into(self, offset, view)

    monkeypatch.setattr(BlockBackend, "read_into", read)
    assert run("bench", "-f", "raw", "-c", "20", "-d", "5", "a.raw") == 0


@pytest.mark.parametrize("drain", [True, False])
def test_bench_flushes_between_writes(monkeypatch: pytest.MonkeyPatch, drain: bool) -> None:
    assert run("create", "-q", "-f", "raw", "a.raw", "1M") == 0
    log: list[str] = []
    write, flush = BlockBackend.write, BlockBackend.flush
    monkeypatch.setattr(BlockBackend, "write", lambda *arguments: (write(*arguments), log.append("w"))[0])
    monkeypatch.setattr(BlockBackend, "flush", lambda self: (log.append("f"), flush(self))[1])
    extra = [] if drain else ["--no-drain"]
    order = ["bench", "-w", "-f", "raw", "-c", "30", "-d", "4", "--flush-interval", "10", "--pattern", "7"]
    assert run(*order, *extra, "a.raw") == 0
    assert log.count("w") == 30 and log.count("f") >= 3
    if drain:
        assert "".join(log).startswith(("w" * 10 + "f") * 2 + "w" * 10)
    assert Path("a.raw").read_bytes()[: 30 * 4096] == b"\7" * 30 * 4096


def test_bench_tells_of_a_failed_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    assert run("create", "-q", "-f", "raw", "a.raw", "1M") == 0
    monkeypatch.setattr(BlockBackend, "write", broken)
    assert run("bench", "-w", "-f", "raw", "-c", "100", "a.raw") == 1
    assert "Failed request: No space left on device" in capsys.readouterr().err


def test_native_io_goes_past_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "-q", "-f", "qcow2", "a.q", "1M") == 0
    text = "aio=native was specified, but it requires cache.direct=on, which was not specified."
    assert run("bench", "-i", "native", "-c", "1", "a.q") == 1
    assert f"qobra-img: Could not open 'a.q': {text}\n" == capsys.readouterr().err
    for option in (["-k"], ["-i", "native"]):
        assert io.main([*option, "-c", "read 0 512", "a.q"], "qobra-io") == 1
        assert f"qobra-io: can't open device a.q: {text}\n" == capsys.readouterr().err
    assert run("bench", "-i", "threads", "-c", "1", "a.q") == 0


def test_names_of_trace_events_that_do_not_exist(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_descriptor", trace.STANDARD_ERROR)
    assert run("create", "-q", "-f", "qcow2", "a.q", "1M") == 0
    Path("events").write_text("one\n\n# a remark\n-two\nsome*\n")
    for text, lines in (
        ("nosuch", ["qobra-img: warning: trace event 'nosuch' does not exist"]),
        ("enable=-nosuch,file=out", ["qobra-img: warning: trace event 'nosuch' does not exist"]),
        ("no*", []),
        (
            "events=events",
            [
                "qobra-img:events:1: warning: trace event 'one' does not exist",
                "qobra-img:events:4: warning: trace event 'two' does not exist",
            ],
        ),
    ):
        assert run("--trace", text, "info", "a.q") == 0
        assert capsys.readouterr().err.splitlines() == lines
    assert run("--trace", "wrong=1", "info", "a.q") == 1
    assert "Invalid parameter 'wrong'" in capsys.readouterr().err
    assert run("-T", "events=missing", "info", "a.q") == 1
    assert "qobra-img:missing: No such file or directory" in capsys.readouterr().err
    assert run("-T", "file=missing/x", "info", "a.q") == 1
    assert "Error opening logfile missing/x: No such file or directory" in capsys.readouterr().err
    assert io.main(["-T", "nosuch", "-c", "length", "a.q"], "qobra-io") == 0
    assert "qobra-io: warning: trace event 'nosuch' does not exist" in capsys.readouterr().err


def test_trace_events_are_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_descriptor", trace.STANDARD_ERROR)
    assert run("create", "-q", "-f", "qcow2", "a.q", "1M") == 0
    try:
        assert run("--trace", "bdrv_open_common", "info", "a.q") == 0
        lines = capfd.readouterr().err.splitlines()
        assert [line.split(" ", 3)[3] for line in lines] == [
            'filename "a.q" flags 0x0 format_name "file"',
            'filename "a.q" flags 0x0 format_name "qcow2"',
        ]
        Path("events").write_text("-bdrv_open_common\nblk_co_pwritev\n")
        command = ("-T", "events=events,file=log", "-c", "write -q 512 1k", "-c", "write -q -zu 0 64k", "a.q")
        assert io.main(list(command), "qobra-io") == 0
        assert capfd.readouterr().err == ""
        assert [line.split(" ", 5)[5] for line in Path("log").read_text().splitlines()] == [
            "offset 512 bytes 1024 flags 0x0",
            "offset 0 bytes 65536 flags 0x6",
        ]
    finally:
        for event in trace.events().values():
            event.set(False)
    assert run("--trace", "help") == 0
    assert "blk_co_preadv" in capfd.readouterr().out.splitlines()


def test_compression_level(capfd: pytest.CaptureFixture[str]) -> None:
    words = b" ".join(str(number * 2654435761 % 99991).encode() for number in range(40_000))
    Path("a.raw").write_bytes(words + bytes(-len(words) % 512))
    sizes = {}
    for kind in ("zlib", "zstd"):
        for level in ("1", "9"):
            command = ["convert", "-c", "--compression-level", level, "-o", f"compression_type={kind}"]
            assert run(*command, "-f", "raw", "-O", "qcow2", "a.raw", "b.q") == 0
            assert run("compare", "-f", "raw", "-F", "qcow2", "a.raw", "b.q") == 0
            sizes[kind, level] = Path("b.q").stat().st_size
        assert sizes[kind, "9"] <= sizes[kind, "1"]
    capfd.readouterr()
    for level, target, error in (
        ("10", ["-c", "-O", "qcow2"], "Compression level of zlib must be between 1 and 9"),
        ("0", ["-c", "-O", "qcow2"], "Invalid compression level specified. Must be between 1 and 22."),
        ("3", ["-O", "qcow2"], "--compression-level has no effect without -c"),
    ):
        assert run("convert", "--compression-level", level, *target, "-f", "raw", "a.raw", "c.q") == 1
        assert error in capfd.readouterr().err
