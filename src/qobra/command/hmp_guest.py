"""The guest's memory, ports and pointer for people: files of memory, sums, port accesses, mouse moves."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.machine.memory import AddressSpace, Ram
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command
from qobra.units import integer

_FORMATS = {"zlib": "kdump-zlib", "lzo": "kdump-lzo", "snappy": "kdump-snappy", "windmp": "win-dmp"}
_PORT_WIDTHS = {1: ("b", 1), 2: ("w", 2), 4: ("l", 4)}
_MOST_SUMMED = 1 << 24
_BUTTONS = ("left", "middle", "right")


@hmp_command(
    "dump-guest-memory",
    args="paging:-p,detach:-d,windmp:-w,zlib:-z,lzo:-l,snappy:-s,filename:F,begin:l?,length:l?",
    params="[-p] [-d] [-z|-l|-s|-w] filename [begin length]",
    help="write the guest's memory to a file",
    needs="board",
)
def dump_guest_memory(machine: Machine, args: dict[str, Any]) -> None:
    """A core file (ELF unless a flag says otherwise), of all memory or a part."""
    formats = [kind for flag, kind in _FORMATS.items() if args.get(flag)]
    if len(formats) > 1:
        raise QobraError("only one of '-z|-l|-s|-w' can be set")
    options: dict[str, Any] = {"paging": bool(args.get("paging")), "protocol": f"file:{args['filename']}"}
    options |= {name: args[name] for name in ("begin", "length") if name in args}
    if args.get("detach"):
        options["detach"] = True
    if formats:
        options["format"] = formats[0]
    dispatch.call(machine, "dump-guest-memory", options)


@hmp_command(
    "memsave",
    args="val:l,size:i,filename:s",
    params="addr size file",
    help="write a range of memory, as the CPU sees it, to a file",
    needs="board",
)
def memsave(machine: Machine, args: dict[str, Any]) -> None:
    """Memory as the CPU sees it, to a file."""
    dispatch.call(machine, "memsave", args)


@hmp_command(
    "pmemsave",
    args="val:l,size:i,filename:s",
    params="addr size file",
    help="write a range of physical memory to a file",
    needs="board",
)
def pmemsave(machine: Machine, args: dict[str, Any]) -> None:
    """Physical memory, to a file."""
    dispatch.call(machine, "pmemsave", args)


@hmp_command(
    "sum",
    args="start:i,size:i",
    params="addr size",
    help="the sum of 16 bits of a range of physical memory",
    needs="board",
)
def checksum(machine: Machine, args: dict[str, Any]) -> str:
    """The sum that BSD's ``sum`` gives. Raises QobraError for more than can be summed while everything else waits."""
    assert machine.board is not None
    if args["size"] > _MOST_SUMMED:
        raise QobraError(f"no more than {_MOST_SUMMED} bytes are summed at a time")
    total = 0
    for offset in range(0, args["size"], 4096):
        for byte in machine.board.memory.read(args["start"] + offset, min(4096, args["size"] - offset)):
            total = ((total >> 1 | total << 15) + byte) & 0xFFFF
    return f"{total:05d}\n"


def _ports(machine: Machine) -> AddressSpace:
    assert machine.board is not None
    return machine.board.ports


@hmp_command("i", args="fmt:/,addr:i,index:i.", params="/fmt addr", help="a read of an I/O port", needs="board")
def port_in(machine: Machine, args: dict[str, Any]) -> str:
    """What a port reads as: ``/b``, ``/h`` or ``/w`` wide. With an index, that is written to the port before it."""
    ports, address, width = _ports(machine), args["addr"] & 0xFFFF, args["fmt"].width
    suffix, at_once = _PORT_WIDTHS.get(width, _PORT_WIDTHS[1])
    if "index" in args:
        ports.store(address, 1, args["index"] & 0xFF)
        address += 1
    value = ports.load(address, at_once)
    return f"port{suffix}[0x{address:04x}] = 0x{value:0{2 * width}x}\n"


@hmp_command("o", args="fmt:/,addr:i,val:i", params="/fmt addr value", help="a write to an I/O port", needs="board")
def port_out(machine: Machine, args: dict[str, Any]) -> None:
    """Write to a port."""
    _suffix, width = _PORT_WIDTHS.get(args["fmt"].width, _PORT_WIDTHS[1])
    _ports(machine).store(args["addr"] & 0xFFFF, width, args["val"] & ((1 << 8 * width) - 1))


@hmp_command(
    "info mtree", args="flatview:-f", params="[-f]", help="what lies where in the address space", needs="board"
)
def info_mtree(machine: Machine, args: dict[str, Any]) -> str:
    """What is mapped where, in memory and among the ports; with ``-f`` what of it shows."""
    assert machine.board is not None
    lines: list[str] = []
    for name, space in (("memory", machine.board.memory), ("I/O", machine.board.ports)):
        lines.append(f'FlatView of "{name}"' if args.get("flatview") else f"address-space: {name}")
        if args.get("flatview"):
            for start, end, region, offset in space.flat():
                at = f" @{offset:016x}" if offset else ""
                lines.append(f"  {start:016x}-{end - 1:016x} ({_kind(region)}): {region.name}{at}")
        else:
            for mapping in space.mappings():
                last = mapping.base + mapping.size - 1
                state = "" if mapping.enabled else " [disabled]"
                kind = _kind(mapping.region)
                where = f"  {mapping.base:016x}-{last:016x} (prio {mapping.priority}, {kind})"
                lines.append(f"{where}: {mapping.region.name}{state}")
        lines.append("")
    return "\n".join(lines) + "\n"


def _kind(region: object) -> str:
    if not isinstance(region, Ram):
        return "i/o"
    return "rom" if region.readonly else "ram"


@hmp_command(
    "boot_set",
    args="bootdevice:s",
    params="bootdevice",
    help="choose what the next boot tries, in which order",
    needs="board",
)
def boot_set(machine: Machine, args: dict[str, Any]) -> str:
    """What the firmware is to boot from, at the next reset."""
    assert machine.board is not None
    try:
        machine.board.set_boot_order(args["bootdevice"])
    except QobraError as error:
        return f"{error}\n"  # without "Error:", as in QEMU
    return f"boot device list now set to {args['bootdevice']}\n"


@hmp_command("exit_preconfig", help="finish the machine that -preconfig left open", needs="board")
def exit_preconfig(machine: Machine, args: dict[str, Any]) -> None:
    """Make the machine that was configured."""
    dispatch.call(machine, "x-exit-preconfig", {})


@hmp_command(
    "mouse_move",
    args="dx:s,dy:s,dz:s?",
    params="dx dy [dz]",
    help="move the mouse, or turn its wheel",
    needs="board",
)
def mouse_move(machine: Machine, args: dict[str, Any]) -> None:
    """Move the pointer, and turn the wheel."""
    dx, dy, dz = (_digits(args.get(name, "")) for name in ("dx", "dy", "dz"))
    events = [{"type": "rel", "data": {"axis": axis, "value": value}} for axis, value in (("x", dx), ("y", dy))]
    if dz:
        button = "wheel-up" if dz > 0 else "wheel-down"
        events += [{"type": "btn", "data": {"button": button, "down": down}} for down in (True, False)]
    _point(machine, events)


def _digits(text: str) -> int:
    return integer(text) or 0  # what is no number moves nothing, as in QEMU


@hmp_command(
    "mouse_button",
    args="state:i",
    params="state",
    help="hold mouse buttons: the sum of 1 (left), 2 (middle), 4 (right)",
    needs="board",
)
def mouse_button(machine: Machine, args: dict[str, Any]) -> None:
    """Press and let go buttons: those whose bits are set are down."""
    _point(
        machine,
        [
            {"type": "btn", "data": {"button": button, "down": bool(args["state"] >> bit & 1)}}
            for bit, button in enumerate(_BUTTONS)
        ],
    )


def _point(machine: Machine, events: list[dict[str, Any]]) -> None:
    assert machine.board is not None
    machine.board.input.deliver(events)
