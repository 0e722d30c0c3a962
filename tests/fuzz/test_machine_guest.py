"""Hostile guests: arbitrary accesses to every device. The process lives, and so does the machine's monitor.

Memory outside the guest's is out of reach by construction (views of its RAM); what is tested is that no access raises
anything, loops for ever, or eats memory out of proportion.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, PciFunction

_MEMORY = 16 << 20
_FUNCTIONS = {5: "virtio-blk-pci", 6: "virtio-scsi-pci", 7: "virtio-net-pci", 8: "virtio-serial-pci"} | {
    9: "virtio-rng-pci",
    10: "virtio-balloon-pci",
    11: "virtio-mem-pci",
    12: "virtio-pmem-pci",
    13: "virtio-gpu-pci",
}


class Target:
    """A PC with one of each device, its base addresses in known places."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(1 << 20))
        self.machine = simple_machine(
            "x86_64", "pc", memory=_MEMORY, max_memory=_MEMORY + (64 << 20), slots=1, running=True
        )
        self.guest = BoardAccess(self.machine)
        board: Any = self.machine.board
        with self.machine.control:
            self.machine.block.add_node({"driver": "file", "filename": str(path), "node-name": "n0"})
            self.machine.netdevs.create({"type": "hubport", "id": "hub", "hubid": 0})
            board.ready = False  # some cannot be plugged in later
            for slot, driver in _FUNCTIONS.items():
                options = {"driver": driver, "addr": f"{slot:x}", "id": f"d{slot}"}
                if driver == "virtio-blk-pci":
                    options["drive"] = "n0"
                if driver == "virtio-net-pci":
                    options["netdev"] = "hub"
                if driver in ("virtio-mem-pci", "virtio-pmem-pci"):
                    options["memdev"] = f"m{slot}"
                    self.machine.objects.create("memory-backend-ram", options["memdev"], {"size": 16 << 20})
                add_device(self.machine, options, keyval=True)
            for options in ({"driver": "scsi-cd", "bus": "d6.0"}, {"driver": "virtserialport", "bus": "d8.0"}):
                add_device(self.machine, options, keyval=True)
            board.ready = True
        self.ranges: list[tuple[str, int, int]] = []
        memory, ports = 0xE0000000, 0xC000
        for slot in _FUNCTIONS:
            function = PciFunction(self.guest, slot << 3)
            function.enable(memory, ports)
            device: Any = board.pci_root.functions[slot << 3]
            for number, base in function.bars.items():  # an option ROM is not among them
                bar = device.bars[number]
                self.ranges.append(("port" if bar.flags & 1 else "memory", base, bar.size))
            memory, ports = memory + 0x100000, ports + 0x100
        for base, size in (
            (0x20, 2),
            (0x40, 4),
            (0x60, 5),
            (0x70, 2),
            (0x92, 1),
            (0xA0, 2),
            (0xAE00, 0x18),
            (0x510, 12),
            (0xA00, 24),
        ):
            self.ranges.append(("port", base, size))
        self.ranges += [("memory", 0xFEC00000, 0x100), ("memory", 0xC0000, 0x40000), ("config", 0, 256)]

    def access(self, where: int, offset: int, width: int, value: int, write: bool) -> None:
        kind, base, size = self.ranges[where % len(self.ranges)]
        offset %= size
        if kind == "config":
            slot = 5 + where % len(_FUNCTIONS)
            # The base addresses and the command stay, so that there is something to hit.
            if write and not 0x04 <= offset < 0x28:
                PciFunction(self.guest, slot << 3).set_config(
                    offset & ~(min(width, 4) - 1), min(width, 4), value & 0xFF
                )
        elif kind == "memory":
            if write:
                self.guest.store(base + offset, width, value & ((1 << 8 * width) - 1))
            else:
                self.guest.load(base + offset, width)
        elif write and (base, offset) != (0x510, 4):
            self.guest.port_out(base + offset, min(width, 4), value & ((1 << 8 * min(width, 4)) - 1))
        elif not write:
            self.guest.port_in(base + offset, min(width, 4))

    def alive(self) -> bool:
        with self.machine.control:
            return "status" in dispatch.call(self.machine, "query-status", {})


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    target = Target(tmp_path_factory.mktemp("fuzz") / "disk")
    yield target
    target.machine.close()


_INTERESTING = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 2, 3, 4, 7, 15, 0x7F, 0xFF, 0x100, 0x200, 0xFFFF, 0x10000, 0x100000, 0xFFFFFFFF, 1 << 63]),
)
_ACCESS = st.tuples(
    st.integers(0, 63), st.integers(0, 0x4000), st.sampled_from([1, 2, 4, 8]), _INTERESTING, st.booleans()
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_ACCESS, max_size=60))
def test_arbitrary_accesses(target: Target, accesses: list[tuple[int, int, int, int, bool]]) -> None:
    for access in accesses:
        target.access(*access)
    assert target.alive()


def _queue_of_garbage(guest: BoardAccess, generator: random.Random, table: int, size: int) -> None:
    for index in range(size):
        address = generator.choice([generator.randrange(_MEMORY), 0x200000, 0xFEC00000, 1 << 40, table])
        length = generator.choice([0, 1, 12, 16, 51, 108, 512, 4096, 0xFFFFFFFF, generator.randrange(1 << 16)])
        flags = generator.choice([0, 1, 2, 3, 4, 5, 6, 7, 1, 3])
        following = generator.choice([generator.randrange(size), generator.randrange(1 << 16)])
        entry = address.to_bytes(8, "little") + length.to_bytes(4, "little")
        guest.write(table + 16 * index, entry + flags.to_bytes(2, "little") + following.to_bytes(2, "little"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("slot", list(_FUNCTIONS))
def test_queues_full_of_garbage(target: Target, slot: int, packed: bool, capfd: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(slot * 2 + packed)
    guest, board = target.guest, target.machine.board
    device: Any = board.pci_root.functions[slot << 3]  # type: ignore[union-attr]
    backend = device.device
    tracemalloc.start()
    for _ in range(40):
        with target.machine.control:
            backend.write_status(0)
            backend.values["packed"] = packed
            backend.write_status(3)
            backend.accept_features(1 << 32 | 1 << 28 | generator.getrandbits(2) << 29 | int(packed) << 34, modern=True)
            backend.write_status(15)
            for queue in backend.queues:
                queue.size = generator.choice([1, 2, 8, queue.max_size])
                queue.descriptors, queue.driver_area, queue.device_area = 0x100000, 0x110000, 0x120000
                queue.ready = True
        _queue_of_garbage(guest, generator, 0x100000, 8)
        guest.write(0x110000, generator.randbytes(64))
        guest.store(0x110002, 2, generator.choice([1, 2, 8, 0xFFFF]))
        guest.write(0x200000, generator.randbytes(4096))
        for number in range(min(len(backend.queues), 6)):
            with target.machine.control:
                backend.kick(number)
    with target.machine.control:
        backend.write_status(0)
        backend.values["packed"] = False
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    assert target.alive()
    assert "Traceback" not in capfd.readouterr().err
