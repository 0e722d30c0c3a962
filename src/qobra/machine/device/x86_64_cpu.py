"""CPUs of x86-64: the models that can be named, and where each CPU sits."""

from __future__ import annotations

from typing import Any

from qobra.machine import cpu_options, cpuid
from qobra.machine.cpu import Cpu
from qobra.machine.cpu_features import ALIASES, WORDS, add_features
from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.vmstate import VmState
from qobra.object.property import Bool, Int, Property

_AS_NEEDED = 0xFFFFFFFF
_MICROCODE, _MICROCODE_AMD = 0x100000000, 0x01000065
"""Revisions of microcode with which guests know that they are none of the old ones."""


def _words(words: dict[tuple[int, int | None, str], int]) -> list[dict[str, Any]]:
    """List of X86CPUFeatureWordInfo."""
    result: list[dict[str, Any]] = []
    for leaf, subleaf, register in reversed(WORDS):
        word: dict[str, Any] = {"cpuid-register": register, "cpuid-input-eax": leaf}
        if subleaf is not None:
            word["cpuid-input-ecx"] = subleaf
        result.append({**word, "features": words.get((leaf, subleaf, register), 0)})
    return result


class X86Cpu(Cpu):
    """A CPU of a PC. Its interrupt input is there for the controllers to drive."""

    type_name = "x86_64-cpu"
    architectures = frozenset(("x86_64",))
    abstract = True
    architecture = "x86_64"
    base_architecture = "x86"
    pluggable = True
    features: frozenset[str] = frozenset()
    """What the model has, by the names of :mod:`qobra.machine.cpu_features`."""
    static = False
    """Whether it is the same always, whatever runs it."""
    migration_safe = True
    alias_of: str | None = None
    """The model by version that this is another name of, on boards that know of versions."""

    apic_id = Int(0xFFFFFFFF, type="uint32", name="apic-id")
    thread_number = Int(-1, type="int32", name="thread-id")
    core_number = Int(-1, type="int32", name="core-id")
    die_number = Int(-1, type="int32", name="die-id")
    socket_number = Int(-1, type="int32", name="socket-id")

    family = cpu_options.identity("family", 0)
    model_number = cpu_options.identity("model", 0)
    stepping = cpu_options.identity("stepping", 0)
    vendor = cpu_options.vendor()
    model_id = cpu_options.model_id()
    min_level = Int(0, type="uint32")
    min_xlevel = Int(0, type="uint32")
    min_xlevel2 = Int(0, type="uint32")
    level = Int(_AS_NEEDED, type="uint32")
    level_func7 = Int(_AS_NEEDED, type="uint32", name="level-func7")
    xlevel = Int(_AS_NEEDED, type="uint32")
    xlevel2 = Int(_AS_NEEDED, type="uint32")
    legacy_cache = Bool(True, name="legacy-cache", show_default=False)
    full_cpuid_auto_level = Bool(True, name="full-cpuid-auto-level")
    feature_words = Property(
        "X86CPUFeatureWordInfo", get=lambda cpu: _words(cpuid.feature_words(cpu.has, cpu.vendor)), writable=False
    )
    filtered_features = Property("X86CPUFeatureWordInfo", get=lambda cpu: _words({}), writable=False)
    unavailable_features = Property("strList", get=lambda cpu: [], writable=False)

    # Whether features are told of, refused or given all the same that the processor below cannot have. There is none.
    check = Bool(True)
    enforce = Bool(False)
    force_features = Bool(False, name="x-force-features")

    vmstate = VmState()

    @classmethod
    def find_feature(cls, name: str) -> str:
        name = name.replace("_", "-")
        return super().find_feature(ALIASES.get(name, name))

    def has(self, feature: str) -> bool:
        """What the user says, else what the model has."""
        return bool(self.values.get(feature, feature in self.features))

    def processor_id(self) -> int:
        """What CPUID's leaf 1 says in EAX (family, model and stepping) and, above that, in EDX (features)."""
        signature: int = (self.model_number & 0xF) << 4 | self.model_number >> 4 << 16 | self.stepping
        signature |= min(self.family, 0xF) << 8 | max(self.family - 0xF, 0) << 20
        return signature | cpuid.feature_words(self.has, self.vendor)[1, None, "EDX"] << 32

    def expand(self) -> None:
        """Settle the highest leaves of CPUID: what the user says, else the model's and as many as the features need."""
        full = self.full_cpuid_auto_level
        if self.level_func7 == _AS_NEEDED:
            self.level_func7 = cpuid.highest_of_leaf_7(self.has) if full else 0
        if self.level == _AS_NEEDED:
            self.level = max(self.min_level, cpuid.highest_basic(self.has, full=full))
        if self.xlevel == _AS_NEEDED:
            self.xlevel = max(self.min_xlevel, cpuid.highest_extended(self.has) if full else 0)
        if self.xlevel2 == _AS_NEEDED:
            self.xlevel2 = max(self.min_xlevel2, cpuid.highest_centaur(self.has) if full else 0)

    def realize(self) -> None:
        if self.index < 0:
            board: Any = self.board
            board.place_cpu(self)
        self.expand()
        self.values["phys-bits"] = cpu_options.check_address_bits(self)
        self.values.setdefault("hv-vendor-id", "Microsoft Hv")
        if not self.values.get("ucode-rev"):
            self.values["ucode-rev"] = _MICROCODE_AMD if self.vendor == "AuthenticAMD" else _MICROCODE
        super().realize()
        self.interrupt = Line()
        self.board.cpus.append(self)
        if self.hotplugged:
            board = self.board
            board.cpu_hotplug.plugged(self)

    def unrealize(self) -> None:
        if self in self.board.cpus:
            self.board.cpus.remove(self)

    def properties_of_place(self) -> dict[str, int]:
        return self.board.place_of_cpu(self.index)


add_features(X86Cpu)
cpu_options.add_options(X86Cpu)
_COMMON = (
    "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 pni cx16 hypervisor "
    "syscall nx lm lahf-lm svm"
)


@registry.register("base-x86_64-cpu")
class BaseCpu(X86Cpu):
    """No feature at all, for users who name each."""

    type_name = "base-x86_64-cpu"
    static = True


class CommonCpu(X86Cpu):
    """What every x86-64 guest can count on."""

    abstract = True
    features = frozenset(_COMMON.split())

    family = cpu_options.identity("family", 15)
    model_number = cpu_options.identity("model", 107)
    stepping = cpu_options.identity("stepping", 1)
    vendor = cpu_options.vendor("AuthenticAMD")
    model_id = cpu_options.model_id("QEMU Virtual CPU version 2.5+")
    min_level = Int(13, type="uint32")
    min_xlevel = Int(0x8000000A, type="uint32")


@registry.register("qemu64-x86_64-cpu")
class Qemu64Cpu(CommonCpu):
    """What every x86-64 guest can count on."""

    type_name = "qemu64-x86_64-cpu"
    alias_of = "qemu64-v1"


@registry.register("max-x86_64-cpu")
class MaxCpu(CommonCpu):
    """All that can be had: as long as nothing runs the CPUs, that is what every guest can count on."""

    type_name = "max-x86_64-cpu"
    migration_safe = False

    migratable = Bool(True)
    host_cache_info = Bool(False, name="host-cache-info")
