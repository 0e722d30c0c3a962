"""Power loss at any moment: the image is whole, and what was flushed is there.

The file under the image records what is written and flushed. For a random moment, the flushed part of the record and a
random choice of sectors of the rest make a state in which the disk may be found.
"""

from __future__ import annotations

import random

import pytest

from qobra.testing.images import after_power_loss

SECTOR = 512


class _Versions:
    """What each sector of a disk may hold: the values since it was last known to be on stable storage."""

    def __init__(self, size):
        self.allowed = [{bytes(SECTOR)} for _ in range(size // SECTOR)]
        self.current = bytearray(size)
        self.history = []

    def write(self, offset, data, position):
        self.current[offset : offset + len(data)] = data
        self.history.append((position, offset, data))

    def flushed(self, position):
        self.history.append((position, -1, bytes(self.current)))

    def check(self, content, cut):
        """``content`` is what was found after ``log[:cut]``."""
        base = bytes(len(self.current))
        later = []
        for position, offset, data in self.history:
            if offset < 0:
                if position <= cut:
                    base, later = data, []
            else:
                later.append((offset, data))
        for at in range(0, len(content), SECTOR):
            found = content[at : at + SECTOR]
            if found == base[at : at + SECTOR]:
                continue
            choices = [d[at - o : at - o + SECTOR] for o, d in later if o <= at < o + len(d)]
            assert found in choices, f"sector {at // SECTOR} after {cut} events holds what was never written there"


def _exercise(lab, name, seed, count, **open_options):
    """Random writes with flushes between them; the log, the versions and the file as it was before."""
    chosen = random.Random(seed)
    with open(lab.path(name), "rb") as file:
        before = file.read()
    disk = lab.open(name, recording=True, discard="unmap", **open_options)
    log = disk.node.file.log
    versions = _Versions(disk.node.length)
    versions.current[:] = disk.content()
    versions.flushed(0)
    size = disk.node.length
    for _ in range(count):
        offset = chosen.randrange(size // SECTOR) * SECTOR
        length = min(chosen.choice([512, 4096, 20480]), size - offset)
        action = chosen.random()
        if action < 0.6:
            data = chosen.randbytes(length)
            versions.write(offset, data, len(log))
            disk.write(offset, data)
        elif action < 0.8:
            versions.write(offset, bytes(length), len(log))
            disk.backend.write_zeroes(offset, length, may_unmap=chosen.random() < 0.5)
        elif action < 0.87:
            cluster = disk.node.cluster_size()
            offset, length = offset // cluster * cluster, cluster
            versions.write(offset, bytes(length), len(log))
            disk.backend.discard(offset, length)
        else:
            disk.backend.flush()
            versions.flushed(len(log))
    disk.close()
    versions.flushed(len(log))
    return before, log, versions


def _replay(lab, before, log, versions, chosen, trials, leaks_only=True):
    for _ in range(trials):
        cut = chosen.randrange(len(log) + 1)
        with open(lab.path("crashed"), "wb") as file:
            file.write(after_power_loss(before, log, cut, chosen))
        with lab.open("crashed", read_only=True, _check=True) as disk:
            result = disk.node.check()
            if leaks_only:
                assert "corruptions" not in result, (cut, result)
            versions.check(disk.content(), cut)
        with lab.open("crashed") as disk:
            versions.check(disk.content(), cut)
            disk.write(0, b"go on" * 100)
            assert disk.read(0, 500) == b"go on" * 100


CONFIGURATIONS = {
    "plain": {"cluster_size": 4096},
    "tiny clusters": {"cluster_size": 512, "refcount_bits": 64},
    "one-bit counts": {"cluster_size": 1024, "refcount_bits": 1},
    "version 2": {"cluster_size": 4096, "version": "v2"},
    "subclusters": {"cluster_size": 16384, "extended_l2": True},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_power_loss_leaves_a_whole_image(lab, soak_scale, name):
    for seed in range(2 * soak_scale):
        lab.create("a", size=400 * 1024, **CONFIGURATIONS[name])
        before, log, versions = _exercise(lab, "a", seed, 60)
        _replay(lab, before, log, versions, random.Random(seed), 12)


def test_power_loss_with_caches_too_small(lab, soak_scale):
    for seed in range(2 * soak_scale):
        lab.create("a", size=400 * 1024, cluster_size=512)
        before, log, versions = _exercise(
            lab,
            "a",
            seed,
            60,
            l2_cache_size=2048,
            l2_cache_entry_size=512,
            refcount_cache_size=512,
        )
        _replay(lab, before, log, versions, random.Random(seed), 12)


def test_power_loss_over_a_backing_file_keeps_its_data(lab, soak_scale):
    for seed in range(2 * soak_scale):
        with open(lab.path("base"), "wb") as file:
            file.write(random.Random(seed).randbytes(300 * 1024))
        lab.create(
            "a",
            size=400 * 1024,
            cluster_size=4096,
            backing_file="base",
            backing_fmt="raw",
        )
        before, log, versions = _exercise(lab, "a", seed, 60)
        _replay(lab, before, log, versions, random.Random(seed), 12)


def test_power_loss_with_a_snapshot_keeps_both(lab, soak_scale):
    for seed in range(2 * soak_scale):
        lab.create("a", size=400 * 1024, cluster_size=4096)
        with lab.open("a") as disk:
            disk.write(0, random.Random(seed).randbytes(200 * 1024))
            kept = disk.content()
            disk.node.snapshot_create("s")
        before, log, versions = _exercise(lab, "a", seed, 60)
        chosen = random.Random(seed)
        _replay(lab, before, log, versions, chosen, 10)
        for _ in range(4):
            with open(lab.path("crashed"), "wb") as file:
                file.write(after_power_loss(before, log, chosen.randrange(len(log) + 1), chosen))
            with lab.open("crashed", read_only=True) as disk:
                disk.node.snapshot_load("s")
                assert disk.content() == kept


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("operation", ["create", "apply", "delete"])
def test_power_loss_while_snapshots_change(lab, soak_scale, operation, version):
    """The disk is what it was, or, applied, what it becomes; what snapshots there are hold what they did."""
    for seed in range(soak_scale):
        chosen = random.Random(seed)
        lab.create("a", size=400 * 1024, cluster_size=4096, version=version)
        with lab.open("a") as disk:
            disk.write(0, chosen.randbytes(200 * 1024))
            kept = disk.content()
            disk.node.snapshot_create("s")
            disk.write(64 * 1024, chosen.randbytes(200 * 1024))
            now = disk.content()
        with open(lab.path("a"), "rb") as file:
            before = file.read()
        with lab.open("a", recording=True, discard="unmap") as disk:
            log = disk.node.file.log
            if operation == "create":
                disk.node.snapshot_create("t")
            elif operation == "apply":
                disk.node.snapshot_apply("s")
            else:
                disk.node.snapshot_delete(None, "s")
        found = set()
        for _ in range(25):
            state = after_power_loss(before, log, chosen.randrange(len(log) + 1), chosen)
            with open(lab.path("crashed"), "wb") as file:
                file.write(state)
            with lab.open("crashed") as disk:  # used as it is
                disk.write(0, chosen.randbytes(400 * 1024))
            with lab.open("crashed", read_only=True) as disk:
                for name in [each["name"] for each in disk.node.snapshot_list()]:
                    disk.node.snapshot_load(name)
                    assert disk.content() == (kept if name == "s" else now)
            with open(lab.path("crashed"), "wb") as file:
                file.write(state)
            with lab.open("crashed", _check=True) as disk:  # or repaired
                disk.node.check(fix_leaks=True, fix_errors=True)
            with lab.open("crashed", read_only=True) as disk:
                result = disk.node.check()
                assert "corruptions" not in result and "leaks" not in result
                content = disk.content()
                assert content in ((now, kept) if operation == "apply" else (now,))
                names = [each["name"] for each in disk.node.snapshot_list()]
                found.add((content, *names))
                for name in names:
                    disk.node.snapshot_load(name)
                    assert disk.content() == (kept if name == "s" else now)
        assert len(found) == 2, "before and after"


def test_lazy_refcounts_are_counted_anew_after_power_loss(lab, soak_scale):
    for seed in range(2 * soak_scale):
        lab.create("a", size=400 * 1024, cluster_size=4096, lazy_refcounts=True)
        before, log, versions = _exercise(lab, "a", seed, 60)
        _replay(lab, before, log, versions, random.Random(seed), 10, leaks_only=False)
        with lab.open("crashed", read_only=True) as disk:
            result = disk.node.check()
        assert "corruptions" not in result and "leaks" not in result


def test_a_flush_costs_two_barriers_and_none_is_wasted(lab):
    lab.create("a", size=1 << 20, cluster_size=4096)
    with lab.open("a", recording=True) as disk:
        log = disk.node.file.log
        disk.write(0, b"first" * 100)
        disk.backend.flush()
        log.clear()
        for number in range(20):
            disk.write((number * 7 % 256) * 4096, b"x" * 512)
        disk.backend.flush()
        assert [event[0] for event in log].count("flush") == 2
        log.clear()
        disk.write(0, b"in place" * 64)
        disk.backend.flush()
        assert [event[0] for event in log] == ["write", "flush"]
