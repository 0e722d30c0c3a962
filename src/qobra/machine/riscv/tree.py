"""The device tree of the board ``virt``: what there is and where, by the kernel's bindings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine.board_type import virt
from qobra.machine.devicetree import Node, wide

if TYPE_CHECKING:
    from qobra.machine.board_type.virt import Virt

_UART_CLOCK = 3_686_400
_SOFTWARE, _TIMER, _SUPERVISOR_EXTERNAL, _MACHINE_EXTERNAL = 3, 7, 9, 11
_PLIC_SIZE, _CLINT_SIZE, _PLIC_HANDLE, _TEST_HANDLE, _FIRST_CPU_HANDLE = 0x600000, 0x10000, 1, 2, 3
_POWER_OFF, _REBOOT = 0x5555, 0x7777
_PCI_PINS = 4


def build(board: Virt) -> Node:
    """The tree, without what depends on the kernel that is started."""
    root = Node()
    root.text("model", "riscv-virtio,qemu")
    root.text("compatible", "riscv-virtio")
    root.cells("#size-cells", 2)
    root.cells("#address-cells", 2)
    _memory(root, board)
    _cpus(root, board)
    soc = root.child("soc")
    soc.flag("ranges")
    soc.text("compatible", "simple-bus")
    soc.cells("#size-cells", 2)
    soc.cells("#address-cells", 2)
    _interrupts(soc, board)
    for number in range(virt.VIRTIO_COUNT):
        base = virt.VIRTIO + 0x1000 * number
        _device(soc, "virtio_mmio", base, 0x1000, "virtio,mmio", interrupt=virt.IRQ_VIRTIO + number)
    _pci(soc, board)
    test = _device(soc, "test", virt.TEST, 0x1000, "sifive,test1", "sifive,test0", "syscon")
    test.cells("phandle", _TEST_HANDLE)
    for name, value in (("reboot", _REBOOT), ("poweroff", _POWER_OFF)):
        node = root.child(name)
        node.text("compatible", f"syscon-{name}")
        node.cells("regmap", _TEST_HANDLE)
        node.cells("offset", 0)
        node.cells("value", value)
    serial = _device(soc, "serial", virt.UART, 0x100, "ns16550a", interrupt=virt.IRQ_UART)
    serial.cells("clock-frequency", _UART_CLOCK)
    _device(soc, "rtc", virt.RTC, 0x1000, "google,goldfish-rtc", interrupt=virt.IRQ_RTC)
    flash = root.child(f"flash@{virt.FLASH:x}")
    flash.text("compatible", "cfi-flash")
    flash.cells("reg", *(wide(n) for i in (0, 1) for n in (virt.FLASH + virt.FLASH_SIZE * i, virt.FLASH_SIZE)))
    flash.cells("bank-width", 4)
    _device(root, "fw-cfg", virt.FW_CFG, 0x18, "qemu,fw-cfg-mmio").flag("dma-coherent")
    chosen = root.child("chosen")
    chosen.text("stdout-path", f"/soc/serial@{virt.UART:x}")
    chosen.properties["rng-seed"] = board.tree.machine.random.randbytes(32)
    return root


def _device(parent: Node, name: str, base: int, size: int, *compatible: str, interrupt: int | None = None) -> Node:
    node = parent.child(f"{name}@{base:x}")
    node.text("compatible", *compatible)
    node.cells("reg", wide(base), wide(size))
    if interrupt is not None:
        node.cells("interrupt-parent", _PLIC_HANDLE)
        node.cells("interrupts", interrupt)
    return node


def _memory(root: Node, board: Virt) -> None:
    start = virt.RAM
    nodes: list[tuple[int | None, int]] = [
        (number, node.memory or 0) for number, node in sorted(board.numa.nodes.items())
    ]
    for number, size in nodes or [(None, board.ram_size)]:
        if size:
            node = root.child(f"memory@{start:x}")
            node.text("device_type", "memory")
            node.cells("reg", wide(start), wide(size))
            if number is not None:
                node.cells("numa-node-id", number)
            start += size
    numbers = sorted(board.numa.nodes)
    if numbers and board.numa.distances:
        distances = root.child("distance-map")
        distances.text("compatible", "numa-distance-map-v1")
        distances.cells("distance-matrix", *((a, b, board.numa.distance(a, b)) for a in numbers for b in numbers))


def _cpu_handles(board: Virt, index: int) -> tuple[int, int]:
    """The handles of a CPU and of its interrupt controller."""
    return _FIRST_CPU_HANDLE + 2 * index, _FIRST_CPU_HANDLE + 2 * index + 1


def _cpus(root: Node, board: Virt) -> None:
    cpus = root.child("cpus")
    cpus.cells("#address-cells", 1)
    cpus.cells("#size-cells", 0)
    cpus.cells("timebase-frequency", virt.TIME_BASE)
    cluster = Node()
    for cpu in board.cpus:
        harts: Any = cpu
        handle, controller_handle = _cpu_handles(board, cpu.index)
        node = cpus.child(f"cpu@{cpu.index:x}")
        node.cells("phandle", handle)
        node.text("device_type", "cpu")
        node.cells("reg", cpu.index)
        node.text("status", "okay")
        node.text("compatible", "riscv")
        node.text("riscv,isa", harts.isa)
        node.text("mmu-type", "riscv,sv48")
        on = board.numa.node_of_cpu(cpu.index)
        if on is not None:
            node.cells("numa-node-id", on)
        controller = node.child("interrupt-controller")
        controller.cells("#interrupt-cells", 1)
        controller.flag("interrupt-controller")
        controller.text("compatible", "riscv,cpu-intc")
        controller.cells("phandle", controller_handle)
        cluster.child(f"core{cpu.index}").cells("cpu", handle)
    cpus.child("cpu-map").children["cluster0"] = cluster


def _interrupts(soc: Node, board: Virt) -> None:
    def inputs(*lines: int) -> list[tuple[int, int]]:
        return [(_cpu_handles(board, cpu.index)[1], line) for cpu in board.cpus for line in lines]

    plic = _device(soc, "plic", virt.PLIC, _PLIC_SIZE, "sifive,plic-1.0.0", "riscv,plic0")
    plic.cells("phandle", _PLIC_HANDLE)
    plic.cells("riscv,ndev", virt.SOURCES)
    plic.cells("interrupts-extended", *inputs(_MACHINE_EXTERNAL, _SUPERVISOR_EXTERNAL))
    plic.flag("interrupt-controller")
    plic.cells("#address-cells", 0)
    plic.cells("#interrupt-cells", 1)
    clint = _device(soc, "clint", virt.CLINT, _CLINT_SIZE, "sifive,clint0", "riscv,clint0")
    clint.cells("interrupts-extended", *inputs(_SOFTWARE, _TIMER))


def _pci(soc: Node, board: Virt) -> None:
    node = _device(soc, "pci", virt.ECAM, 0x10000000, "pci-host-ecam-generic")
    node.text("device_type", "pci")
    node.cells("#address-cells", 3)
    node.cells("#interrupt-cells", 1)
    node.cells("#size-cells", 2)
    node.cells("linux,pci-domain", 0)
    node.cells("bus-range", 0, 0xFF)
    node.flag("dma-coherent")
    high = board.high_window
    node.cells(
        "ranges",
        *(0x1000000, wide(0), wide(virt.PIO), wide(0x10000)),
        *(0x2000000, wide(virt.PCI_MEMORY), wide(virt.PCI_MEMORY), wide(virt.PCI_MEMORY_SIZE)),
        *(0x3000000, wide(high), wide(high), wide(virt.PCI_HIGH_SIZE)),
    )
    # Pin A of slot 0 comes to the first source, and each slot begins one further.
    node.cells("interrupt-map-mask", 0x1800, 0, 0, 7)
    node.cells(
        "interrupt-map",
        *(
            (slot << 11, 0, 0, pin + 1, _PLIC_HANDLE, virt.IRQ_PCIE + (slot + pin) % _PCI_PINS)
            for slot in range(_PCI_PINS)
            for pin in range(_PCI_PINS)
        ),
    )
