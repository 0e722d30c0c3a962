"""``-drive`` and the short options for disks: an image, the backend that users name, and where the board is to show it.

The options of the drive itself are taken here; whatever else is said is for the block drivers, with dots for what is
inside (``file.locking=off``, ``backing.driver=raw``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.cache_modes import CACHE_MODES
from qobra.block.opener import valid_id
from qobra.block.throttle import MEMBERS, Limits, Membership
from qobra.chardev.options import split
from qobra.errors import QobraError
from qobra.machine.option_groups import boolean, number
from qobra.units import decimal

if TYPE_CHECKING:
    from qobra.block.node import BlockNode
    from qobra.machine.machine import Machine

# Places on a bus of each interface; 0 where there are no buses.
_UNITS = {"ide": 2, "scsi": 7, "floppy": 0, "pflash": 0, "mtd": 0, "sd": 0, "virtio": 0, "xen": 0, "none": 0}
_WITH_ERROR_POLICY = ("ide", "scsi", "virtio", "none")
_ON_ERROR = {"werror": ("ignore", "enospc", "stop", "report"), "rerror": ("ignore", "stop", "report")}
_DETECT_ZEROES = ("off", "on", "unmap")
_DISCARD = {"ignore": "ignore", "off": "ignore", "unmap": "unmap", "on": "unmap"}
_AIO = ("threads", "native", "io_uring")
_ALIASES = {"readonly": "read-only", "iops_size": "throttling.iops-size", "group": "throttling.group"} | {
    f"{unit}{old}{extra.replace('-', '_')}": f"throttling.{unit}-{new}{extra}"
    for unit in ("iops", "bps")
    for old, new in (("", "total"), ("_rd", "read"), ("_wr", "write"))
    for extra in ("", "-max")
}


class DriveInfo:
    """A drive: its backend, and where the board is to show it."""

    def __init__(
        self, backend: BlockBackend, interface: str, bus: int, unit: int, media: str, index: int | None = None
    ) -> None:
        self.backend = backend
        self.interface = interface
        self.bus = bus
        self.unit = unit
        self.media = media
        self.index = unit if index is None else index
        """The number among the drives of the interface."""
        self.claimed = False
        self.unasked = False
        """Whether it is there because nobody said that it is not to be."""
        self.option = ""
        """The option of the command line, for what is said of the drive later."""


class Drives:
    """The drives of the command line. ``ide_units`` is how many devices each IDE bus of the board takes."""

    def __init__(self, machine: Machine, *, default_interface: str, ide_units: int = 2, snapshot: bool = False) -> None:
        self._machine = machine
        self._default_interface = default_interface
        self._units = _UNITS | {"ide": ide_units}
        self._snapshot = snapshot
        self.drives: list[DriveInfo] = []
        self.warnings: list[str] = []
        """What was asked for and is not done."""

    def add_text(self, text: str) -> DriveInfo:
        """A ``-drive`` option."""
        return self.add(split(text, "file"))

    def add(self, options: dict[str, str]) -> DriveInfo:
        """A drive from its options. Raises QobraError in QEMU's words."""
        options = _without_aliases(options)
        cache = _cache(options)
        take = options.pop
        media = take("media", "disk")
        if media not in ("disk", "cdrom"):
            raise QobraError(f"'{media}' invalid media")
        read_only = boolean("read-only", take("read-only", "off")) or media == "cdrom"
        copy_on_read = boolean("copy-on-read", take("copy-on-read", "off"))
        if read_only and copy_on_read:
            self.warnings.append("disabling copy-on-read on read-only drive")
            copy_on_read = False
        interface = take("if", self._default_interface)
        if interface not in self._units:
            raise QobraError(f"unsupported bus type '{interface}'")
        bus, unit = self._place(options, interface)
        name = take("id", None) or self._default_id(interface, media, bus, unit)
        self._check_id(name)
        on_error = _on_error(options, interface)
        account = {key: boolean(key, take(key)) for key in _ACCOUNT if key in options}
        intervals = _intervals(options)
        detect_zeroes = take("detect-zeroes", "off")
        if detect_zeroes not in _DETECT_ZEROES:
            raise QobraError(f"invalid parameter value: {detect_zeroes}")
        limits, group = _limits(options)
        snapshot = boolean("snapshot", take("snapshot")) if "snapshot" in options else self._snapshot

        backend = BlockBackend(self._machine.block, name, perm=0)
        backend.writeback = cache["writeback"]
        backend.on_error = on_error
        backend.auto_delete = True
        backend.medium_read_only = read_only
        for key, value in account.items():
            setattr(backend.accounting, _ACCOUNT[key], value)
        backend.accounting.set_intervals(intervals)
        file = take("file", "")
        aio = _aio(options)
        nodes = _node_options(options, has_file=bool(file))
        if nodes.get("node-name") == name:
            raise _name_conflict(name)
        if file or nodes:
            backend.perm = permissions.CONSISTENT_READ
            if cache["direct"] or cache["no-flush"]:
                nodes["cache"] = {"direct": cache["direct"], "no-flush": cache["no-flush"]}
            nodes.setdefault("read-only", read_only)
            nodes.setdefault("auto-read-only", True)
            node = self._open(backend, file, nodes, aio=aio, snapshot=snapshot, copy_on_read=copy_on_read)
            if aio is not None:
                _take_as_flag(node)
            node.detect_zeroes = detect_zeroes
        self._machine.block.backends[name] = backend
        if limits.enabled():
            backend.throttle = Membership(self._machine.block.throttle_group(group or name))
            backend.throttle.group.set_limits(limits)
        drive = DriveInfo(backend, interface, bus, unit, media, bus * self._units[interface] + unit)
        self.drives.append(drive)
        return drive

    def _place(self, options: dict[str, str], interface: str) -> tuple[int, int]:
        per_bus = self._units[interface]
        bus = number("bus", options.pop("bus", "0"))
        unit = number("unit", options.pop("unit")) if "unit" in options else -1
        if "index" in options:
            if bus or unit >= 0:
                raise QobraError("index cannot be used with bus and unit")
            index = number("index", options.pop("index"))
            bus, unit = divmod(index, per_bus) if per_bus else (0, index)
        taken = {(d.bus, d.unit) for d in self.drives if d.interface == interface}
        if unit < 0:
            unit = 0
            while (bus, unit) in taken:
                unit += 1
                if per_bus and unit >= per_bus:
                    bus, unit = bus + 1, 0
        if per_bus and unit >= per_bus:
            raise QobraError(f"unit {unit} too big (max is {per_bus - 1})")
        if (bus, unit) in taken:
            raise QobraError(f"drive with bus={bus}, unit={unit} (index={bus * per_bus + unit}) exists")
        return bus, unit

    def is_free(self, options: dict[str, str]) -> bool:
        """Whether no drive has the place that ``if`` and ``index`` say."""
        interface, index = options.get("if", self._default_interface), int(options["index"])
        return all((each.interface, each.index) != (interface, index) for each in self.drives)

    def _default_id(self, interface: str, media: str, bus: int, unit: int) -> str:
        kind = {"cdrom": "-cd", "disk": "-hd"}[media] if interface in ("ide", "scsi") else ""
        return f"{interface}{bus if self._units[interface] else ''}{kind}{unit}"

    def _check_id(self, name: str) -> None:
        layer = self._machine.block
        if not valid_id(name):
            raise QobraError(
                "Parameter 'id' expects an identifier\n"
                "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
            )
        if name in layer.backends:
            raise QobraError(f"Duplicate ID '{name}' for drive")
        if layer.graph.find(name) is not None:
            raise _name_conflict(name)

    def _open(
        self,
        backend: BlockBackend,
        file: str,
        nodes: dict[str, Any],
        *,
        aio: str | None,
        snapshot: bool,
        copy_on_read: bool,
    ) -> BlockNode:
        layer = self._machine.block
        options = layer.opener.image_options(file, nodes) if file else nodes
        if aio is not None:
            _give_aio(options, aio)
        if snapshot:
            from qobra.block.temporary import open_over

            return open_over(layer, options, root=backend)
        if copy_on_read:
            filter = layer.open({"driver": "copy-on-read", "file": options}, root=backend)
            filter.implicit = True
            return filter.file
        return layer.open(options, root=backend)


def _name_conflict(name: str) -> QobraError:
    return QobraError(f"Device name '{name}' conflicts with an existing node name")


_ACCOUNT = {"stats-account-invalid": "account_invalid", "stats-account-failed": "account_failed"}


def _without_aliases(options: dict[str, str]) -> dict[str, str]:
    result = dict(options)
    for alias, name in _ALIASES.items():
        if alias in result:
            if name in result:
                raise QobraError(f"'{name}' and its alias '{alias}' can't be used at the same time")
            result[name] = result.pop(alias)
    return result


def _cache(options: dict[str, str]) -> dict[str, bool]:
    mode = options.pop("cache", "writeback")
    if mode not in CACHE_MODES:
        raise QobraError("invalid cache option")
    through, direct, no_flush = CACHE_MODES[mode]
    result = {"writeback": not through, "direct": direct, "no-flush": no_flush}
    for key in result:
        if f"cache.{key}" in options:
            result[key] = boolean(f"cache.{key}", options.pop(f"cache.{key}"))
    return result


def _on_error(options: dict[str, str], interface: str) -> dict[str, str]:
    result: dict[str, str] = {}
    for key, actions in _ON_ERROR.items():
        action = options.pop(key, None)
        if action is None:
            continue
        if interface not in _WITH_ERROR_POLICY:
            raise QobraError(f"{key} is not supported by this bus type")
        if action not in actions:
            raise QobraError(f"'{action}' invalid {'write' if key == 'werror' else 'read'} error action")
        result[key] = action
    return result


def _intervals(options: dict[str, str]) -> list[int]:
    lengths: list[int] = []
    while (text := options.pop(f"stats-intervals.{len(lengths)}", None)) is not None:
        length = decimal(text) or 0
        if not 0 < length < 1 << 32:
            raise QobraError(f"Invalid interval length: {text}")
        lengths.append(length)
    return lengths


def _limits(options: dict[str, str]) -> tuple[Limits, str | None]:
    members: dict[str, int] = {}
    for name in MEMBERS:
        key = f"throttling.{name}"
        if key in options:
            text = options.pop(key)
            # A negative number is one, and refused for what it is.
            positive = decimal(text[1:]) if text.startswith("-") else None
            members[name] = -positive if positive is not None else number(key, text)
    group = options.pop("throttling.group", None)
    return Limits().updated(members), group


def _aio(options: dict[str, str]) -> str | None:
    aio = options.pop("aio", None)
    if aio is not None and aio not in _AIO:
        raise QobraError("invalid aio option")
    return aio


def _give_aio(options: dict[str, Any], aio: str) -> None:
    """How requests are made is for the node of the file or device; others never hear of it."""
    while isinstance(inner := options.get("file"), dict):
        options = inner
    if options.get("driver") in ("file", "host_device"):
        options.setdefault("aio", aio)


def _take_as_flag(node: BlockNode) -> None:
    """``aio`` is the drive's: who gives the node other options need not say it again."""
    while (child := node.children.get("file")) is not None:
        node = child
    node.explicit_options = {name: value for name, value in node.explicit_options.items() if name != "aio"}


def _node_options(options: dict[str, str], *, has_file: bool) -> dict[str, Any]:
    """The options of the node, typed, from all that is left but the file; {} if nothing is."""
    from qobra.block.typed_options import typed
    from qobra.qapi.keyval import parse

    driver = options.pop("format", None)
    if driver is not None:
        if "driver" in options:
            raise QobraError("Cannot specify both 'driver' and 'format'")
        options["driver"] = driver
    if "discard" in options:
        if options["discard"] not in _DISCARD:
            raise QobraError("Invalid discard option")
        options["discard"] = _DISCARD[options["discard"]]
    nodes: dict[str, Any] = parse(",".join(f"{key}={value.replace(',', ',,')}" for key, value in options.items()))
    return typed(nodes, file_follows=has_file)
