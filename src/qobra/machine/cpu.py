"""CPUs as the machine's controls see them: models, topology, and one object for each. Nothing here runs guest code."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState, flag
from qobra.object.property import Bool, Int
from qobra.report import report_warning


class Topology:
    """How many CPUs there are and how they are packed. ``cpus`` are there at the start, ``max_cpus`` fit."""

    def __init__(self, *, cpus: int, max_cpus: int, sockets: int, dies: int, cores: int, threads: int) -> None:
        self.cpus = cpus
        self.max_cpus = max_cpus
        self.sockets = sockets
        self.dies = dies
        self.cores = cores
        self.threads = threads

    @classmethod
    def from_options(cls, options: dict[str, int], *, dies_supported: bool, limit: int, board: str) -> Topology:
        """From SMPConfiguration: what is left out follows from the rest. Raises QobraError in QEMU's words."""
        if any(value == 0 for value in options.values()):
            report_warning(
                "Deprecated CPU topology (considered invalid): CPU topology parameters must be greater than zero"
            )
            options = {name: value for name, value in options.items() if value}
        for value in options.values():
            if value < 0:
                raise QobraError(f"Invalid SMP CPUs {value}. The max CPUs supported by machine '{board}' is {limit}")
        if options.get("dies", 1) > 1 and not dies_supported:
            raise QobraError("dies not supported by this machine's CPU topology")
        if options.get("clusters", 1) > 1:
            raise QobraError("clusters not supported by this machine's CPU topology")
        cpus, max_cpus = options.get("cpus", 0), options.get("maxcpus", 0)
        sockets, cores, threads = options.get("sockets", 0), options.get("cores", 0), options.get("threads", 0)
        dies = options.get("dies", 1)
        if not cpus and not max_cpus:
            sockets, cores, threads = sockets or 1, cores or 1, threads or 1
        else:
            max_cpus = total = max_cpus or cpus
            # Of what is not given, cores are filled in first, then sockets, then threads.
            if not cores:
                sockets, threads = sockets or 1, threads or 1
                cores = total // (sockets * dies * threads)
            elif not sockets:
                threads = threads or 1
                sockets = total // (dies * cores * threads)
            threads = threads or total // (sockets * dies * cores)
        max_cpus = max_cpus or sockets * dies * cores * threads
        cpus = cpus or max_cpus
        product = sockets * dies * cores * threads
        if product != max_cpus:
            raise QobraError(
                "Invalid CPU topology: product of the hierarchy must match maxcpus: "
                f"{parts_text(sockets, dies, cores, threads, dies_supported)} != maxcpus ({max_cpus})"
            )
        if max_cpus < cpus:
            raise QobraError(
                "Invalid CPU topology: maxcpus must be equal to or greater than smp: "
                f"{parts_text(sockets, dies, cores, threads, dies_supported)} "
                f"== maxcpus ({max_cpus}) < smp_cpus ({cpus})"
            )
        if max_cpus > limit:
            raise QobraError(f"Invalid SMP CPUs {max_cpus}. The max CPUs supported by machine '{board}' is {limit}")
        return cls(cpus=cpus, max_cpus=max_cpus, sockets=sockets, dies=dies, cores=cores, threads=threads)

    def describe(self) -> dict[str, int]:
        """SMPConfiguration."""
        parts = {"sockets": self.sockets, "dies": self.dies, "cores": self.cores, "threads": self.threads}
        return {"cpus": self.cpus, "maxcpus": self.max_cpus, "clusters": 1, **parts}

    def place(self, index: int) -> dict[str, int]:
        """Where CPU ``index`` sits."""
        per_die = self.cores * self.threads
        place = {
            "socket-id": index // (self.dies * per_die),
            "core-id": index // self.threads % self.cores,
            "thread-id": index % self.threads,
        }
        if self.dies > 1:
            place["die-id"] = index // per_die % self.dies
        return place


def parts_text(sockets: int, dies: int, cores: int, threads: int, dies_supported: bool) -> str:
    """The factors of a topology, for error texts."""
    middle = f" * dies ({dies})" if dies_supported else ""
    return f"sockets ({sockets}){middle} * cores ({cores}) * threads ({threads})"


class Cpu(Device):
    """One CPU. ``architecture`` is a SysEmuTarget, ``base_architecture`` a CpuInfoArch, ``index`` its number."""

    type_name = "cpu"
    category = "CPU"
    abstract = True
    pluggable = False
    architecture = ""
    base_architecture = "other"

    start_powered_off = Bool(False, name="start-powered-off", show_default=False)
    node_id = Int(-1, type="int32", name="node-id")

    index = -1
    thread_id = 0
    halted = False
    nmi_pending = False

    vmstate = VmState(flag("halted", "nmi_pending"), partial=True)

    @classmethod
    def parse_features(cls, text: str) -> list[tuple[str, str]]:
        """Names and values of properties from ``feature=value,+feature,-feature``. Raises QobraError.

        Whatever their order, a plus overrides a value, and a minus both.
        """
        values: list[tuple[str, str]] = []
        plus: list[tuple[str, str]] = []
        minus: list[tuple[str, str]] = []
        for part in filter(None, text.split(",")):
            if part[0] == "+":
                plus.append((cls.find_feature(part[1:]), "on"))
            elif part[0] == "-":
                minus.append((cls.find_feature(part[1:]), "off"))
            else:
                name, equals, value = part.partition("=")
                value = value if equals else "on"
                try:
                    values.append((cls.find_feature(name), value))
                except QobraError as error:
                    raise error.prefixed(f"can't apply global {cls.type_name}.{name}={value}: ")
        for sign, marked in (("+", plus), ("-", minus)):
            for name, value in values:
                if name in dict(marked):
                    report_warning(f'Ambiguous CPU model string. Don\'t mix both "{sign}{name}" and "{name}={value}"')
        return values + plus + minus

    @classmethod
    def find_feature(cls, name: str) -> str:
        """The property that users mean by ``name``. Raises QobraError where there is none."""
        given, name = name, name.replace("_", "-")
        if name not in cls.class_properties():
            raise QobraError(f"Property '{cls.type_name}.{given}' not found")
        return name

    def properties_of_place(self) -> dict[str, int]:
        """CpuInstanceProperties of where the CPU sits."""
        raise NotImplementedError

    def realize(self) -> None:
        import threading

        # No engine runs it, so the thread that made the CPU stands for it.
        self.thread_id = threading.get_native_id()

    def describe_fast(self) -> dict[str, Any]:
        """CpuInfoFast of the reference."""
        info: dict[str, Any] = {
            "cpu-index": self.index,
            "qom-path": self.path(),
            "thread-id": self.thread_id,
            "target": self.architecture,
            "arch": self.base_architecture,
        }
        return info | {"props": self.properties_of_place()}
