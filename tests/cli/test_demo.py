"""The demonstration, on a small disk: that it works, and that it would notice if it did not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qobra.cli._demo import writer
from qobra.cli._demo.daemon import Daemon, image_format
from qobra.cli.subcommand import demo
from qobra.client.sync import Client

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "NEW_DISK_SIZE", 8 * MIB)
    monkeypatch.setattr(demo, "FILL", 3 * MIB)
    monkeypatch.setattr(demo, "SPEED", 32 * MIB)


def test_new_disk(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([]) == 0
    out = capsys.readouterr().out
    assert "every block is as the disk had it" in out
    assert "100%" in out


def test_disk_of_ones_own_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk.img"
    content = bytes(range(256)) * (MIB // 256) * 3 + b"odd end".ljust(512, b".")
    disk.write_bytes(content)
    assert demo.main(["--disk", str(disk)]) == 0
    assert "every block is as the disk had it" in capsys.readouterr().out
    assert disk.read_bytes() == content


def test_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--stay"]) == 0
    out = capsys.readouterr().out
    found = re.search(r"files in (\S+)\)", out)
    assert found is not None
    with Client.connect(f"{found.group(1)}/qmp.sock") as client:
        assert {export["id"] for export in client.query_block_exports()} == {"disk", "backup"}
        client.quit()
    shutil.rmtree(found.group(1))


def test_who_ends_it_leaves_no_daemon_and_no_files(tmp_path: Path) -> None:
    code = "import sys; from qobra.cli.main import main; sys.exit(main(['demo']))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and "answered QMP" in process.stdout.readline()
        daemons = [each for each in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(each)]
        assert len(daemons) == 1
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM or process.returncode == -signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert str(tmp_path).encode() not in _read(daemons[0])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_wrong_backup_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = writer.content
    seen: list[tuple[int, int]] = []

    def content(block: int, version: int) -> bytes:
        # What is expected of one block differs from what was written to it.
        if (block, version) in seen and block == seen[0][0]:
            return bytes(writer.BLOCK)
        seen.append((block, version))
        return real(block, version)

    monkeypatch.setattr(writer, "content", content)
    assert demo.main([]) == 1
    assert "1 of 128 blocks differ" in capsys.readouterr().out


def test_what_cannot_be_done_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--disk", str(tmp_path / "none")]) == 1
    assert "there is no file" in capsys.readouterr().err


def test_the_daemon_is_ended(tmp_path: Path) -> None:
    daemon = Daemon(str(tmp_path))
    daemon.close()
    assert daemon._process.returncode == 0


def test_image_format(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"QFI\xfb...")
    (tmp_path / "b").write_bytes(b"")
    assert (image_format(str(tmp_path / "a")), image_format(str(tmp_path / "b"))) == ("qcow2", "raw")
