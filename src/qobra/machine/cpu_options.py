"""Properties of x86 CPUs beside their features: what a hypervisor shows its guests, and how CPUID tells of the rest.

Nothing runs the CPUs, so these are checked and kept for whoever asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.object.property import Bool, Enum, Int, Property, String

if TYPE_CHECKING:
    from qobra.object.qom import Object

_OF_HYPER_V = (
    "relaxed vapic vpindex runtime crash time synic stimer reset frequencies reenlightenment tlbflush ipi evmcs avic "
    "apicv stimer-direct syndbg emsr-bitmap xmm-input tlbflush-ext tlbflush-direct"
)
"""Enlightenments, as the Hyper-V Top Level Functional Specification names them."""
_ON = (
    "x-intel-pt-auto-level vmware-cpuid-freq x-vendor-cpuid-only fill-mtrr-mask x-migrate-smi-count cpuid-0xb "
    "tcg-cpuid l3-cache kvm"
)
_OFF = (
    "host-phys-bits pmu kvm-no-smi-migration x-hv-synic-kvm-only kvm-pv-enforce-cpuid hv-enforce-cpuid hv-passthrough"
)
_NO_LBR_FORMAT = (1 << 64) - 64
_MIN_ADDRESS_BITS, _MAX_ADDRESS_BITS = 32, 52
_NEVER = 0xFFFFFFFF


def _no_crash(_cpu: Any) -> Any:
    raise QobraError("No crash occurred")


def identity(name: str, default: int) -> Int:
    """``family``, ``model`` or ``stepping`` of a model of CPUs."""
    maximum = {"family": 255 + 15, "model": 255, "stepping": 15}[name]

    def set_value(cpu: Any, value: int) -> None:
        if not 0 <= value <= maximum:
            raise QobraError(f"Property .{name} doesn't take value {value} (minimum: 0, maximum: {maximum})")
        cpu.values[name] = value

    return Int(default, name=name, set=set_value, show_default=False)


def vendor(default: str | None = None) -> String:
    """The twelve letters of CPUID's leaf 0."""
    return String(default, name="vendor", set=_set_vendor, show_default=False)


def model_id(default: str | None = None) -> String:
    """The name that a model of CPUs shows."""
    return String(default, name="model-id", show_default=False)


def _set_vendor(cpu: Any, value: str) -> None:
    if len(value) != 12:
        raise QobraError(f"Property '.vendor' doesn't take value '{value}'")
    cpu.values["vendor"] = value


def _set_frequency(cpu: Any, value: int) -> None:
    if value < 0:
        raise QobraError(f"Property .tsc-frequency doesn't take value {value} (minimum: 0, maximum: {(1 << 63) - 1})")
    cpu.values["tsc-frequency"] = value


def check_address_bits(cpu: Any) -> int:
    """How many bits physical addresses have: what the user says, else what the CPU needs. Raises QobraError."""
    bits: int = cpu.values.get("phys-bits", 0)
    if not cpu.has("lm"):
        if bits:
            raise QobraError("phys-bits is not user-configurable in 32 bit")
        return 36 if cpu.has("pse36") else 32
    if bits and not _MIN_ADDRESS_BITS <= bits <= _MAX_ADDRESS_BITS:
        raise QobraError(f"phys-bits should be between {_MIN_ADDRESS_BITS} and {_MAX_ADDRESS_BITS}  (but is {bits})")
    return bits or 40


def add_options(cls: type[Object]) -> None:
    """Give a class of CPUs these properties."""
    for name in _OF_HYPER_V.split():
        _add(cls, Bool(False, name=f"hv-{name}", description="on/off"))
    for name in _ON.split():
        _add(cls, Bool(True, name=name))
    for name in _OFF.split():
        _add(cls, Bool(False, name=name))
    for name, width, default in (
        ("hv-spinlocks", "uint32", _NEVER),
        ("hv-version-id-build", "uint32", 14393),
        ("hv-version-id-major", "uint16", 10),
        ("hv-version-id-minor", "uint16", 0),
        ("hv-version-id-spack", "uint32", 0),
        ("hv-version-id-sbranch", "uint8", 0),
        ("hv-version-id-snumber", "uint32", 0),
        ("x-hv-max-vps", "int32", -1),
        ("phys-bits", "uint32", 0),
        ("host-phys-bits-limit", "uint8", 0),
        ("ucode-rev", "uint64", 0),
    ):
        _add(cls, Int(default, type=width, name=name))
    _add(
        cls,
        Enum("OnOffAuto", ("on", "off", "auto"), "off", name="hv-no-nonarch-coresharing", description="on/off/auto"),
    )
    _add(cls, String(type="str", name="hv-vendor-id", show_default=False))
    _add(cls, Int(0, name="tsc-frequency", set=_set_frequency, show_default=False))
    _add(cls, Int(_NO_LBR_FORMAT, type="uint64", name="lbr-fmt", show_default=False))
    _add(cls, Property("GuestPanicInformation", name="crash-information", get=_no_crash, writable=False))


def _add(cls: type[Object], prop: Property) -> None:
    assert prop.name is not None
    attribute = "option_" + prop.name.replace("-", "_")
    setattr(cls, attribute, prop)
    prop.__set_name__(cls, attribute)
