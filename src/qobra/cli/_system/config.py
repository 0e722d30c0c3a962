"""The machine that the options describe, before anything of it exists: board, accelerator, CPUs, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.chardev.options import split
from qobra.cli._system import boot
from qobra.errors import QobraError
from qobra.machine import accelerator
from qobra.machine.option_groups import GROUPS, convert
from qobra.report import program, report_error
from qobra.units import NotANumber, OutOfRange, integer, not_a_size, parse_size

if TYPE_CHECKING:
    from qobra.machine.accelerator import Accelerator
    from qobra.object.tree import ObjectTree

_OF_KVM = ("kernel_irqchip", "kernel-irqchip", "kvm_shadow_mem", "kvm-shadow-mem")
"""Options of ``-machine`` that are KVM's, which other accelerators never look at."""


class MachineConfig:
    """What ``-machine``, ``-accel``, ``-cpu``, ``-smp``, ``-m`` and the like say together."""

    def __init__(self) -> None:
        self.board: str | None = None
        self.board_properties: dict[str, str] = {}
        self.accelerator: str | None = None
        """The first that there is of those that were named."""
        self._wanted: list[str] = []
        self._accelerator_options = False
        self._missing: list[str] = []
        self.cpu: str | None = None
        self.smp: dict[str, int] = {}
        self.boot: dict[str, Any] = {}
        self.memory: dict[str, int] = {}
        self.memory_backend: str | None = None
        self.mem_path: str | None = None
        self.preallocate = False

    def set_machine(self, text: str) -> None:
        """``-machine``."""
        options = split(text, "type")
        self.board = options.pop("type", self.board)
        if "accel" in options:
            self._wanted = options.pop("accel").split(":")
        self.memory_backend = options.pop("memory-backend", self.memory_backend)
        for key in [key for key in options if key.startswith("smp.")]:
            self.smp[key[4:]] = _number(key, options.pop(key))
        for key in [key for key in options if key.startswith("boot.")]:
            self.boot |= boot.parse({key[5:]: options.pop(key)})
        self.board_properties |= {key: value for key, value in options.items() if key not in _OF_KVM}

    def set_accelerator(self, text: str, tree: ObjectTree, *, counted: bool) -> None:
        """``-accel``; ``counted`` says that instructions are (``-icount``)."""
        options = split(text, "accel")
        name = options.pop("accel", "")
        self._accelerator_options = True
        found = self._try_accelerator(name, f"-accel {text}: ")
        if found is None:
            return
        chosen = found(tree)
        for key, value in options.items():
            chosen.set(key, value, keyval=True)
            if counted and (key, value) == ("thread", "multi"):
                raise QobraError("No MTTCG when icount is enabled")

    def set_smp(self, text: str) -> None:
        """``-smp``."""
        known = dict(GROUPS["smp-opts"])
        for key, value in split(text, "cpus").items():
            if key not in known:
                raise QobraError(f"Parameter 'smp.{key}' is unexpected")
            self.smp[key] = _number(f"smp.{key}", value)

    def set_memory(self, text: str) -> None:
        """``-m``: a size without suffix is in MiB."""
        options = split(text, "size")
        if options.get("size", "").isdigit():
            options["size"] += "M"
        memory = convert("memory", {key: value for key, value in options.items() if key not in ("size", "maxmem")})
        for key in ("size", "maxmem"):
            if key in options:
                memory[key] = _size(key, options[key])
        if memory.get("size") == 0:
            del memory["size"]  # the board's own size
        self.memory |= memory

    def _try_accelerator(self, name: str, place: str = "") -> type[Accelerator] | None:
        # The accelerator if it is the one to be taken; what is missing is said once it is known what comes of it.
        if self.accelerator is not None:
            return None
        found = accelerator.find(name)
        if found is None:
            self._missing.append(f"{place}invalid accelerator {name}")
        else:
            self.accelerator = name
        return found

    def choose_accelerator(self) -> str:
        """The first of the named accelerators that there is. Raises QobraError."""
        if self._wanted and self._accelerator_options:
            raise QobraError('The -accel and "-machine accel=" options are incompatible')
        for name in self._wanted:
            self._try_accelerator(name)
        if self.accelerator is None:
            if self._missing:
                raise QobraError(f"\n{program()}: ".join(self._missing))
            return "tcg"
        for text in self._missing:
            report_error(text)
        if self._missing:
            report_error(f"falling back to {self.accelerator}")
        return self.accelerator

    def _backend_size(self, board: Any) -> int | None:
        # Without -m, the backend that is named says how much memory there is.
        backend = board.tree.find(self.memory_backend) if self.memory_backend is not None else None
        size: int | None = getattr(backend, "size", None)
        return size

    def apply_properties(self, board: Any) -> None:
        """Set the board's properties, on which the defaults of memory backends depend. Raises QobraError."""
        for name, value in self.board_properties.items():
            board.set(name, value, keyval=True)

    def apply(self, board: Any) -> None:
        """Set the accelerator, the CPUs and the memory. Raises QobraError."""
        board.accelerator = self.choose_accelerator()
        board.set_topology(self.smp)
        if self.cpu is not None:
            board.set_cpu_model(self.cpu)
        size = self.memory.get("size") or self._backend_size(board) or board.default_ram_size
        if "slots" in self.memory and "maxmem" not in self.memory:
            raise QobraError("slots specified but no max-size")
        if "maxmem" in self.memory:
            limit, slots = self.memory["maxmem"], self.memory.get("slots", 0)
            if limit < size:
                raise QobraError(
                    f"invalid value of maxmem: maximum memory size (0x{limit:x}) must be at least "
                    f"the initial memory size (0x{size:x})"
                )
            if slots and limit == size:
                raise QobraError(
                    "invalid value of maxmem: memory slots were specified but maximum memory size "
                    f"(0x{limit:x}) is equal to the initial memory size (0x{size:x})"
                )
            board.max_ram_size, board.memory_slots = limit, slots
        board.set_memory(size, backend=self.memory_backend, path=self.mem_path)


def _size(key: str, text: str) -> int:
    try:
        return parse_size(text)
    except NotANumber:
        raise not_a_size(key)
    except OutOfRange:
        raise QobraError(f"Value '{text}' is out of range for parameter '{key}'")


def parse_name(text: str) -> dict[str, Any]:
    """``-name``."""
    return convert("name", split(text, "guest"))


def _number(key: str, text: str) -> int:
    number = integer(text)
    if number is None:
        raise QobraError(f"Parameter '{key}' expects integer")
    return number
