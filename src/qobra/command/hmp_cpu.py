"""CPUs and what they see, for people: registers, expressions, memory. While no CPU has run, paging is off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.qmp import dispatch
from qobra.qmp.hmp import HmpMonitor, current_cpu, hmp_command
from qobra.qmp.hmp_expression import signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.machine.cpu import Cpu
    from qobra.machine.machine import Machine
    from qobra.machine.memory import AddressSpace
    from qobra.qmp.hmp_arguments import Format

_MASK = (1 << 64) - 1
_X86_PHYSICAL = (1 << 52) - 1
_MAX_SHOWN = 1 << 20
_PLAIN = {"\n": "\\n", "\r": "\\r", "'": "\\'", "\\": "\\\\"}


def _cpu(machine: Machine, monitor: HmpMonitor) -> Cpu:
    cpu = current_cpu(machine, monitor)
    if cpu is None:
        raise QobraError("No CPU available")
    return cpu


@hmp_command("cpu", args="index:i", params="index", help="choose the CPU to look at", needs="board", with_monitor=True)
def cpu(machine: Machine, args: dict[str, Any], monitor: HmpMonitor) -> str | None:
    """Have this monitor's commands be about another CPU."""
    assert machine.board is not None
    if not any(each.index == args["index"] for each in machine.board.cpus):
        return "invalid CPU index\n"
    monitor.cpu_index = args["index"]
    return None


@hmp_command("info cpus", help="the CPUs, and their threads", needs="board", with_monitor=True)
def info_cpus(machine: Machine, args: dict[str, Any], monitor: HmpMonitor) -> str:
    """Each CPU with its thread, the one that the monitor looks at marked."""
    lines = []
    for each in dispatch.call(machine, "query-cpus-fast", {}):
        number = each["cpu-index"]
        lines.append(f"{'*' if number == monitor.cpu_index else ' '} CPU #{number}: thread_id={each['thread-id']}\n")
    return "".join(lines)


@hmp_command(
    "info registers",
    args="cpustate_all:-a,vcpu:i?",
    params="[-a|vcpu]",
    help="a CPU's registers (-a: those of all CPUs)",
    needs="board",
    with_monitor=True,
)
def info_registers(machine: Machine, args: dict[str, Any], monitor: HmpMonitor) -> str:
    """The registers of one CPU, or of all."""
    from qobra.machine import registers

    assert machine.board is not None
    if args.get("cpustate_all"):
        cpus = list(machine.board.cpus)
    elif "vcpu" in args:
        cpus = [each for each in machine.board.cpus if each.index == args["vcpu"]]
        if not cpus:
            return f"CPU#{args['vcpu']} not available\n"
    else:
        cpus = [_cpu(machine, monitor)]
    return "".join(f"\nCPU#{each.index}\n{registers.text(each)}" for each in cpus)


# -- numbers


@hmp_command("print|p", args="fmt:/,val:l", params="/fmt expr", help="work an expression out ($reg is a register)")
def print_(machine: Machine, args: dict[str, Any]) -> str:
    """The value of an expression."""
    value, form = args["val"], args["fmt"].form
    if form == "x":
        text = f"0x{value & _MASK:x}" if value else "0"
    elif form == "o":
        text = f"0{value & _MASK:o}" if value else "0"
    elif form == "c":
        text = _character(value & 0xFFFFFFFF)
    else:
        text = str(value & _MASK if form == "u" else value)
    return text + "\n"


def _character(value: int) -> str:
    character = chr(value) if value < 0x7F else ""
    plain = _PLAIN.get(character, character if character >= " " else "")
    return "'" + (plain or f"\\x{value:02x}") + "'"


@hmp_command("x", args="fmt:/,addr:l", params="/fmt addr", help="look at memory as the CPU sees it", needs="board")
def virtual(machine: Machine, args: dict[str, Any]) -> str:
    """Memory at a virtual address."""
    assert machine.board is not None
    return dump_text(machine.board.memory, args["addr"] & _MASK, args["fmt"])


@hmp_command("xp", args="fmt:/,addr:l", params="/fmt addr", help="look at physical memory", needs="board")
def physical(machine: Machine, args: dict[str, Any]) -> str:
    """Memory at a physical address: ``xp /4xw 0x1000``."""
    assert machine.board is not None
    return dump_text(machine.board.memory, args["addr"] & _MASK, args["fmt"])


def dump_text(memory: AddressSpace, address: int, shown: Format) -> str:
    """Memory as lines of numbers, up to what cannot be read. Raises QobraError for more than can be shown."""
    if shown.form == "i":
        return "Asm output not supported on this arch\n"
    length = shown.count * shown.width
    if length > _MAX_SHOWN:
        raise QobraError(f"no more than {_MAX_SHOWN} bytes are shown at a time")
    per_line = 8 if shown.width == 1 else 16
    width = 1 if shown.form == "c" else shown.width
    lines = []
    for offset in range(0, length, per_line):
        start = (address + offset) & _MASK
        size = min(per_line, length - offset)
        if not _readable(memory, start, size):
            lines.append(f"{start:016x}: Cannot access memory\n")
            break
        data = memory.read(start, size)
        numbers = (int.from_bytes(data[i : i + width], "little") for i in range(0, size, width))
        lines.append(f"{start:016x}: {' '.join(_number(number, width, shown.form) for number in numbers)}\n")
    return "".join(lines)


def _readable(memory: AddressSpace, address: int, length: int) -> bool:
    while length > 0 and (run := memory.mapped(address, length)) > 0:
        address, length = address + run, length - run
    return length == 0


def _number(value: int, width: int, form: str) -> str:
    if form == "c":
        return _character(value)
    if form == "x":
        return f"0x{value:0{2 * width}x}"
    if form == "o":
        return (f"0{value:o}" if value else "0").rjust((8 * width + 2) // 3)
    if form == "d" and width == 8:
        value = signed(value)  # QEMU shows shorter ones without a sign
    # As wide as the largest number of this width.
    return str(value).rjust((80 * width + 32) // 33)


# -- addresses


@hmp_command(
    "gva2gpa",
    args="addr:l",
    params="addr",
    help="the physical address of a virtual one",
    needs="board",
    with_monitor=True,
)
def gva2gpa(machine: Machine, args: dict[str, Any], monitor: HmpMonitor) -> str:
    """The guest's physical address of what a CPU sees."""
    mask = _X86_PHYSICAL if _cpu(machine, monitor).architecture == "x86_64" else _MASK
    address = args["addr"] & mask
    return f"gpa: {address:#x}\n" if address else "gpa: 0\n"


def _host_address(machine: Machine, address: int, kind: str, find: Callable[[memoryview], int]) -> str:
    from qobra.machine.memory import Ram

    assert machine.board is not None
    found = machine.board.memory.at(address)
    if found is None:
        return f"No memory is mapped at address 0x{address:x}\n"
    region, offset = found
    if not isinstance(region, Ram):
        return f"Memory at address 0x{address:x} is not RAM\n"
    place = find(region.piece(offset, 1))
    return f"Host {kind} address for 0x{address:x} ({region.name}) is 0x{place:x}\n"


@hmp_command("gpa2hva", args="addr:l", params="addr", help="where the program has physical memory", needs="board")
def gpa2hva(machine: Machine, args: dict[str, Any]) -> str:
    """The address in this process of the guest's memory."""
    from qobra.machine.host_memory import address_of

    return _host_address(machine, args["addr"] & _MASK, "virtual", address_of)


@hmp_command("gpa2hpa", args="addr:l", params="addr", help="where the host has physical memory", needs="board")
def gpa2hpa(machine: Machine, args: dict[str, Any]) -> str:
    """The host's physical address of the guest's memory."""
    from qobra.machine.host_memory import address_of, physical_address

    return _host_address(machine, args["addr"] & _MASK, "physical", lambda view: physical_address(address_of(view)))
