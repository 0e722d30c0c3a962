"""Copying by threads without the GIL gives what copying in order gives, whatever source and target look like."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from qobra.block.copy import moving
from qobra.block.copy.chunk import ChunkCopier
from qobra.block.copy.moving import copy_moving
from qobra.errors import QobraError
from qobra.native import compiled
from qobra.testing.images import Disk, ImageLab

MIB = 1 << 20
needs_mover = pytest.mark.skipif(compiled("mover") is None, reason="there is no compiled form")


@pytest.fixture(params=[True, False], ids=["compiled", "pure"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not request.param:
        monkeypatch.setattr(moving, "_native", None)
    elif compiled("mover") is None:
        pytest.skip("there is no compiled form")
    return iter(())


def scatter(random_: random.Random, size: int) -> bytes:
    """Data in pieces of all sizes, at odd places, with holes and zeroes that are written."""
    content = bytearray(size)
    for _ in range(random_.randrange(30)):
        length = random_.choice([1, 511, 512, 4096, 5000, 65536, 200_000, MIB])
        start = random_.randrange(size)
        length = min(length, size - start)
        content[start : start + length] = random_.randbytes(length)
        if random_.random() < 0.5:
            inside = start + length // 3
            content[inside : inside + length // 2] = bytes(length // 2)
    return bytes(content)


def fill(disk: Disk, content: bytes, step: int) -> None:
    """Write ``content``, but for pieces that are zero and some that are not."""
    for start in range(0, len(content), step):
        piece = content[start : start + step]
        if any(piece) or start // step % 5 == 0:
            disk.write(start, piece)


def copied(lab: ImageLab, target: str, driver: str, source: Disk, unit: int) -> None:
    with lab.open(target, driver) as disk:
        told: list[int] = []
        copy_moving(ChunkCopier(source.node, disk.node, detect_zeroes=unit, target_is_zero=True), progress=told.append)
        assert sum(told) == source.node.length


@pytest.mark.parametrize("seed", range(12))
def test_the_copy_is_the_source_and_the_image_is_sound(tmp_path: Any, seed: int, form: None, monkeypatch: Any) -> None:
    random_ = random.Random(seed)
    monkeypatch.setattr(moving, "STEP", random_.choice([MIB // 2, 3 * MIB, 32 * MIB]))
    lab = ImageLab(tmp_path)
    size = random_.randrange(1, 8 * MIB // 512) * 512
    content = scatter(random_, size)
    unit = random_.choice([0, 512, 4096, 65536])
    source_driver, target_driver = random_.choice(["raw", "qcow2"]), random_.choice(["raw", "qcow2", "qcow2"])
    lab.create("source", source_driver, size=size)
    sizes = {"cluster_size": random_.choice([512, 4096, 65536, 2 * MIB])} if target_driver == "qcow2" else {}
    lab.create("target", target_driver, size=size, **sizes)
    with lab.open("source", source_driver) as source:
        fill(source, content, random_.choice([4096, 65536]))
        copied(lab, "target", target_driver, source, unit)
    with lab.open("target", target_driver, read_only=True) as target:
        assert target.content() == content
        if target_driver == "qcow2":
            result = target.node.check()
            assert not result.get("leaks") and not result.get("corruptions")


def test_zeroes_take_no_clusters(tmp_path: Any, form: None) -> None:
    lab = ImageLab(tmp_path)
    content = bytes(3 * MIB) + b"x" * 512 + bytes(5 * MIB) + b"y" * 70000
    content += bytes(-len(content) % 512)
    with open(lab.path("source"), "wb") as stream:
        stream.write(content)
    lab.create("target", size=len(content))
    with lab.open("source", "raw") as source:
        copied(lab, "target", "qcow2", source, 4096)
    # Header, refcounts in two clusters, L1, L2; one cluster for the x, and two or three for the y.
    assert os.path.getsize(lab.path("target")) <= (5 + 1 + 3) * 65536
    with lab.open("target", read_only=True) as target:
        assert target.content() == content


def test_a_source_of_nothing_but_zeroes_leaves_an_empty_image(tmp_path: Any, form: None) -> None:
    lab = ImageLab(tmp_path)
    with open(lab.path("source"), "wb") as stream:
        stream.write(bytes(2 * MIB))
    lab.create("target", size=2 * MIB)
    with lab.open("source", "raw") as source:
        copied(lab, "target", "qcow2", source, 4096)
    with lab.open("target", read_only=True) as target:
        assert not any(target.node.image.tables.l1)
        assert target.node.check().get("leaks") is None


def test_what_is_compressed_is_copied_too(tmp_path: Any, form: None) -> None:
    lab = ImageLab(tmp_path)
    for name in ("source", "target"):
        lab.create(name, size=4 * MIB)
    with lab.open("source") as source:
        source.node.write_compressed(MIB, b"squeezed" * 8192)
        source.write(0, b"plain" * 20000)
        source.write(2 * MIB + 512, b"z" * 100_000)
        content = source.content()
        copied(lab, "target", "qcow2", source, 4096)
    with lab.open("target", read_only=True) as target:
        assert target.content() == content
        assert not target.node.check().get("corruptions")


@pytest.mark.parametrize("seed", range(8))
def test_what_zstd_compressed_is_unpacked_on_the_way(tmp_path: Any, form: None, monkeypatch: Any, seed: int) -> None:
    random_ = random.Random(seed)
    monkeypatch.setattr(moving, "STEP", random_.choice([MIB, 3 * MIB, 32 * MIB]))
    lab = ImageLab(tmp_path)
    cluster = random_.choice([512, 4096, 65536, 512 << 10, 2 * MIB])
    size = 5 * MIB + random_.choice([0, 512, 60_928])
    lab.create("source", size=size, compression_type="zstd", cluster_size=cluster)
    lab.create("target", size=size, cluster_size=random_.choice([4096, 65536]))
    with lab.open("source") as source:
        step = max(cluster, 65536)
        for start in range(0, size, step):
            text = b"%d" % random_.getrandbits(300) * (step // 20)
            piece = (bytes(step // 2) + text if random_.random() < 0.3 else text)[: min(step, size - start)]
            if random_.random() < 0.7:
                source.node.write_compressed(start, piece)
            elif random_.random() < 0.5:
                source.write(start, piece)
        content = source.content()
        copied(lab, "target", "qcow2", source, random_.choice([0, 4096]))
        lab.create("plain", "raw", size=size)
        copied(lab, "plain", "raw", source, 4096)
    assert (tmp_path / "plain").read_bytes() == content
    with lab.open("target", read_only=True) as target:
        assert target.content() == content
        assert not target.node.check().get("corruptions")


@pytest.mark.parametrize("damage", [b"\xff" * 40, bytes.fromhex("28b52ffd0000010000")], ids=["magic", "contents"])
def test_what_cannot_be_unpacked_is_an_error_in_the_usual_words(tmp_path: Any, form: None, damage: bytes) -> None:
    lab = ImageLab(tmp_path)
    lab.create("source", size=4 * MIB, compression_type="zstd")
    lab.create("target", size=4 * MIB)
    with lab.open("source") as source:
        for start in range(0, 4 * MIB, 65536):
            source.node.write_compressed(start, (b"%9d" % start * 8000)[:65536])
        place = source.node.reader.packed(2 * MIB, 65536)[2][0][0]
    with open(tmp_path / "source", "r+b") as stream:
        stream.seek(place)
        stream.write(damage)
    with lab.open("source", read_only=True) as source, lab.open("target") as target:
        copier = ChunkCopier(source.node, target.node, detect_zeroes=4096, target_is_zero=True)
        with pytest.raises(QobraError, match="Could not decompress a cluster"):
            copy_moving(copier)
        assert target.read(0, MIB) == source.read(0, MIB)


def test_what_the_target_holds_is_written_in_place(tmp_path: Any, form: None) -> None:
    lab = ImageLab(tmp_path)
    for name in ("source", "target"):
        lab.create(name, size=2 * MIB)
    with lab.open("target") as target:
        target.write(65536, bytes(131072))
    with lab.open("source") as source:
        source.write(0, b"data" * 100_000)
        content = source.content()
        copied(lab, "target", "qcow2", source, 4096)
    with lab.open("target", read_only=True) as target:
        assert target.content() == content
        result = target.node.check()
        assert not result.get("leaks") and not result.get("corruptions")


@needs_mover
@pytest.mark.parametrize("driver", ["raw", "qcow2"])
def test_what_a_thread_cannot_do_is_done_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    lab = ImageLab(tmp_path)
    lab.create("source", "raw", size=4 * MIB)
    lab.create("target", driver, size=4 * MIB)
    native: Any = moving._native
    pushed = []

    class Broken(native.Mover):  # type: ignore[misc]
        def push(self, fd: int, offset: int, start: int, length: int) -> None:
            pushed.append(start)
            super().push(fd if start < 2 * MIB else -1, offset, start, length)

    class Native:
        Mover = Broken

    monkeypatch.setattr(moving, "_native", Native)
    monkeypatch.setattr(moving, "STEP", MIB)
    with lab.open("source", "raw") as source:
        source.write(0, random.Random(1).randbytes(4 * MIB))
        content = source.content()
        copied(lab, "target", driver, source, 4096)
    assert len(pushed) >= 3
    with lab.open("target", driver, read_only=True) as target:
        assert target.content() == content
        if driver == "qcow2":
            result = target.node.check()
            assert not result.get("leaks") and not result.get("corruptions")


@needs_mover
def test_the_mover_refuses_what_cannot_be() -> None:
    native: Any = compiled("mover")
    for unit, cluster, base in ((1, 0, 0), (0, 256, 0), (0, 3 << 10, 0), (0, 0, -1)):
        with pytest.raises(ValueError):
            native.Mover(0, unit, cluster, base)
    mover = native.Mover(0, 4096, 65536)
    for run in ((0, -1, 0, 1), (0, 0, -1, 1), (0, 0, 0, 0), (0, 0, 1 << 62, 1)):
        with pytest.raises(ValueError):
            mover.push(*run)
    for place in ((-65536, 65536), (0, 0), (512, 65536), (0, 512)):
        with pytest.raises(ValueError):
            mover.provide(*place)
    for cluster, whole in (
        ((-1, 1, 0, 1), 65536),
        ((0, 0, 0, 1), 65536),
        ((0, 2 * MIB, 0, 1), 65536),
        ((0, 1, -1, 1), 65536),
        ((0, 1, 0, 0), 65536),
        ((0, 1, 0, 65537), 65536),
        ((0, 1, 0, 1), 0),
        ((0, 1, 0, 1), MIB),
    ):
        with pytest.raises(ValueError):
            mover.push_packed(0, [cluster], whole)


@needs_mover
def test_data_without_a_place_is_a_failure(tmp_path: Any) -> None:
    native: Any = compiled("mover")
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096)
    with open(path, "r+b") as stream:
        mover = native.Mover(stream.fileno(), 4096, 65536)
        mover.push(stream.fileno(), 0, 0, 4096)
        mover.work()
        mover.help(4096)
        assert mover.failed and mover.take() == []


@pytest.mark.parametrize("seed", range(6))
def test_old_data_of_the_target_is_overwritten(tmp_path: Any, seed: int, form: None, monkeypatch: Any) -> None:
    random_ = random.Random(seed)
    monkeypatch.setattr(moving, "STEP", random_.choice([MIB, 32 * MIB]))
    lab = ImageLab(tmp_path)
    size = random_.randrange(1, 4 * MIB // 512) * 512
    for name in ("base", "target"):
        lab.create(name, size=size, cluster_size=random_.choice([4096, 65536]))
    lab.create("source", size=size, cluster_size=65536)
    with lab.open("base") as base:
        fill(base, random_.randbytes(size), 65536)
    backing = {"driver": "qcow2", "file": {"driver": "file", "filename": lab.path("base")}}
    with lab.open("target", **({"backing": backing} if random_.random() < 0.5 else {})) as target:
        fill(target, scatter(random_, size), 4096)
        with lab.open("source") as source:
            fill(source, scatter(random_, size), 65536)
            content = source.content()
            copy_moving(ChunkCopier(source.node, target.node))
        assert target.content() == content
        target.node.flush()
    with lab.open("target", read_only=True) as target:
        result = target.node.check()
        assert not result.get("leaks") and not result.get("corruptions")
