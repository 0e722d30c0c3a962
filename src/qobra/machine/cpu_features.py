"""The features of x86 CPUs by the names that users give them: bits of CPUID and of the MSRs that list more.

Intel's Software Developer's Manual, volume 2A (CPUID), and AMD's Architecture Programmer's Manual,
volume 3, appendix E.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.object.property import Bool

if TYPE_CHECKING:
    from qobra.object.qom import Object

_LEAVES: dict[tuple[int, int | None, str], str] = {
    (
        1,
        None,
        "EDX",
    ): "fpu vme de pse tsc msr pae mce cx8 apic 11 sep mtrr pge mca cmov pat pse36 pn clflush 21 ds acpi "
    "mmx fxsr sse sse2 ss ht tm ia64 pbe",
    (1, None, "ECX"): "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid 12 fma cx16 xtpr pdcm 17 pcid dca "
    "sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave 28 avx f16c rdrand hypervisor",
    (
        7,
        0,
        "EBX",
    ): "fsgsbase tsc-adjust sgx bmi1 hle avx2 7 smep bmi2 erms invpcid rtm 14 mpx 16 avx512f avx512dq rdseed "
    "adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    (7, 0, "ECX"): "1 avx512vbmi umip pku 5 waitpkg avx512vbmi2 8 gfni vaes vpclmulqdq avx512vnni avx512bitalg 14 "
    "avx512-vpopcntdq 16 la57 22 rdpid 24 bus-lock-detect cldemote 27 movdiri movdir64b 30 sgxlc pks",
    (7, 0, "EDX"): "2 avx512-4vnniw avx512-4fmaps fsrm 8 avx512-vp2intersect 10 md-clear 14 serialize 16 tsx-ldtrk 19 "
    "arch-lbr 22 amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp 29 arch-capabilities core-capability ssbd",
    (7, 1, "EAX"): "4 avx-vnni avx512-bf16",
    (0x80000001, None, "EDX"): "11 syscall 20 nx 22 mmxext 25 fxsr-opt pdpe1gb rdtscp 29 lm 3dnowext 3dnow",
    (
        0x80000001,
        None,
        "ECX",
    ): "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop "
    "skinit wdt 15 lwp fma4 tce 19 nodeid-msr 21 tbm topoext perfctr-core perfctr-nb",
    (0x80000007, None, "EDX"): "8 invtsc",
    (0x80000008, None, "EBX"): "clzero 2 xsaveerptr 9 wbnoinvd 12 ibpb 14 ibrs amd-stibp 24 amd-ssbd virt-ssbd "
    "amd-no-ssb",
    (0xC0000001, None, "EDX"): "2 xstore xstore-en 6 xcrypt xcrypt-en ace2 ace2-en phe phe-en pmm pmm-en",
    (0x40000001, None, "EAX"): "",
    (0x40000001, None, "EDX"): "",
    (0x8000000A, None, "EDX"): "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists 10 "
    "pause-filter 12 pfthreshold avic 15 v-vmsave-vmload vgif 28 svme-addr-chk",
    (0xD, 1, "EAX"): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (6, None, "EAX"): "2 arat",
    (0xD, 0, "EAX"): "",
    (0xD, 0, "EDX"): "",
    (0x14, 0, "ECX"): "31 intel-pt-lip",
    (0x12, 0, "EAX"): "sgx1 sgx2",
    (0x12, 0, "EBX"): "sgx-exinfo",
    (0x12, 1, "EAX"): "1 sgx-debug sgx-mode64 4 sgx-provisionkey sgx-tokenkey 7 sgx-kss",
    (0xD, 1, "ECX"): "",
    (0xD, 1, "EDX"): "",
}
"""What each word of CPUID says, from bit 0 up: EAX and ECX (None where it does not matter) that ask for it, the
register that has it, names. A number says which bit the next name is."""

_IN_MSRS = (
    "rdctl-no ibrs-all rsba skip-l1dfl-vmentry ssb-no mds-no pschange-mc-no tsx-ctrl taa-no split-lock-detect "
    "full-width-write lmce"
)
_OF_VMX = (
    "vmx-activity-hlt vmx-activity-shutdown vmx-activity-wait-sipi vmx-apicv-register vmx-apicv-vid vmx-apicv-x2apic "
    "vmx-apicv-xapic vmx-cr3-load-noexit vmx-cr3-store-noexit vmx-cr8-load-exit vmx-cr8-store-exit vmx-desc-exit "
    "vmx-encls-exit vmx-entry-ia32e-mode vmx-entry-load-bndcfgs vmx-entry-load-efer vmx-entry-load-pat "
    "vmx-entry-load-perf-global-ctrl vmx-entry-load-pkrs vmx-entry-load-rtit-ctl vmx-entry-noload-debugctl vmx-ept "
    "vmx-ept-1gb vmx-ept-2mb vmx-ept-advanced-exitinfo vmx-ept-execonly vmx-eptad vmx-eptp-switching "
    "vmx-exit-ack-intr vmx-exit-clear-bndcfgs vmx-exit-clear-rtit-ctl vmx-exit-load-efer vmx-exit-load-pat "
    "vmx-exit-load-perf-global-ctrl vmx-exit-load-pkrs vmx-exit-nosave-debugctl vmx-exit-save-efer vmx-exit-save-pat "
    "vmx-exit-save-preemption-timer vmx-flexpriority vmx-hlt-exit vmx-ins-outs vmx-intr-exit vmx-invept "
    "vmx-invept-all-context vmx-invept-single-context vmx-invept-single-context-noglobals vmx-invlpg-exit "
    "vmx-invpcid-exit vmx-invvpid vmx-invvpid-all-context vmx-invvpid-single-addr vmx-io-bitmap vmx-io-exit "
    "vmx-monitor-exit vmx-movdr-exit vmx-msr-bitmap vmx-mtf vmx-mwait-exit vmx-nmi-exit vmx-page-walk-4 "
    "vmx-page-walk-5 vmx-pause-exit vmx-ple vmx-pml vmx-posted-intr vmx-preemption-timer vmx-rdpmc-exit "
    "vmx-rdrand-exit vmx-rdseed-exit vmx-rdtsc-exit vmx-rdtscp-exit vmx-secondary-ctls vmx-shadow-vmcs vmx-store-lma "
    "vmx-true-ctls vmx-tsc-offset vmx-tsc-scaling vmx-unrestricted-guest vmx-vintr-pending vmx-vmfunc "
    "vmx-vmwrite-vmexit-fields vmx-vnmi vmx-vnmi-pending vmx-vpid vmx-wbinvd-exit vmx-xsaves vmx-zero-len-inject"
)
"""What VT-x can do, in the MSRs from 0x480 on (SDM volume 3, appendix A)."""

_OF_KVM = (
    "kvm-asyncpf kvm-asyncpf-int kvm-hint-dedicated kvm-mmu kvm-msi-ext-dest-id kvm-nopiodelay kvm-poll-control "
    "kvm-pv-eoi kvm-pv-ipi kvm-pv-sched-yield kvm-pv-tlb-flush kvm-pv-unhalt kvm-steal-time kvmclock "
    "kvmclock-stable-bit"
)
"""What KVM offers its guests (Linux: Documentation/virt/kvm/x86/cpuid.rst)."""


def _bits(names: str) -> dict[str, int]:
    result: dict[str, int] = {}
    bit = 0
    for each in names.split():
        if each.isdecimal():
            bit = int(each)
        else:
            result[each] = bit
            bit += 1
    return result


WORDS = {place: _bits(names) for place, names in _LEAVES.items()}
"""The words of CPUID that tell of features, and the bit of each feature."""

FEATURES = (*(name for bits in WORDS.values() for name in bits), *f"{_IN_MSRS} {_OF_VMX} {_OF_KVM}".split())
"""Every name."""

_UNDERLINED = (
    "cmp_legacy ds_cpl fxsr_opt kvm_asyncpf kvm_asyncpf_int kvm_mmu kvm_nopiodelay kvm_poll_control kvm_pv_eoi "
    "kvm_pv_unhalt kvm_steal_time lahf_lm nodeid_msr nrip_save pause_filter perfctr_core perfctr_nb svm_lock "
    "tsc_adjust tsc_scale vmcb_clean"
)

ALIASES = {
    "sse3": "pni",
    "sse4-1": "sse4.1",
    "sse4-2": "sse4.2",
    "xd": "nx",
    "i64": "lm",
    "ffxsr": "fxsr-opt",
    "pclmuldq": "pclmulqdq",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    **{name: name.replace("_", "-") for name in _UNDERLINED.split()},
}
"""Other names of some."""


class Feature(Bool):
    """Whether a CPU has a feature: what the user says, else what the model has (``features`` of its class)."""

    def __init__(self, name: str, *, feature: str | None = None) -> None:
        super().__init__(False, name=name, show_default=False)
        self._feature = feature or name

    def read(self, instance: Object) -> bool:
        found: Any = instance
        return bool(found.has(self._feature))

    def write(self, instance: Object, value: Any, *, keyval: bool = False) -> None:
        instance.values[self._feature] = self.parse(value) if keyval and isinstance(value, str) else self.check(value)


def add_features(cls: type[Object]) -> None:
    """Give a class of CPUs a property for each feature."""
    for name in FEATURES:
        _add(cls, name, Feature(name))
    for alias, name in ALIASES.items():
        _add(cls, alias, Feature(alias, feature=name))


def _add(cls: type[Object], name: str, prop: Feature) -> None:
    attribute = "feature_" + name.replace("_", "_under_").replace("-", "_").replace(".", "_dot_")
    setattr(cls, attribute, prop)
    prop.__set_name__(cls, attribute)
