"""Memory backends: what can be changed when, and memory that the guest can only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine


@pytest.fixture
def machine() -> Iterator[Any]:
    machine = simple_machine("x86_64", "none")
    yield machine
    machine.close()


def test_the_size_is_set_once(machine: Any) -> None:
    with pytest.raises(QobraError, match="^property 'size' of memory-backend-ram doesn't take value '0'$"):
        machine.objects.create("memory-backend-ram", "m", {"size": 0})
    backend = machine.objects.create("memory-backend-ram", "m", {"size": 4096})
    with pytest.raises(QobraError, match="^cannot change property size of memory-backend-ram $"):
        backend.set("size", 8192)
    assert backend.describe()["size"] == len(backend.ram.view) == 4096


def test_pages_of_a_file_are_aligned(machine: Any, tmp_path: Path) -> None:
    with pytest.raises(QobraError, match="^alignment 0x3 must be multiples of page size 0x1000$"):
        machine.objects.create("memory-backend-file", "m", {"size": 4096, "mem-path": str(tmp_path / "m"), "align": 3})


@pytest.mark.parametrize("share", [True, False])
def test_a_file_that_is_only_read(machine: Any, tmp_path: Path, share: bool) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"kept" + bytes(8188))
    path.chmod(0o400)
    options = {"size": 8192, "mem-path": str(path), "readonly": True, "share": share, "prealloc": True}
    ram = machine.objects.create("memory-backend-file", "m", options).ram
    ram.store(0, 4, 0)
    assert ram.load(0, 4) == int.from_bytes(b"kept", "little")
    assert path.read_bytes()[:4] == b"kept"


def test_the_limits_of_a_loop_stay_in_order(machine: Any) -> None:
    thread = machine.objects.create("iothread", "t", {})
    for name, value in (("thread-pool-min", 1000), ("thread-pool-max", 0)):
        with pytest.raises(QobraError, match="^bad thread-pool-min/thread-pool-max values$"):
            thread.set(name, value)
    thread.set("aio-max-batch", 3)
    thread.set("thread-pool-max", 2000)
    thread.set("thread-pool-min", 1000)
    assert (thread.get("thread-pool-min"), thread.get("thread-pool-max")) == (1000, 2000)


def test_what_stays_once_the_memory_is_there(machine: Any, tmp_path: Path) -> None:
    ram = machine.objects.create("memory-backend-ram", "r", {"size": 4096})
    file = machine.objects.create("memory-backend-file", "f", {"size": 4096, "mem-path": str(tmp_path / "f")})
    shared = machine.objects.create("memory-backend-memfd", "s", {"size": 4096})
    for backend, name, value in ((ram, "share", True), (ram, "reserve", False), (shared, "hugetlbsize", 2 << 20)):
        with pytest.raises(QobraError, match="^cannot change property value$"):
            backend.set(name, value)
    for name, value in (("mem-path", "x"), ("align", 8192), ("pmem", True), ("readonly", True)):
        with pytest.raises(QobraError, match=f"^cannot change property '{name}' of memory-backend-file$"):
            file.set(name, value)
    with pytest.raises(QobraError, match="^'prealloc=on' and 'reserve=off' are incompatible$"):
        machine.objects.create("memory-backend-ram", "p", {"size": 4096, "prealloc": True, "reserve": False})
    with pytest.raises(QobraError, match="^can't open backing store /nowhere/f for guest RAM: No such file"):
        machine.objects.create("memory-backend-file", "n", {"size": 4096, "mem-path": "/nowhere/f"})
