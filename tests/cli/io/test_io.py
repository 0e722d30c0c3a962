from __future__ import annotations

from pathlib import Path

import pytest

from qobra.block.accounting import FLUSH
from qobra.block.backend import BlockBackend
from qobra.block.io_commands._interpreter import Interpreter
from qobra.block.layer import BlockLayer
from qobra.block.permissions import CONSISTENT_READ, WRITE
from qobra.cli import img, io


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = str(tmp_path / "a.q")
    img.main(["create", "-q", "-f", "qcow2", path, "1M"])
    return path


def test_patterns(disk: str, capfd: pytest.CaptureFixture[str]) -> None:
    good = ["write -P 1 0 64k", "read -P 1 0 64k", "writev -P 2 1000 1k 1k", "readv -P 2 1000 2k", "read -P 0 64k 4k"]
    assert io.main([each for line in good for each in ("-c", line)] + [disk]) == 0
    assert io.main(["-c", "read -P 3 0 512", disk]) == 1
    assert "Pattern verification failed at offset 0, 512 bytes" in capfd.readouterr().out


def test_asynchronous_requests_are_reported_by_aio_flush(disk: str, capfd: pytest.CaptureFixture[str]) -> None:
    lines = ["aio_write -P 7 0 64k", "aio_write -P 8 64k 64k", "aio_flush", "aio_read -P 7 0 64k", "aio_flush"]
    assert io.main([each for line in lines for each in ("-c", line)] + [disk]) == 0
    out = capfd.readouterr().out
    assert out.count("wrote 65536/65536 bytes at offset") == 2
    assert out.count("read 65536/65536 bytes at offset 0") == 1


def test_the_monitor_can_use_the_interpreter(disk: str) -> None:
    layer = BlockLayer()
    backend = BlockBackend(layer, perm=CONSISTENT_READ | WRITE)
    layer.open_image(disk, {"driver": "qcow2", "read-only": False}, root=backend)
    out: list[str] = []
    complaints: list[str] = []
    interpreter = Interpreter(backend, out.append, complaints.append)
    assert interpreter.run("write -P 5 0 512")
    assert not interpreter.run("read -P 6 0 512")
    assert not interpreter.run("nonsense")
    assert complaints == ['command "nonsense" not found']
    assert "wrote 512/512 bytes at offset 0\n" in "".join(out)
    assert interpreter.run("aio_flush") and backend.accounting.operations[FLUSH] == 1
    layer.close()


def test_dump(disk: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert io.main(["-c", "write -P 0x41 16 3", "-c", "read -v 16 18", disk]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[2] == "00000010:  41 41 41 00 00 00 00 00 00 00 00 00 00 00 00 00  AAA............."
    assert lines[3] == "00000020:  00 00  .."


def test_discards_reach_the_file_unless_asked_to_be_ignored(disk: str) -> None:
    lines = ["-c", "write -P 1 0 64k", "-c", "discard 0 64k"]
    assert io.main(["-d", "ignore", *lines, "-c", "read -P 1 0 64k", disk]) == 0
    assert io.main([*lines, "-c", "read -P 0 0 64k", disk]) == 0
    assert io.main(["-c", f"open -o discard=ignore {disk}", *lines, "-c", "read -P 1 0 64k"]) == 0
    assert io.main(["-c", f"open {disk}", *lines, "-c", "read -P 0 0 64k"]) == 0


def test_a_forced_share_that_the_options_take_back_is_refused(disk: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = f"driver=file,filename={disk},force-share=off"
    assert io.main(["-r", "-U", "-c", "quit", "--image-opts", text]) == 1
    assert io.main(["-r", "-c", f"open -U -o {text}"]) == 1
    assert io.main(["-r", "-c", f"open -U -o force-share=off {disk}"]) == 1
    assert capfd.readouterr().err == "qobra-io: -U conflicts with image options\n" * 3


def test_a_dump_shows_letters_and_digits_only(disk: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert io.main(["-c", "write -P 0x2a 0 1", "-c", "write -P 0x39 1 1", "-c", "read -v 0 2", disk]) == 0
    assert "2a 39  .9\n" in capfd.readouterr().out


def test_what_cannot_be_written_at_the_end_is_told(disk: str, capfd: pytest.CaptureFixture[str]) -> None:
    options = "driver=qcow2,file.driver=blkdebug,file.inject-error.event=l2_update"
    assert io.main(["-c", f"open -o {options} {disk}", "-c", "write 0 64k"]) == 1
    error = capfd.readouterr().err
    assert "Failed to flush the L2 table cache: Input/output error" in error
    assert "qobra-io: Failed to flush the refcount block cache: Input/output error" in error


@pytest.mark.parametrize("step", ["write_blocks", "write_table", "switch_table"])
def test_a_refcount_table_that_cannot_grow_leaves_a_good_image(tmp_path: Path, step: str) -> None:
    path = str(tmp_path / "a.q")
    img.main(["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1G"])
    fault = f"file.inject-error.event=refblock_alloc_{step},file.inject-error.once=on"
    lines = ["write 0 64M", "write -P 7 64M 1M", "flush"]
    opening = f"open -o driver=qcow2,file.driver=blkdebug,{fault} {path}"
    assert io.main([each for line in (opening, *lines) for each in ("-c", line)]) == 1
    assert img.main(["check", "-q", path]) in (0, 3)  # leaks at most
    assert io.main(["-c", "read -P 7 64M 1M", path]) == 0


def test_the_temporary_image_discards_as_the_image_would(disk: str) -> None:
    lines = ["write -P 1 0 64k", "discard 0 64k"]
    commands = [each for line in lines for each in ("-c", line)]
    assert io.main(["-s", *commands, "-c", "read -P 0 0 64k", disk]) == 0
    assert io.main(["-s", "-d", "ignore", *commands, "-c", "read -P 1 0 64k", disk]) == 0


def test_the_temporary_image_lies_on_a_protocol(tmp_path: Path) -> None:
    path = tmp_path / "flat"
    path.write_bytes(bytes(65536))
    assert io.main(["-f", "file", "-s", "-c", "write -P 1 0 512", "-c", "read -P 1 0 512", str(path)]) == 0
    assert path.read_bytes() == bytes(65536)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["-f", "qcow2", "-r"], "Can't use copy-on-read on read-only device"),
        (["-s", "-r"], "Can't use copy-on-read on read-only device"),
        (["-f", "qcow2"], "Image is not in qcow2 format"),
    ],
)
def test_copies_on_read_need_a_writable_image(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    """Which is told before what is wrong with the format, but not before what is wrong with the file."""
    path = tmp_path / "flat"
    assert io.main(["-C", *options, str(path)]) == 1
    assert "No such file" in capfd.readouterr().err
    path.write_bytes(bytes(512))
    assert io.main(["-C", *options, str(path)]) == 1
    assert text in capfd.readouterr().err


def test_a_pattern_file_that_is_empty(disk: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    assert io.main(["-c", f"write -s {tmp_path}/empty 0 512", disk]) == 1
    assert capfd.readouterr().err == f"{tmp_path}/empty: file is empty\n"


def test_a_discard_of_the_first_cluster_reaches_the_data_file(tmp_path: Path) -> None:
    path, data = str(tmp_path / "a.q"), tmp_path / "a.data"
    img.main(["create", "-q", "-f", "qcow2", "-o", f"data_file={data}", path, "256k"])
    assert io.main(["-c", "write -P 1 0 192k", "-c", "discard 0 64k", path]) == 0
    assert data.read_bytes()[: 192 << 10] == bytes(64 << 10) + b"\1" * (128 << 10)
    assert io.main(["-c", "write -z -u 64k 64k", "-c", "read -P 0 0 128k", path]) == 0


def test_a_signal_that_cannot_be(capfd: pytest.CaptureFixture[str]) -> None:
    assert io.main(["-c", "sigraise 0"]) == 0
    assert io.main(["-c", "sigraise 100"]) == 1
    assert capfd.readouterr().out == "signal argument '100' is too large to be a valid signal\n"


def test_patterns_can_be_octal(disk: str) -> None:
    assert io.main(["-c", "write -P 012 0 512", "-c", "read -P 0xa 0 512", "-c", "read -P 10 0 512", disk]) == 0
    assert io.main(["-c", "read -P 08 0 512", disk]) == 1


def test_a_command_has_no_long_options(disk: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert io.main(["-c", "reopen --help", disk]) == 1
    assert capfd.readouterr().err == "reopen: invalid option -- '-'\n"


def test_numbers_of_a_protocol_below_a_format_are_taken_beside_a_file_name(
    disk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert io.main(["-c", f"open -o driver=qcow2,file.driver=blkdebug,file.align=4096 {disk}", "-c", "read 0 512"]) == 0
    assert io.main(["-c", f"open -o driver=qcow2,file.driver=blkdebug,file._texts.align=1 {disk}"]) == 1
    assert "doesn't support the option '_texts.align'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("read -s 5x -Z 0 512", "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- 5x\n"),
        ("write -P 256 -Z 0 512", "256 is not a valid pattern byte\n"),
        ("reopen -r -w -Z", "qobra-io: Only one -r/-w option may be given\n"),
        ("open -t x -Z a", "qobra-io: Invalid cache option: x\n"),
        ("open -o cache.direct=x a", "qobra-io: file open already, try 'help close'\n"),
        ("aio_read -i -Z", "injecting invalid read request\n"),
    ],
)
def test_the_first_mistake_of_a_line_is_told(
    line: str, told: str, disk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert io.main(["-c", line, disk]) == (0 if "injecting" in told else 1)
    assert "".join(capsys.readouterr()) == told


def test_the_first_mistake_of_the_command_line_is_told(disk: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert io.main(["-t", "x", "-Z", disk]) == 1
    assert capsys.readouterr().err == "qobra-io: Invalid cache option: x\n"
    assert io.main(["-h", "-Z"]) == 0 and io.main(["-V", "-t", "x"]) == 0
    capsys.readouterr()
    assert io.main(["-c", "close", "-c", f"open -o a=b,driver=raw {disk}", disk]) == 1
    assert capsys.readouterr().err.endswith("Block format 'raw' does not support the option 'a'\n")


def test_a_temporary_file_without_a_name_is_reopened(disk: str) -> None:
    assert io.main(["-s", "-c", "write -P 7 0 512", "-c", "reopen -r", "-c", "read -P 7 0 512", disk]) == 0
