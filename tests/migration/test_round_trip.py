"""The state of every device type that can be plugged in, after random accesses of a guest: what is saved and loaded
into a fresh machine reads the same, saves the same, and goes on alike.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.cpu import Cpu
from qobra.machine.devices import registry
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device, all_buses
from qobra.machine.qdev import Device
from qobra.machine.vmstate import is_declared, put_object
from qobra.migration import machine_state
from qobra.migration.ram import ram_blocks

_OPTIONS = {"pci-bridge": {"chassis_nr": "1"}, "nvme": {"serial": "1"}}


def pluggable() -> list[str]:
    found = registry.load_all()
    return sorted(n for n, cls in found.items() if not cls.abstract and cls.pluggable and not issubclass(cls, Cpu))


def machine_with(board: str, name: str) -> Machine | None:
    """A machine with one device of a type; None where there is no place for it, or it wants something of its own."""
    architecture = "riscv64" if board == "virt" else "x86_64"
    machine = simple_machine(architecture, board, memory=2 << 20)
    with machine.control:
        machine.board.ready = False
        options: dict[str, Any] = {"driver": name, "id": "it"} | _OPTIONS.get(name, {})
        for node in ("disk0", "disk1"):
            machine.block.add_node({"driver": "null-co", "node-name": node, "size": 1 << 20, "read-zeroes": True})
        try:
            if name.startswith("scsi-"):
                add_device(machine, {"driver": "virtio-scsi-pci", "id": "hba"}, keyval=True)
            if name in ("virtserialport", "virtconsole"):
                add_device(machine, {"driver": "virtio-serial-pci", "id": "serial"}, keyval=True)
            if name == "sd-card":
                add_device(machine, {"driver": "sdhci-pci"}, keyval=True)
            if "-ipmi" in name:
                add_device(machine, {"driver": "ipmi-bmc-sim", "id": "bmc"}, keyval=True)
                options["bmc"] = "bmc"
            if getattr(registry.find(name), "bus_type", None) == "usb-bus":
                add_device(machine, {"driver": "piix3-usb-uhci", "id": "usb"}, keyval=True)
            try:
                add_device(machine, options, keyval=True)
            except QobraError as error:
                if "drive" not in str(error):
                    raise
                add_device(machine, options | {"drive": "disk0"}, keyval=True)
        except QobraError:
            machine.close()
            return None
        machine.board.ready = True
        machine.board.reset_all()
    return machine


def poke(machine: Machine, chance: random.Random) -> None:
    """What a hostile guest may do: open all windows, then write anywhere in them."""
    board = machine.board
    with machine.control:
        for at, bus in enumerate(b for b in all_buses(board.system_bus) if hasattr(b, "functions")):
            for function in list(bus.functions.values()):
                for number, bar in function.bars.items():
                    place = 0xC000 + 0x100 * at if bar.flags & 1 else 0xE0000000 + (at * 8 + number << 21)
                    function.config_write(0x30 if number == 6 else 0x10 + 4 * number, 4, place)
                function.config_write(0x04, 2, 0x0007)
        places = [
            (start, end, board.memory) for start, end, region, _o in board.memory.flat() if "ram" not in region.name
        ]
        places += [(start, end, board.ports) for start, end, _region, _o in board.ports.flat()]
        for _ in range(400):
            start, end, space = chance.choice(places)
            width = chance.choice((1, 2, 4))
            offset = chance.randrange(min(max(end - start - width, 0) + 1, 0x400))
            value = chance.choice((0, 1, 0xFF, chance.getrandbits(32))) & ((1 << 8 * width) - 1)
            if space is board.ports and start + offset in (0xCF9, 0x92, 0x64, 0x402, 0x505, 0xB004):
                continue  # would reset or end the machine, or ask for time
            if chance.random() < 0.7:
                space.store(start + offset, width, value)
            else:
                space.load(start + offset, width)
        # Not long: a guest may have set a timer to less than a microsecond.
        board.clock.step(chance.randrange(3_000_000))


def saved(machine: Machine) -> dict[str, bytes]:
    result = {}
    for name, owner in machine_state.state_owners(machine.board):
        out = bytearray()
        put_object(out, owner)
        result[name] = bytes(out)
    return result


def readable(machine: Machine) -> list[int]:
    """What can be read without side effects that matter: configuration spaces, and memory-mapped views."""
    board = machine.board
    values = [start ^ end for start, end, _region, _offset in (*board.memory.flat(), *board.ports.flat())]
    for bus in all_buses(board.system_bus):
        for devfn in sorted(getattr(bus, "functions", {})):
            values += [bus.functions[devfn].config_read(offset, 1) for offset in range(256)]
    return values


def move(source: Machine, destination: Machine) -> None:
    with source.control:
        source.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(source, "paused")
    with destination.control:
        for block, there in zip(ram_blocks(source.board), ram_blocks(destination.board), strict=True):
            there.ram.view[:] = block.ram.view
        machine_state.load_devices(destination, bytes(head), [bytes(payload) for _kind, payload in sections])


@pytest.mark.parametrize("board", ["pc", "q35", "virt"])
@pytest.mark.parametrize("seed", range(6))
def test_boards(board: str, seed: int) -> None:
    architecture = "riscv64" if board == "virt" else "x86_64"
    source, destination = (simple_machine(architecture, board, memory=2 << 20) for _ in range(2))
    try:
        poke(source, random.Random(seed))
        check(source, destination)
    finally:
        source.close()
        destination.close()


@pytest.mark.parametrize("name", pluggable())
def test_devices(name: str) -> None:
    tried = False
    for board in ("q35", "pc", "virt"):
        source = machine_with(board, name)
        if source is None:
            continue
        destination = machine_with(board, name)
        assert destination is not None
        try:
            device = source.objects.resolve("/machine/peripheral/it")
            assert isinstance(device, Device)
            if not all(is_declared(type(owner)) for _name, owner in machine_state.state_owners(source.board)):
                with pytest.raises(QobraError, match="State blocked by non-migratable device"):
                    machine_state.check_declared(source.board)
                pytest.skip("cannot be migrated, and says so")
            poke(source, random.Random(name))
            check(source, destination)
            tried = True
        finally:
            source.close()
            destination.close()
        break
    if not tried:
        pytest.skip("wants what this test has not")


def check(source: Machine, destination: Machine) -> None:
    assert saved(source) != saved(destination), "the guest did nothing"
    try:
        move(source, destination)
    except QobraError as error:
        if "State blocked by device" not in str(error):
            raise
        pytest.skip(str(error))
    before, after = saved(source), saved(destination)
    assert after.keys() == before.keys()
    for name in before:
        assert after[name] == before[name], name
    assert readable(destination) == readable(source)
    # The source and its copy go on alike.
    for machine in (source, destination):
        with machine.control:
            machine.board.clock.step(2_000_000)
            machine.run_state.settle()
    for name, state in saved(source).items():
        assert saved(destination)[name] == state, name
