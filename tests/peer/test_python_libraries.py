"""What ``qobra.open`` returns, in the hands of libraries that take a file: dissect, pytsk3, and pandas by fsspec."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

import qobra
from qobra.cli import img

BIG = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An ext4 file system with ``/big``, compressed, and seen through an overlay."""
    monkeypatch.chdir(tmp_path)
    Path("files").mkdir()
    Path("files/big").write_bytes(BIG)
    with open("fs.raw", "wb") as raw:
        raw.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-d", "files", "fs.raw"], check=True, timeout=60)
    assert img.main(["convert", "-c", "-f", "raw", "-O", "qcow2", "fs.raw", "fs.q"]) == 0
    assert img.main(["create", "-q", "-f", "qcow2", "-b", "fs.q", "-F", "qcow2", "top.q"]) == 0
    return "top.q"


@pytest.mark.peer("mkfs.ext4")
def test_pytsk3(disk: str) -> None:
    pytsk3 = pytest.importorskip("pytsk3")

    class Image(pytsk3.Img_Info):  # type: ignore[misc]
        def __init__(self, image: Any) -> None:
            self._image = image
            super().__init__(url="")

        def read(self, offset: int, length: int) -> bytes:
            data: bytes = self._image.pread(length, offset)
            return data

        def get_size(self) -> int:
            return int(self._image.size)

    with qobra.open(disk) as image:
        file = pytsk3.FS_Info(Image(image)).open("/big")
        assert file.read_random(0, file.info.meta.size) == BIG


@pytest.mark.peer("mkfs.ext4")
def test_dissect(disk: str) -> None:
    extfs = pytest.importorskip("dissect.extfs")
    with qobra.open(disk) as image:
        assert extfs.ExtFS(image).get("/big").open().read() == BIG


@pytest.mark.peer("mkfs.ext4")
def test_dissect_reads_what_we_write(disk: str) -> None:
    qcow2 = pytest.importorskip("dissect.hypervisor.disk.qcow2")
    opened = qcow2.QCow2(Path("fs.q"))
    assert opened.open().read() == Path("fs.raw").read_bytes()


def test_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("fsspec")
    monkeypatch.chdir(tmp_path)
    text = "a,b\n" + "".join(f"{number},{number * number}\n" for number in range(1000))
    Path("table.raw").write_text(text + "\n" * (-len(text) % 512))
    assert img.main(["convert", "-f", "raw", "-O", "qcow2", "table.raw", "table.q"]) == 0
    assert pandas.read_csv("qobra://table.q").b.sum() == sum(number * number for number in range(1000))
