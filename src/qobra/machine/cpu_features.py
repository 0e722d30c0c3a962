"""The features of x86 CPUs by the names that users give them: bits of CPUID and of the MSRs that list more.

Intel's Software Developer's Manual, volume 2A (CPUID), and AMD's Architecture Programmer's Manual,
volume 3, appendix E.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.object.property import Bool

if TYPE_CHECKING:
    from qobra.object.qom import Object

_LEAVES = {
    "1.edx": "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 pn clflush ds acpi mmx fxsr sse "
    "sse2 ss ht tm ia64 pbe",
    "1.ecx": "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid fma cx16 xtpr pdcm pcid dca sse4.1 sse4.2 "
    "x2apic movbe popcnt tsc-deadline aes xsave avx f16c rdrand hypervisor",
    "6.eax": "arat",
    "7.ebx": "fsgsbase tsc-adjust sgx bmi1 hle avx2 smep bmi2 erms invpcid rtm mpx avx512f avx512dq rdseed adx smap "
    "avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    "7.ecx": "avx512vbmi umip pku waitpkg avx512vbmi2 gfni vaes vpclmulqdq avx512vnni avx512bitalg avx512-vpopcntdq "
    "la57 rdpid bus-lock-detect cldemote movdiri movdir64b sgxlc pks",
    "7.edx": "avx512-4vnniw avx512-4fmaps fsrm avx512-vp2intersect md-clear serialize tsx-ldtrk arch-lbr amx-bf16 "
    "avx512-fp16 amx-tile amx-int8 spec-ctrl stibp arch-capabilities core-capability ssbd",
    "7.1.eax": "avx-vnni avx512-bf16",
    "d.1.eax": "xsaveopt xsavec xgetbv1 xsaves xfd",
    "12.eax": "sgx1 sgx2 sgx-debug sgx-mode64 sgx-provisionkey sgx-tokenkey sgx-exinfo sgx-kss",
    "14.ecx": "intel-pt-lip",
    "80000001.edx": "syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm 3dnowext 3dnow",
    "80000001.ecx": "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit "
    "wdt lwp fma4 tce nodeid-msr tbm topoext perfctr-core perfctr-nb",
    "80000007.edx": "invtsc",
    "80000008.ebx": "clzero xsaveerptr wbnoinvd ibpb ibrs amd-stibp amd-ssbd virt-ssbd amd-no-ssb",
    "8000000a.edx": "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists pause-filter "
    "pfthreshold avic v-vmsave-vmload vgif svme-addr-chk",
    "c0000001.edx": "xstore xstore-en xcrypt xcrypt-en ace2 ace2-en phe phe-en pmm pmm-en",
    "10a": "rdctl-no ibrs-all rsba skip-l1dfl-vmentry ssb-no mds-no pschange-mc-no tsx-ctrl taa-no",
    "cf": "split-lock-detect",
    "345": "full-width-write",
    "mca": "lmce",
}

FEATURES = tuple(name for names in _LEAVES.values() for name in names.split())
"""Every name, in the order of its bits."""

ALIASES = {
    "sse3": "pni",
    "sse4-1": "sse4.1",
    "sse4-2": "sse4.2",
    "xd": "nx",
    "i64": "lm",
    "ffxsr": "fxsr-opt",
    "pclmuldq": "pclmulqdq",
}
"""Other names of some."""


class Feature(Bool):
    """Whether a CPU has a feature: what the user says, else what the model has (``features`` of its class)."""

    def __init__(self, name: str, *, feature: str | None = None) -> None:
        super().__init__(False, name=name, description="on/off")
        self._feature = feature or name

    def read(self, instance: Object) -> bool:
        found: Any = instance
        return bool(found.values.get(self._feature, self._feature in found.features))

    def write(self, instance: Object, value: Any, *, keyval: bool = False) -> None:
        instance.values[self._feature] = self.parse(value) if keyval and isinstance(value, str) else self.check(value)


def add_features(cls: type[Object]) -> None:
    """Give a class of CPUs a property for each feature."""
    for name in FEATURES:
        _add(cls, name, Feature(name))
    for alias, name in ALIASES.items():
        _add(cls, alias, Feature(alias, feature=name))


def _add(cls: type[Object], name: str, prop: Feature) -> None:
    attribute = "feature_" + name.replace("-", "_").replace(".", "_dot_")
    setattr(cls, attribute, prop)
    prop.__set_name__(cls, attribute)
