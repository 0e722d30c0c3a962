"""The device tree of the board ``virt``: what there is and where, by the kernel's bindings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine.board_type import virt
from qobra.machine.device.riscv_aclint import MTIME, SOFTWARE, SUPERVISOR_SOFTWARE, SWI_SIZE, TIMER
from qobra.machine.device.riscv_sifive_plic import EXTERNAL
from qobra.machine.devicetree import Node, wide

if TYPE_CHECKING:
    from qobra.machine.board_type.virt import Virt

_UART_CLOCK = 3_686_400
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
    for socket in range(len(board.sockets)):
        _interrupts(soc, board, socket)
    slots = _plic_handle(board, board.socket_of(virt.PLIC_OF_VIRTIO))
    for number in range(virt.VIRTIO_COUNT):
        base = virt.VIRTIO + 0x1000 * number
        _device(soc, "virtio_mmio", base, 0x1000, "virtio,mmio", interrupt=(slots, virt.IRQ_VIRTIO + number))
    _pci(soc, board)
    test = _device(soc, "test", virt.TEST, 0x1000, "sifive,test1", "sifive,test0", "syscon")
    test.cells("phandle", _test_handle(board))
    for name, value in (("reboot", _REBOOT), ("poweroff", _POWER_OFF)):
        node = root.child(name)
        node.text("compatible", f"syscon-{name}")
        node.cells("regmap", _test_handle(board))
        node.cells("offset", 0)
        node.cells("value", value)
    first = _plic_handle(board, board.socket_of(virt.PLIC_OF_SERIAL))
    serial = _device(soc, "serial", virt.UART, 0x100, "ns16550a", interrupt=(first, virt.IRQ_UART))
    serial.cells("clock-frequency", _UART_CLOCK)
    _device(soc, "rtc", virt.RTC, 0x1000, "google,goldfish-rtc", interrupt=(first, virt.IRQ_RTC))
    flash = root.child(f"flash@{virt.FLASH:x}")
    flash.text("compatible", "cfi-flash")
    flash.cells("reg", *(wide(n) for i in (0, 1) for n in (virt.FLASH + virt.FLASH_SIZE * i, virt.FLASH_SIZE)))
    flash.cells("bank-width", 4)
    _device(root, "fw-cfg", virt.FW_CFG, 0x18, "qemu,fw-cfg-mmio").flag("dma-coherent")
    _platform_bus(root, board)
    chosen = root.child("chosen")
    chosen.text("stdout-path", f"/soc/serial@{virt.UART:x}")
    chosen.properties["rng-seed"] = board.tree.machine.random.randbytes(32)
    return root


def _device(
    parent: Node, name: str, base: int, size: int, *compatible: str, interrupt: tuple[int, int] | None = None
) -> Node:
    """A device. ``interrupt``: the handle of the controller, and its source."""
    node = parent.child(f"{name}@{base:x}")
    node.text("compatible", *compatible)
    node.cells("reg", wide(base), wide(size))
    if interrupt is not None:
        controller, source = interrupt
        node.cells("interrupt-parent", controller)
        node.cells("interrupts", source)
    return node


def _memory(root: Node, board: Virt) -> None:
    start = virt.RAM
    nodes: list[tuple[int | None, int]] = [
        (number, node.memory or 0) for number, node in sorted(board.numa.nodes.items())
    ]
    for number, size in nodes or [(None, board.ram_size)]:
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
    """The handles of a CPU and of its interrupt controller: the last CPU has the first ones."""
    first = 1 + 2 * (len(board.cpus) - 1 - index)
    return first, first + 1


def _plic_handle(board: Virt, socket: int) -> int:
    return 2 * len(board.cpus) + len(board.sockets) - socket


def _test_handle(board: Virt) -> int:
    return _plic_handle(board, 0) + 1


def _cpus(root: Node, board: Virt) -> None:
    cpus = root.child("cpus")
    cpus.cells("#address-cells", 1)
    cpus.cells("#size-cells", 0)
    cpus.cells("timebase-frequency", virt.TIME_BASE)
    clusters = Node()
    for socket, harts in enumerate(board.sockets):
        cluster = clusters.child(f"cluster{socket}")
        for place, index in enumerate(harts):
            _cpu(cpus, board, index)
            cluster.child(f"core{place}").cells("cpu", _cpu_handles(board, index)[0])
    cpus.children["cpu-map"] = clusters


def _cpu(cpus: Node, board: Virt, index: int) -> None:
    hart: Any = board.cpus[index]
    handle, controller_handle = _cpu_handles(board, index)
    node = cpus.child(f"cpu@{index:x}")
    node.cells("phandle", handle)
    node.text("device_type", "cpu")
    node.cells("reg", index)
    node.text("status", "okay")
    node.text("compatible", "riscv")
    node.text("riscv,isa", hart.isa)
    node.text("mmu-type", "riscv,sv48")
    on = board.numa.node_of_cpu(index)
    if on is not None:
        node.cells("numa-node-id", on)
    controller = node.child("interrupt-controller")
    controller.cells("#interrupt-cells", 1)
    controller.flag("interrupt-controller")
    controller.text("compatible", "riscv,cpu-intc")
    controller.cells("phandle", controller_handle)


def _interrupts(soc: Node, board: Virt, socket: int) -> None:
    def device(name: str, base: int, size: int, *compatible: str, lines: tuple[int, ...]) -> Node:
        node = _device(soc, name, base, size, *compatible)
        inputs = [(_cpu_handles(board, index)[1], line) for index in board.sockets[socket] for line in lines]
        node.cells("interrupts-extended", *inputs)
        if board.numa.nodes:
            node.cells("numa-node-id", socket)
        return node

    def software(name: str, base: int, line: int) -> None:
        node = device(name, base, SWI_SIZE, f"riscv,aclint-{name}", lines=(line,))
        node.flag("interrupt-controller")
        node.cells("#interrupt-cells", 0)

    base, size = virt.PLIC + virt.PLIC_SIZE * socket, virt.PLIC_SIZE
    plic = device("plic", base, size, "sifive,plic-1.0.0", "riscv,plic0", lines=(EXTERNAL["M"], EXTERNAL["S"]))
    plic.cells("phandle", _plic_handle(board, socket))
    plic.cells("riscv,ndev", virt.SOURCES)
    plic.flag("interrupt-controller")
    plic.cells("#address-cells", 0)
    plic.cells("#interrupt-cells", 1)
    base, size = virt.CLINT + virt.CLINT_SIZE * socket, virt.CLINT_SIZE
    if not board.aclint:
        device("clint", base, size, "sifive,clint0", "riscv,clint0", lines=(SOFTWARE, TIMER))
        return
    software("mswi", base, SOFTWARE)
    software("sswi", virt.SSWI + virt.SSWI_SIZE * socket, SUPERVISOR_SOFTWARE)
    comparators, end = base + SWI_SIZE, base + size
    timer = device("mtimer", comparators, MTIME, "riscv,aclint-mtimer", lines=(TIMER,))
    counter = comparators + MTIME
    timer.cells("reg", wide(counter), wide(end - counter), wide(comparators), wide(MTIME))


def _pci(soc: Node, board: Virt) -> None:
    node = _device(soc, "pci", virt.ECAM, 0x10000000, "pci-host-ecam-generic")
    node.text("device_type", "pci")
    node.cells("#address-cells", 3)
    node.cells("#interrupt-cells", 1)
    node.cells("#size-cells", 2)
    node.cells("linux,pci-domain", 0)
    node.cells("bus-range", 0, 0xFF)
    node.flag("dma-coherent")
    high, controller = board.high_window, _plic_handle(board, board.socket_of(virt.PLIC_OF_PCIE))
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
            (slot << 11, 0, 0, pin + 1, controller, virt.IRQ_PCIE + (slot + pin) % _PCI_PINS)
            for slot in range(_PCI_PINS)
            for pin in range(_PCI_PINS)
        ),
    )


def _platform_bus(root: Node, board: Virt) -> None:
    node = root.child(f"platform-bus@{virt.PLATFORM_BUS:x}")
    node.text("compatible", "qemu,platform", "simple-bus")
    node.cells("#size-cells", 1)
    node.cells("#address-cells", 1)
    node.cells("ranges", 0, wide(virt.PLATFORM_BUS), virt.PLATFORM_BUS_SIZE)
    node.cells("interrupt-parent", _plic_handle(board, board.socket_of(virt.PLIC_OF_SERIAL)))
    for place in board.platform_bus.places:
        device = node.child(f"{place.device.node_name}@{place.offset:x}")
        device.text("compatible", *place.device.compatible)
        device.cells("reg", place.offset, place.size)
        device.cells("interrupts", virt.IRQ_PLATFORM_BUS + place.number)
