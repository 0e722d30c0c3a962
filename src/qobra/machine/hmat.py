"""Heterogeneous memory (``-numa hmat-lb`` and ``hmat-cache``): how fast a node reaches memory, and its caches.

What is told here the guest finds in the HMAT (ACPI 6.4, section 5.2.27; :mod:`qobra.machine.acpi_tables.hmat`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.machine.numa import Numa

HIERARCHIES = ("memory", "first-level", "second-level", "third-level")
DATA_TYPES = (
    *("access-latency", "read-latency", "write-latency"),
    *("access-bandwidth", "read-bandwidth", "write-bandwidth"),
)
MAX_ENTRY = 0xFFFE
"""An entry of the table has 16 bits, and all ones say that the memory cannot be reached."""
_MIB = 1 << 20
_MAX_LEVEL = len(HIERARCHIES) - 1


class Locality:
    """One table of latencies in nanoseconds, or of bandwidths in bytes a second, by (initiator, target)."""

    def __init__(self, *, latency: bool) -> None:
        self._step = 10 if latency else 2
        self.values: dict[tuple[int, int], int] = {}

    def unit(self, *more: int) -> int:
        """What all values, and ``more``, are multiples of: the largest such power of ten, or of two for bandwidths."""
        values = [value for value in (*self.values.values(), *more) if value]
        unit = 1
        while values and all(value % (unit * self._step) == 0 for value in values):
            unit *= self._step
        return unit

    def fits(self, value: int) -> bool:
        """Whether ``value`` can stand in one table with the others."""
        return max(value, *self.values.values(), 0) // self.unit(value) <= MAX_ENTRY


class Hmat:
    """What the options say of a board's memory. Raises QobraError in QEMU's words."""

    def __init__(self, numa: Numa) -> None:
        self._numa = numa
        self.localities: dict[tuple[str, str], Locality] = {}
        """By hierarchy and data type."""
        self.caches: dict[tuple[int, int], dict[str, Any]] = {}
        """NumaHmatCacheOptions, by node and level."""

    def set_locality(self, options: dict[str, Any]) -> None:
        """Take NumaHmatLBOptions."""
        initiator, target, count = options["initiator"], options["target"], len(self._numa.nodes)
        for name, number in (("initiator", initiator), ("target", target)):
            if number >= count:
                raise QobraError(f"Invalid {name}={number}, it should be less than {count}")
            if number not in self._numa.nodes:
                raise QobraError(f"The {name}={number} should point to an existing node")
            if name == "initiator" and not self._numa.nodes[number].cpus:
                raise QobraError(f"Invalid initiator={number}, it isn't an initiator proximity domain")
        kind = "latency" if "latency" in options["data-type"] else "bandwidth"
        other = "bandwidth" if kind == "latency" else "latency"
        if kind not in options:
            raise QobraError(f"Missing '{kind}' option")
        if other in options:
            raise QobraError(f"Invalid option '{other}' since the data type is {kind}")
        place = options["hierarchy"], options["data-type"]
        table = self.localities.get(place) or Locality(latency=kind == "latency")
        if (initiator, target) in table.values:
            raise QobraError(f"Duplicate configuration of the {kind} for initiator={initiator} and target={target}")
        value = options[kind]
        what = f"{kind.capitalize()} {value} between initiator={initiator} and target={target}"
        if kind == "bandwidth" and value % _MIB:
            raise QobraError(f"{what} should be 1MB aligned")
        if not table.fits(value):
            others = "min or max values" if kind == "latency" else "values"
            raise QobraError(f"{what} should not differ from previously entered {others} on more than {MAX_ENTRY}")
        table.values[initiator, target] = value
        self.localities[place] = table

    def set_cache(self, options: dict[str, Any]) -> None:
        """Take NumaHmatCacheOptions."""
        number, level, size = options["node-id"], options["level"], options["size"]
        if number >= len(self._numa.nodes):
            raise QobraError(f"Invalid node-id={number}, it should be less than {len(self._numa.nodes)}")
        kinds = {
            data_type.rpartition("-")[2]
            for (_hierarchy, data_type), table in self.localities.items()
            if any(target == number and value for (_initiator, target), value in table.values.items())
        }
        if len(kinds) < 2:
            raise QobraError(
                f"The latency and bandwidth information of node-id={number} should be provided "
                "before memory side cache attributes"
            )
        if not 1 <= level <= _MAX_LEVEL:
            raise QobraError(
                f"Invalid level={level}, it should be larger than 0 and less than or equal to {_MAX_LEVEL}"
            )
        if (number, level) in self.caches:
            raise QobraError(f"Duplicate configuration of the side cache for node-id={number} and level={level}")
        if level > 1:
            nearer = self.caches.get((number, level - 1))
            if nearer is None:
                raise QobraError(f"Cache level={level - 1} shall be defined first")
            if size <= nearer["size"]:
                raise QobraError(
                    f"Invalid size={size}, the size of level={level} should be larger than "
                    f"the size({nearer['size']}) of level={level - 1}"
                )
        self.caches[number, level] = options
