"""Readers of qcow2 that are nobody's kin: libqcow, and 7-Zip, find in Qobra's images what was put in."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from qobra.cli import img

READ_ALL = """
import sys, pyqcow
image = pyqcow.file()
image.open(sys.argv[1])
sys.stdout.buffer.write(image.read_buffer(image.get_media_size()))
"""
PYTHON = "/usr/bin/python3"


def has_libqcow() -> bool:
    return Path(PYTHON).exists() and not subprocess.run([PYTHON, "-c", "import pyqcow"], capture_output=True).returncode


def source(path: Path) -> bytes:
    rng = random.Random(5)
    content = bytearray(8 << 20)
    for _ in range(40):
        length = rng.choice((512, 4096, 70000))
        at = rng.randrange(0, len(content) - length, 512)
        content[at : at + length] = rng.randbytes(length)
    content[-300000:] = bytes(300000)  # the last cluster that is written is not full
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.skipif(not has_libqcow(), reason="python3-libqcow is not installed")
@pytest.mark.parametrize(
    "options", [[], ["-o", "compat=0.10"], ["-o", "cluster_size=4k"], ["-o", "refcount_bits=1"], ["-c"]]
)
def test_libqcow_reads_what_was_converted(tmp_path: Path, options: list[str]) -> None:
    content = source(tmp_path / "a.raw")
    image = str(tmp_path / "a.qcow2")
    assert img.main(["convert", "-f", "raw", "-O", "qcow2", *options, str(tmp_path / "a.raw"), image], "qobra-img") == 0
    read = subprocess.run([PYTHON, "-c", READ_ALL, image], capture_output=True, timeout=60)
    assert not read.returncode, read.stderr
    assert read.stdout == content


@pytest.mark.skipif(shutil.which("7z") is None or shutil.which("mke2fs") is None, reason="7z or mke2fs is missing")
@pytest.mark.parametrize("options", [[], ["-c"]])
def test_7zip_lists_a_file_system_in_an_image(tmp_path: Path, options: list[str]) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for number in range(20):
        (files / f"file{number}").write_bytes(random.Random(number).randbytes(5000))
    raw, image = str(tmp_path / "a.raw"), str(tmp_path / "a.qcow2")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(files), raw, "8M"], check=True, timeout=60)
    assert img.main(["convert", "-f", "raw", "-O", "qcow2", *options, raw, image], "qobra-img") == 0
    listed = subprocess.run(["7z", "l", image], capture_output=True, text=True, timeout=60).stdout
    assert all(f"file{number}" in listed for number in range(20))
