"""Damaged images: a clear error, in bounded time and memory, whatever is done with them."""

from __future__ import annotations

import errno
import random
import sys
import threading

import pytest

from qobra.block.bitmap import DirtyBitmap
from qobra.block.format.qcow2 import layout
from qobra.errors import QobraError

SHAPES = [
    {"cluster_size": 4096},
    {"cluster_size": 512, "version": "v2"},
    {"cluster_size": 16384, "extended_l2": True},
    {"cluster_size": 65536, "compression_type": "zstd", "refcount_bits": 8},
    {"cluster_size": 4096, "data_file": "data"},
]


def _image(lab, shape):
    chosen = random.Random(1)
    lab.create("good", size=4 << 20, **shape)
    with lab.open("good") as disk:
        for _ in range(15):
            disk.write(chosen.randrange(6000) * 512, chosen.randbytes(9000))
        if "data_file" not in shape:
            disk.node.write_compressed(3584 << 10, b"abcd" * (shape["cluster_size"] // 4))
            disk.node.snapshot_create("s")
        if shape.get("version") != "v2":
            DirtyBitmap(disk.node, "b", 65536, persistent=True)
        disk.write(0, b"after the snapshot")
    with open(lab.path("good"), "rb") as file:
        return file.read()


def _damage(content, cluster, chosen):
    damaged = bytearray(content)
    area = chosen.choice([256, 8 * cluster, 8 * cluster, len(damaged)])
    for _ in range(chosen.choice([1, 1, 3])):
        at = chosen.randrange(min(area, len(damaged)))
        damaged[at] = chosen.choice([damaged[at] ^ 1 << chosen.randrange(8), 0, 255, chosen.randrange(256)])
    if chosen.random() < 0.15:
        del damaged[chosen.randrange(len(damaged)) :]
    return damaged


def _try(action, *args, **kwargs):
    try:
        return action(*args, **kwargs)
    except (QobraError, OSError):
        return None


def _use(disk, chosen):
    node, backend = disk.node, disk.backend
    length = node.length
    _try(disk.read, 0, min(length, 6 << 20))
    _try(node.map, 0, length)
    _try(node.check)
    _try(node.info)
    for _ in range(3):
        offset = chosen.randrange(max(1, min(length, 6 << 20) // 512)) * 512
        size = max(0, min(70000, length - offset))
        _try(disk.write, offset, b"w" * min(size, 3000))
        _try(backend.write_zeroes, offset, size, may_unmap=True)
        _try(backend.discard, offset, size)
    _try(node.snapshot_create, "t")
    _try(node.snapshot_apply, "s")
    _try(node.snapshot_delete, None, "s")
    _try(backend.flush)
    _try(node.truncate, 5 << 20)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_damaged_images(lab, shape, soak_scale, capsys):
    content = _image(lab, shape)
    chosen = random.Random(2)
    for _ in range(40 * soak_scale):
        with open(lab.path("bad"), "wb") as file:
            file.write(_damage(content, shape["cluster_size"], chosen))
        for options in ({"read_only": True}, {"discard": "unmap"}, {"_check": True}):
            disk = _try(lab.open, "bad", **options)
            if disk is None:
                continue
            if "_check" in options:
                _try(disk.node.check, fix_leaks=True, fix_errors=True)
            else:
                _use(disk, chosen)
            _try(disk.close)
    capsys.readouterr()


def test_a_compressed_cluster_cannot_blow_up(lab):
    """A deflate stream that would unpack to a gigabyte gives one cluster's worth, and no more is unpacked."""
    import zlib

    from qobra.block.format.qcow2.compressed import ZLIB, ZSTD, decompress

    bomb = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()
    assert decompress(packed, 65536, ZLIB) == bytes(65536)
    zstandard = pytest.importorskip("zstandard")
    assert decompress(zstandard.compress(bytes(64 << 20)), 65536, ZSTD) == bytes(65536)
    with pytest.raises(QobraError, match="Could not decompress"):
        decompress(b"\xff" * 100, 65536, ZLIB)


def test_a_snapshot_table_of_absurd_size_is_refused(lab):
    lab.create("a", size=1 << 20)
    with open(lab.path("a"), "r+b") as file:
        file.seek(60)
        file.write((65536).to_bytes(4, "big") + (4 << 16).to_bytes(8, "big"))
        file.seek(4 << 16)
        file.write(b"\xff" * 4096)
    with pytest.raises(QobraError, match="Too much extra metadata"):
        lab.open("a", read_only=True)


@pytest.mark.parametrize("part", ["alone", "package"])
def test_zstd_by_the_package_or_its_compiled_part(monkeypatch, part):
    pytest.importorskip("zstandard")
    from qobra.block.format.qcow2 import compressed

    kind = compressed.ZSTD
    monkeypatch.setattr(compressed, "_codec", [])
    monkeypatch.setattr(compressed, "_local", threading.local())
    if part == "package":
        monkeypatch.setattr(compressed, "_compiled_part", lambda: None)
    packed = compressed.compress(b"zstd" * 16384, kind)
    assert compressed.decompress(packed, 65536, kind) == b"zstd" * 16384


def test_compressed_clusters_far_from_one_another_are_read_each_for_itself(lab):
    lab.create("a", size=1 << 20, cluster_size=4096)
    chosen = random.Random(2)
    order = chosen.sample(range(40), 40)
    content = {}
    with lab.open("a") as disk:
        for at in order:
            content[at] = (chosen.randbytes(600) * 7)[:4096]
            disk.node.write_compressed(at * 4096, memoryview(bytearray(content[at])))
            if at % 4 == 0:
                disk.write((200 + at) * 4096, b"between" * 1000)
        whole = b"".join(content[at] for at in range(40))
        assert disk.read(0, 40 * 4096) == whole
        assert disk.read(100, 3 * 4096) == whole[100 : 100 + 3 * 4096]
        disk.write(5 * 4096, b"new")
        assert disk.read(4 * 4096, 3 * 4096)[4096:4099] == b"new"


@pytest.mark.parametrize(
    ("entry", "cluster"),
    [((0, layout.ALL_ALLOCATED), 1), ((None, layout.ALL_ALLOCATED | 1 << 35), 1), ((0, 1 << 31), 0)],
)
def test_nothing_is_written_where_subclusters_contradict_themselves(lab, capsys, entry, cluster):
    """What they claim to hold would come to light: whatever is in the file."""
    size = 1 << 16
    lab.create("a", size=4 * size, extended_l2=True)
    with lab.open("a") as disk:
        disk.write(0, b"x" * (4 * size))
        table = disk.node.image.tables.l1[0] & layout.OFFSET_MASK
    with open(lab.path("a"), "r+b") as file:
        for number in (cluster, cluster + 1):
            file.seek(table + 16 * number)
            old = int.from_bytes(file.read(8), "big")
            file.seek(-8, 1)
            file.write((old if entry[0] is None else entry[0]).to_bytes(8, "big") + entry[1].to_bytes(8, "big"))
    with lab.open("a") as disk, pytest.raises(QobraError):
        disk.write(cluster * size, b"y" * 2 * size)
    assert "Invalid cluster entry found (L2 offset" in capsys.readouterr().err


def test_damage_of_which_nobody_can_be_told_is_damage_all_the_same(lab, monkeypatch):
    """The program's standard error is on a full disk: the guest gets the image's error, and the image is marked."""
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        disk.write(0, b"x" * 65536)
        table = disk.node.image.tables.l1[0] & layout.OFFSET_MASK
    with open(lab.path("a"), "r+b") as file:
        file.seek(table)
        file.write((1 << 63 | 512).to_bytes(8, "big"))
    with open("/dev/full", "w", buffering=1) as full, lab.open("a") as disk:
        monkeypatch.setattr(sys, "stderr", full)
        with pytest.raises(QobraError) as raised:
            disk.write(0, b"y")
        monkeypatch.undo()
        assert raised.value.errno == errno.EIO
        assert disk.node.info()["format-specific"]["data"]["corrupt"]
        try:
            full.close()
        except OSError:
            pass
