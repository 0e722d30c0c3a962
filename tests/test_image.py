from __future__ import annotations

import contextlib
import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import qobra
from qobra.block.creation._image import plan
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError

MIB = 1 << 20


def create(path: Path, fmt: str = "qcow2", size: int = 4 * MIB, **more: str) -> str:
    layer = BlockLayer()
    plan(layer, str(path), fmt, size=size, **more).run(layer)  # type: ignore[arg-type]
    layer.close()
    return str(path)


@pytest.fixture
def chain(tmp_path: Path) -> str:
    """An overlay with data of its own at 1 MiB, on a base with data at 0."""
    base = create(tmp_path / "base.qcow2")
    with qobra.open(base, "r+") as image:
        image.pwrite(b"b" * 65536, 0)
    top = create(tmp_path / "top.qcow2", backing_file="base.qcow2", backing_format="qcow2")
    with qobra.open(top, "r+") as image:
        image.pwrite(b"t" * 1000, MIB)
    return top


@pytest.fixture(params=["raw", "qcow2"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    fmt: str = request.param
    return create(tmp_path / "disk.img", fmt), fmt


def test_is_a_binary_file(empty: tuple[str, str]) -> None:
    path, fmt = empty
    with qobra.open(path, "r+", format=fmt) as image:
        assert image.format == fmt
        assert (image.readable(), image.writable(), image.seekable()) == (True, True, True)
        assert image.seek(1000) == 1000
        assert image.write(b"hello") == 5
        assert image.tell() == 1005
        image.seek(-4 * MIB + 1000, io.SEEK_END)
        assert image.read(5) == b"hello"
        buffer = bytearray(10)
        image.seek(998)
        assert image.readinto(buffer) == 10
        assert bytes(buffer) == b"\0\0hello\0\0\0"
    assert image.closed
    with qobra.open(path, format=fmt) as image:
        assert image.pread(5, 1000) == b"hello"
        assert len(image.read()) == 4 * MIB


def test_buffered_reader_takes_it(chain: str) -> None:
    with io.BufferedReader(qobra.open(chain)) as stream:
        stream.seek(MIB)
        assert stream.read(3) == b"ttt"


def test_slices(chain: str) -> None:
    with qobra.open(chain) as image:
        assert image[:4] == b"bbbb"
        assert image[MIB : MIB + 2] == b"tt"
        assert image[MIB] == ord("t")
        assert image[-1] == 0
        assert image[6:0:-2] == b"bbb"
        with pytest.raises(IndexError):
            image[4 * MIB]


def test_positioned_and_vectored_calls_leave_the_position_alone(empty: tuple[str, str]) -> None:
    path, fmt = empty
    with qobra.open(path, "r+", format=fmt) as image:
        assert image.pwritev([b"ab", bytearray(b"cd"), memoryview(b"ef")], 100) == 6
        one, two = bytearray(3), bytearray(5)
        assert image.preadv([one, two], 100) == 8
        assert (bytes(one), bytes(two)) == (b"abc", b"def\0\0")
        assert image.preadv([bytearray(10), bytearray(10)], image.size - 15) == 15
        assert image.tell() == 0
        image.zero(102, 2)
        assert image.pread(6, 100) == b"ab\0\0ef"


def test_extents_tell_the_layers(chain: str) -> None:
    with qobra.open(chain) as image:
        extents = list(image.extents())
        assert extents[0].start == 0
        assert sum(extent.length for extent in extents) == image.size
        data = [(extent.start, extent.length, extent.depth) for extent in extents if extent.data]
        assert data[0] == (0, 65536, 1)
        assert data[1][0] == MIB and data[1][2] == 0
        assert extents[0].file is not None and extents[0].file.endswith("base.qcow2")


def test_chunks_leave_zeroes_out(chain: str) -> None:
    with qobra.open(chain) as image:
        rebuilt = bytearray(image.size)
        read = 0
        for offset, data in image.chunks(10000):
            rebuilt[offset : offset + len(data)] = data
            read += len(data)
        assert rebuilt == image.read()
        assert read <= 2 * 65536


def test_threads_read_at_once(chain: str) -> None:
    with qobra.open(chain) as image:
        wrong: list[int] = []

        def read(byte: bytes, offset: int) -> None:
            for _ in range(200):
                if image.pread(500, offset) != byte * 500:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=each) for each in ((b"b", 100), (b"t", MIB + 100)) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_info_and_chain(chain: str) -> None:
    with qobra.open(chain) as image:
        assert image.info()["virtual-size"] == 4 * MIB
        assert [info["format"] for info in image.chain()] == ["qcow2", "qcow2"]


def test_snapshot(tmp_path: Path) -> None:
    path = create(tmp_path / "s.qcow2")
    with qobra.open(path, "r+") as image:
        image.pwrite(b"old", 0)
        image.node.snapshot_create("before")  # type: ignore[attr-defined]
        image.pwrite(b"new", 0)
        assert [each["name"] for each in image.snapshots()] == ["before"]
    with qobra.open(path, snapshot="before") as image:
        assert image[:3] == b"old"
    with qobra.open(path) as image:
        assert image[:3] == b"new"


def test_truncate(empty: tuple[str, str]) -> None:
    path, fmt = empty
    with qobra.open(path, "r+", format=fmt) as image:
        assert image.truncate(8 * MIB) == 8 * MIB
        assert image.size == 8 * MIB
        image.pwrite(b"x", 8 * MIB - 1)


def test_refusals(tmp_path: Path, empty: tuple[str, str]) -> None:
    path, fmt = empty
    with pytest.raises(QobraError, match="No such file"):
        qobra.open(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="mode"):
        qobra.open(path, "w")
    with qobra.open(path, format=fmt) as image:
        with pytest.raises(io.UnsupportedOperation):
            image.write(b"x")
        with pytest.raises(ValueError):
            image.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        image.read(1)
    with qobra.open(path, "r+", format=fmt) as image, pytest.raises((OSError, QobraError)):
        image.pwrite(b"xx", image.size - 1)


def test_last_sector_of_a_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "odd.raw"
    path.write_bytes(b"x" * 700)
    with qobra.open(str(path), format="raw") as image:
        assert image.size == 1024
        assert image.read() == b"x" * 700 + bytes(324)


def test_fsspec(chain: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    from qobra.fs import QobraFileSystem

    fsspec.register_implementation("qobra", QobraFileSystem, clobber=True)
    with fsspec.open(f"qobra://{chain}", "rb") as stream:
        stream.seek(MIB)
        assert stream.read(3) == b"ttt"
    fs = fsspec.filesystem("qobra")
    assert fs.info(chain)["size"] == 4 * MIB
    assert fs.info(chain)["format"] == "qcow2"
    assert fs.cat_file(chain, 0, 4) == b"bbbb"
    assert any(entry["name"].endswith("base.qcow2") for entry in fs.ls(str(Path(chain).parent)))
    with pytest.raises(FileNotFoundError):
        fs.open("/no/such/image")
    with qobra.open(chain, "r+") as image:
        image.node.snapshot_create("then")
        image.pwrite(b"now", MIB)
    then = fsspec.filesystem("qobra", snapshot="then", options={"backing": None})
    assert then.cat_file(chain, MIB, MIB + 3) == b"ttt" and then.cat_file(chain, 0, 4) == bytes(4)
    assert fs.cat_file(chain, MIB, MIB + 3) == b"now"
    with pytest.raises(OSError, match="can only be read"):
        then.open(chain, "r+b")
    with contextlib.chdir(Path(chain).parent):
        assert fs.glob("*.qcow2") == sorted(str(path) for path in Path.cwd().glob("*.qcow2"))


def test_what_the_package_has_is_told() -> None:
    assert "open" in dir(qobra) and not hasattr(qobra, "close")


@pytest.mark.parametrize("kind", [Path, os.fsencode])
def test_a_path_may_be_any_that_python_has(chain: str, kind: Any) -> None:
    with qobra.open(kind(chain)) as image:
        assert (image.read(4), image.name) == (b"bbbb", chain)
    with pytest.raises(TypeError, match="expected str, bytes or os.PathLike"):
        qobra.open(None)  # type: ignore[arg-type]
