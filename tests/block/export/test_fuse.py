"""The FUSE export, through the kernel where it lets us mount."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from functools import partial

import pytest

from qobra.block import permissions
from qobra.block.export.fuse.mount import _connection_number, unmount
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError
from qobra.testing.waiting import wait_until

SIZE = 1 << 20

pytestmark = pytest.mark.skipif(
    not os.path.exists("/dev/fuse") or os.geteuid() != 0, reason="mounting needs /dev/fuse and root"
)


@pytest.fixture
def events():
    return []


@pytest.fixture
def layer(events):
    made = BlockLayer(emit=lambda name, data: events.append((name, data)))
    yield made
    made.close()


@pytest.fixture
def export(layer, tmp_path):
    (tmp_path / "image").write_bytes(b"x" * 65536)
    os.truncate(tmp_path / "image", SIZE)
    layer.add_node(
        {
            "driver": "raw",
            "node-name": "disk",
            "discard": "unmap",
            "file": {"driver": "file", "filename": str(tmp_path / "image"), "discard": "unmap"},
        }
    )
    mountpoint = tmp_path / "mount"
    mountpoint.touch()

    def add(**given):
        options = {name.replace("_", "-"): value for name, value in given.items()}
        try:
            with layer.control:
                layer.exports.add(
                    {"type": "fuse", "id": "fuse0", "node-name": "disk", "mountpoint": str(mountpoint), **options}
                )
        except QobraError as error:
            if error.errno in (errno.EPERM, errno.ENODEV):
                pytest.skip(f"no mounting here: {error}")
            raise
        return mountpoint

    return add


def _gone(layer, events):
    wait_until(lambda: ("BLOCK_EXPORT_DELETED", {"id": "fuse0"}) in events)


def test_the_file_is_the_node(layer, export, events):
    path = export(writable=True)
    assert os.stat(path).st_size == SIZE
    with open(path, "r+b", buffering=0) as file:
        assert file.read(10) == b"x" * 10
        file.seek(4096)
        file.write(b"hello")
        os.fsync(file.fileno())
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 65536
        with pytest.raises(OSError) as error:
            os.lseek(file.fileno(), 65536, os.SEEK_DATA)
        assert error.value.errno == errno.ENXIO
    assert layer.find_node("disk").read(4094, 8) == b"xxhellox"
    with layer.control:
        layer.exports.remove("fuse0")
    _gone(layer, events)
    assert os.stat(path).st_size == 0


_MAP = """
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
    assert mapped[:4] == b"xxxx"
    mapped[4096:4101] = b"hello"
    mapped.flush()
    print("synced", flush=True)
    sys.stdin.readline()
    mapped[-3:] = b"end"
"""
"""A program of its own: a thread that waits for a page holds the interpreter that would bring it."""


def test_the_file_can_be_mapped(layer, export):
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 6):
        pytest.skip("the kernel does not map what it does not cache")
    command = [sys.executable, "-c", _MAP, str(export(writable=True))]
    node = layer.find_node("disk")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"synced\n"
        assert node.read(4094, 8) == b"xxhellox"
        program.communicate(b"\n", timeout=20)
    assert program.returncode == 0
    assert node.read(SIZE - 3, 3) == b"end"


def test_writes_end_at_the_end_unless_the_export_grows(layer, export):
    path = export(writable=True)
    fd = os.open(path, os.O_RDWR)
    try:
        assert os.pwrite(fd, b"12345678", SIZE - 4) == 4
        with pytest.raises(OSError) as error:
            os.pwrite(fd, b"x", SIZE)
        assert error.value.errno == errno.EIO
        os.ftruncate(fd, 2 * SIZE)
        assert layer.find_node("disk").length == 2 * SIZE
    finally:
        os.close(fd)


def test_a_growable_export_grows(layer, export):
    path = export(writable=True, growable=True)
    with open(path, "r+b", buffering=0) as file:
        file.seek(2 * SIZE)
        file.write(b"end")
    assert layer.find_node("disk").length == 2 * SIZE + 3


@pytest.mark.parametrize(
    ("options", "may_resize"),
    [({}, False), ({"growable": True}, True), ({"writable": True}, True), ({"writable": True, "growable": True}, True)],
)
def test_who_may_make_the_file_longer_has_the_permission(layer, export, options, may_resize):
    export(**options)
    [backend] = layer.graph.roots_of(layer.find_node("disk"))
    assert bool(backend.perm & permissions.RESIZE) == may_resize


def test_the_file_is_its_owners_alone_unless_others_may_have_it(layer, export):
    path = export(writable=True, allow_other="off")
    path.chmod(0o400)
    with pytest.raises(PermissionError):
        path.chmod(0o644)
    with pytest.raises(OSError) as error:
        os.chown(path, 1, 1)
    assert error.value.errno == errno.EOPNOTSUPP
    assert path.stat().st_mode & 0o777 == 0o400


def test_the_file_can_be_made_others(layer, export):
    path = export(writable=True, allow_other="on")
    path.chmod(0o640)
    os.chown(path, 1, 2)
    found = path.stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 1, 2)


def test_a_read_only_export_cannot_be_written(layer, export):
    path = export()
    assert path.stat().st_mode & 0o222 == 0
    with pytest.raises(OSError) as error:
        os.open(path, os.O_RDWR)
    assert error.value.errno == errno.EACCES
    with pytest.raises(OSError):
        os.truncate(path, 0)


def test_who_has_the_file_open_keeps_no_export(layer, export, events):
    fd = os.open(export(writable=True), os.O_RDWR)
    os.write(fd, b"written")
    with layer.control:
        layer.exports.remove("fuse0")
    _gone(layer, events)
    for end in (partial(os.write, fd, b"too late"), partial(os.close, fd)):
        with pytest.raises(OSError) as error:
            end()
        assert error.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert layer.find_node("disk").read(0, 7) == b"written"


def test_the_number_of_a_connection(export, tmp_path):
    number = _connection_number(str(export()))
    assert number.isdecimal() and os.stat(tmp_path / "mount").st_dev & 0xFF == int(number) & 0xFF
    assert _connection_number(str(tmp_path / "image")) == ""


def test_programs_and_devices_on_it_mean_nothing(export):
    path = export()
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        [options] = [line.split()[5].split(",") for line in mounts if line.split()[4] == str(path)]
    assert {"nosuid", "nodev"} <= set(options)


def test_an_export_that_is_unmounted_is_gone(layer, export, events):
    path = export()
    unmount(str(path))
    _gone(layer, events)
    assert layer.exports.query() == []


def test_refusals(layer, export, tmp_path):
    path = export()
    with layer.control:
        for mountpoint, text in (
            (tmp_path / "absent", "Failed to stat '.*absent': No such file or directory"),
            (tmp_path, "is not a regular file"),
            (path, "There already is a FUSE export on"),
        ):
            with pytest.raises(QobraError, match=text):
                layer.exports.add({"type": "fuse", "id": "other", "node-name": "disk", "mountpoint": str(mountpoint)})
    assert [each["id"] for each in layer.exports.query()] == ["fuse0"]
