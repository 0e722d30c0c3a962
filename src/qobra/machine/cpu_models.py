"""The models of x86 CPUs that users can name: who made them, and what they have beyond another.

What each has is in its maker's data sheets; the sets are those that QEMU's models of these names have.
"""

from __future__ import annotations

# Name, model that it is told from, family, model, stepping, vendor, levels, name that it shows, differences.
MODELS: tuple[tuple[str, str, int, int, int, str, int, int, str, str], ...] = (
    (
        "486", "", 4, 8, 0, "GenuineIntel", 0x1, 0x0,
        "",
        "+fpu +pse +hypervisor",
    ),
    (
        "pentium", "486", 5, 4, 3, "GenuineIntel", 0x1, 0x0,
        "",
        "+de +tsc +msr +mce +cx8 +apic +mmx",
    ),
    (
        "pentium2", "pentium", 6, 5, 2, "GenuineIntel", 0x2, 0x0,
        "",
        "+pae +sep +mtrr +pge +mca +cmov +pat +pse36 +fxsr",
    ),
    (
        "qemu32", "pentium2", 6, 6, 3, "GenuineIntel", 0x4, 0x80000004,
        "QEMU Virtual CPU version 2.5+",
        "+sse +sse2 +pni -mtrr -mca -pse36",
    ),
    (
        "pentium3", "pentium2", 6, 7, 3, "GenuineIntel", 0x3, 0x0,
        "",
        "+sse",
    ),
    (
        "kvm32", "pentium3", 15, 6, 1, "GenuineIntel", 0x5, 0x80000008,
        "Common 32-bit KVM processor",
        "+clflush +sse2 +pni",
    ),
    (
        "athlon", "pentium3", 6, 2, 3, "AuthenticAMD", 0x2, 0x80000008,
        "QEMU Virtual CPU version 2.5+",
        "+sse2 +mmxext +3dnowext +3dnow",
    ),
    (
        "Opteron_G1", "kvm32", 15, 6, 1, "AuthenticAMD", 0x5, 0x80000008,
        "AMD Opteron 240 (Gen 1 Class Opteron)",
        "+syscall +nx +lm",
    ),
    (
        "coreduo", "kvm32", 6, 14, 8, "GenuineIntel", 0xA, 0x80000008,
        "Genuine Intel(R) CPU           T2600  @ 2.16GHz",
        "+acpi +ss +monitor +nx -pse36",
    ),
    (
        "kvm64", "Opteron_G1", 15, 6, 1, "GenuineIntel", 0xD, 0x80000008,
        "Common KVM processor",
        "+cx16",
    ),
    (
        "Conroe", "Opteron_G1", 6, 15, 3, "GenuineIntel", 0xA, 0x80000008,
        "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
        "+ssse3 +lahf-lm",
    ),
    (
        "Opteron_G2", "kvm64", 15, 6, 1, "AuthenticAMD", 0x5, 0x8000000A,
        "AMD Opteron 22xx (Gen 2 Class Opteron)",
        "+lahf-lm +svm",
    ),
    (
        "n270", "coreduo", 6, 28, 2, "GenuineIntel", 0xA, 0x80000008,
        "Intel(R) Atom(TM) CPU N270   @ 1.60GHz",
        "+ssse3 +movbe +lahf-lm",
    ),
    (
        "Penryn", "Conroe", 6, 23, 3, "GenuineIntel", 0xA, 0x80000008,
        "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
        "+cx16 +sse4.1",
    ),
    (
        "Nehalem", "Penryn", 6, 26, 3, "GenuineIntel", 0xB, 0x80000008,
        "Intel Core i7 9xx (Nehalem Class Core i7)",
        "+sse4.2 +popcnt",
    ),
    (
        "core2duo", "Conroe", 6, 15, 11, "GenuineIntel", 0xA, 0x80000008,
        "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz",
        "+acpi +ss +monitor +cx16",
    ),
    (
        "Nehalem-IBRS", "Nehalem", 6, 26, 3, "GenuineIntel", 0xB, 0x80000008,
        "Intel Core i7 9xx (Nehalem Core i7, IBRS update)",
        "+spec-ctrl",
    ),
    (
        "Opteron_G3", "Opteron_G2", 16, 2, 3, "AuthenticAMD", 0x5, 0x8000000A,
        "AMD Opteron 23xx (Gen 3 Class Opteron)",
        "+monitor +popcnt +rdtscp +abm +sse4a +misalignsse",
    ),
    (
        "Westmere", "Nehalem", 6, 44, 1, "GenuineIntel", 0xB, 0x80000008,
        "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
        "+pclmulqdq +aes +arat",
    ),
    (
        "Westmere-IBRS", "Westmere", 6, 44, 1, "GenuineIntel", 0xB, 0x80000008,
        "Westmere E56xx/L56xx/X56xx (IBRS update)",
        "+spec-ctrl",
    ),
    (
        "phenom", "Opteron_G3", 16, 2, 3, "AuthenticAMD", 0x5, 0x8000001A,
        "AMD Phenom(tm) 9550 Quad-Core Processor",
        "+mmxext +fxsr-opt +pdpe1gb +3dnowext +3dnow +npt -misalignsse",
    ),
    (
        "SandyBridge", "Westmere", 6, 42, 1, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon E312xx (Sandy Bridge)",
        "+x2apic +tsc-deadline +xsave +avx +xsaveopt +rdtscp",
    ),
    (
        "SandyBridge-IBRS", "SandyBridge", 6, 42, 1, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon E312xx (Sandy Bridge, IBRS update)",
        "+spec-ctrl",
    ),
    (
        "IvyBridge", "SandyBridge", 6, 58, 9, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon E3-12xx v2 (Ivy Bridge)",
        "+f16c +rdrand +fsgsbase +smep +erms",
    ),
    (
        "IvyBridge-IBRS", "IvyBridge", 6, 58, 9, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon E3-12xx v2 (Ivy Bridge, IBRS)",
        "+spec-ctrl",
    ),
    (
        "Opteron_G4", "Opteron_G3", 21, 1, 2, "AuthenticAMD", 0xD, 0x8000001A,
        "AMD Opteron 62xx class CPU",
        "+pclmulqdq +ssse3 +sse4.1 +sse4.2 +aes +xsave +avx +pdpe1gb +3dnowprefetch +xop +fma4 +npt "
        "+nrip-save -monitor",
    ),
    (
        "Opteron_G5", "Opteron_G4", 21, 2, 0, "AuthenticAMD", 0xD, 0x8000001A,
        "AMD Opteron 63xx class CPU",
        "+fma +f16c +tbm",
    ),
    (
        "Haswell-noTSX", "IvyBridge", 6, 60, 1, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Haswell, no TSX)",
        "+fma +pcid +movbe +bmi1 +avx2 +bmi2 +invpcid +abm",
    ),
    (
        "Haswell-noTSX-IBRS", "Haswell-noTSX", 6, 60, 1, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Haswell, no TSX, IBRS)",
        "+spec-ctrl",
    ),
    (
        "Haswell", "Haswell-noTSX", 6, 60, 4, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Haswell)",
        "+hle +rtm",
    ),
    (
        "Haswell-IBRS", "Haswell", 6, 60, 4, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Haswell, IBRS)",
        "+spec-ctrl",
    ),
    (
        "Broadwell-noTSX", "Haswell-noTSX", 6, 61, 2, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Broadwell, no TSX)",
        "+rdseed +adx +smap +3dnowprefetch",
    ),
    (
        "Broadwell-noTSX-IBRS", "Broadwell-noTSX", 6, 61, 2, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Broadwell, no TSX, IBRS)",
        "+spec-ctrl",
    ),
    (
        "Broadwell", "Broadwell-noTSX", 6, 61, 2, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Broadwell)",
        "+hle +rtm",
    ),
    (
        "Denverton", "IvyBridge-IBRS", 6, 95, 1, "GenuineIntel", 0x15, 0x80000008,
        "Intel Atom Processor (Denverton)",
        "+monitor +movbe +mpx +rdseed +smap +clflushopt +sha-ni +arch-capabilities +ssbd +xsavec +xgetbv1 "
        "+pdpe1gb +3dnowprefetch +rdctl-no +skip-l1dfl-vmentry -avx -f16c",
    ),
    (
        "Broadwell-IBRS", "Broadwell", 6, 61, 2, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Broadwell, IBRS)",
        "+spec-ctrl",
    ),
    (
        "Skylake-Client-noTSX-IBRS", "Broadwell-noTSX-IBRS", 6, 94, 3, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Skylake, IBRS, no TSX)",
        "+xsavec +xgetbv1",
    ),
    (
        "Skylake-Client", "Broadwell", 6, 94, 3, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Skylake)",
        "+xsavec +xgetbv1",
    ),
    (
        "Skylake-Client-IBRS", "Skylake-Client", 6, 94, 3, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Skylake, IBRS)",
        "+spec-ctrl",
    ),
    (
        "KnightsMill", "Broadwell-noTSX", 6, 133, 0, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Phi Processor (Knights Mill)",
        "+ss +avx512f +avx512pf +avx512er +avx512cd +avx512-vpopcntdq +avx512-4vnniw +avx512-4fmaps +pdpe1gb "
        "-pcid -invpcid -smap",
    ),
    (
        "Snowridge", "Denverton", 6, 134, 1, "GenuineIntel", 0x1B, 0x80000008,
        "Intel Atom Processor (SnowRidge)",
        "+clwb +umip +gfni +cldemote +movdiri +movdir64b +core-capability +split-lock-detect -rdctl-no "
        "-skip-l1dfl-vmentry",
    ),
    (
        "Dhyana", "Skylake-Client-noTSX-IBRS", 24, 0, 1, "HygonGenuine", 0xD, 0x8000001E,
        "Hygon Dhyana Processor",
        "+monitor +clflushopt +mmxext +fxsr-opt +pdpe1gb +svm +cr8legacy +sse4a +misalignsse +osvw +topoext "
        "+ibpb +npt +nrip-save -pclmulqdq -pcid -x2apic -tsc-deadline -aes -erms -invpcid -spec-ctrl",
    ),
    (
        "EPYC", "Dhyana", 23, 1, 2, "AuthenticAMD", 0xD, 0x8000001E,
        "AMD EPYC Processor",
        "+pclmulqdq +aes +sha-ni -ibpb",
    ),
    (
        "Skylake-Server-noTSX-IBRS", "Skylake-Client-noTSX-IBRS", 6, 85, 4, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Skylake, IBRS, no TSX)",
        "+avx512f +avx512dq +clwb +avx512cd +avx512bw +avx512vl +pku +pdpe1gb",
    ),
    (
        "EPYC-IBPB", "EPYC", 23, 1, 2, "AuthenticAMD", 0xD, 0x8000001E,
        "AMD EPYC Processor (with IBPB)",
        "+ibpb",
    ),
    (
        "Skylake-Server", "Skylake-Server-noTSX-IBRS", 6, 85, 4, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Skylake)",
        "+hle +rtm +clflushopt -spec-ctrl",
    ),
    (
        "Skylake-Server-IBRS", "Skylake-Server-noTSX-IBRS", 6, 85, 4, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Skylake, IBRS)",
        "+hle +rtm",
    ),
    (
        "Cascadelake-Server", "Skylake-Server", 6, 85, 6, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Cascadelake)",
        "+avx512vnni +spec-ctrl +ssbd",
    ),
    (
        "Cascadelake-Server-noTSX", "Cascadelake-Server", 6, 85, 6, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Cascadelake)",
        "+arch-capabilities +rdctl-no +ibrs-all +skip-l1dfl-vmentry +mds-no -hle -rtm",
    ),
    (
        "EPYC-Rome", "EPYC-IBPB", 23, 49, 0, "AuthenticAMD", 0xD, 0x8000001E,
        "AMD EPYC-Rome Processor",
        "+clwb +umip +rdpid +xsaves +perfctr-core +clzero +xsaveerptr +wbnoinvd +amd-stibp",
    ),
    (
        "Icelake-Server-noTSX", "Cascadelake-Server", 6, 134, 0, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Icelake)",
        "+avx512vbmi +umip +avx512vbmi2 +gfni +vaes +vpclmulqdq +avx512bitalg +avx512-vpopcntdq +la57 "
        "+wbnoinvd -hle -rtm",
    ),
    (
        "Cooperlake", "Cascadelake-Server-noTSX", 6, 85, 10, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Cooperlake)",
        "+hle +rtm +stibp +avx512-bf16 +pschange-mc-no +taa-no",
    ),
    (
        "Icelake-Server", "Icelake-Server-noTSX", 6, 134, 0, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Icelake)",
        "+hle +rtm",
    ),
    (
        "EPYC-Milan", "EPYC-Rome", 25, 1, 1, "AuthenticAMD", 0xD, 0x8000001E,
        "AMD EPYC-Milan Processor",
        "+pcid +erms +invpcid +pku +fsrm +ibrs +amd-ssbd +svme-addr-chk",
    ),
    (
        "Cascadelake-Server-v2", "Cascadelake-Server", 6, 85, 6, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Cascadelake)",
        "+arch-capabilities +ibrs-all +mds-no +rdctl-no +skip-l1dfl-vmentry",
    ),
    (
        "Cascadelake-Server-v4", "Cascadelake-Server-noTSX", 6, 85, 6, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Cascadelake)",
        "",
    ),
    (
        "Cascadelake-Server-v5", "Cascadelake-Server-v4", 6, 85, 6, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Cascadelake)",
        "+xsaves",
    ),
    (
        "Cooperlake-v2", "Cooperlake", 6, 85, 10, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Cooperlake)",
        "+xsaves",
    ),
    (
        "Denverton-v2", "Denverton", 6, 95, 1, "GenuineIntel", 0x15, 0x80000008,
        "Intel Atom Processor (Denverton)",
        "-monitor -mpx",
    ),
    (
        "Denverton-v3", "Denverton-v2", 6, 95, 1, "GenuineIntel", 0x15, 0x80000008,
        "Intel Atom Processor (Denverton)",
        "+xsaves",
    ),
    (
        "Dhyana-v2", "Dhyana", 24, 0, 1, "HygonGenuine", 0xD, 0x8000001E,
        "Hygon Dhyana Processor",
        "+xsaves",
    ),
    (
        "EPYC-Rome-v2", "EPYC-Rome", 23, 49, 0, "AuthenticAMD", 0xD, 0x8000001E,
        "AMD EPYC-Rome Processor",
        "+amd-ssbd +ibrs",
    ),
    (
        "EPYC-v3", "EPYC-IBPB", 23, 1, 2, "AuthenticAMD", 0xD, 0x8000001E,
        "AMD EPYC Processor",
        "+clzero +perfctr-core +xsaveerptr +xsaves",
    ),
    (
        "Icelake-Server-v3", "Icelake-Server-noTSX", 6, 134, 0, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Icelake)",
        "+arch-capabilities +ibrs-all +mds-no +pschange-mc-no +rdctl-no +skip-l1dfl-vmentry +taa-no",
    ),
    (
        "Icelake-Server-v4", "Icelake-Server-v3", 6, 106, 0, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Icelake)",
        "+avx512ifma +fsrm +rdpid +sha-ni",
    ),
    (
        "Icelake-Server-v5", "Icelake-Server-v4", 6, 106, 0, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Icelake)",
        "+xsaves",
    ),
    (
        "Icelake-Server-v6", "Icelake-Server-v5", 6, 106, 0, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Icelake)",
        "",
    ),
    (
        "Skylake-Client-v4", "Skylake-Client-noTSX-IBRS", 6, 94, 3, "GenuineIntel", 0xD, 0x80000008,
        "Intel Core Processor (Skylake, IBRS, no TSX)",
        "+xsaves",
    ),
    (
        "Skylake-Server-v4", "Skylake-Server-noTSX-IBRS", 6, 85, 4, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Skylake, IBRS, no TSX)",
        "",
    ),
    (
        "Skylake-Server-v5", "Skylake-Server-v4", 6, 85, 4, "GenuineIntel", 0xD, 0x80000008,
        "Intel Xeon Processor (Skylake, IBRS, no TSX)",
        "+xsaves",
    ),
    (
        "Snowridge-v2", "Snowridge", 6, 134, 1, "GenuineIntel", 0x1B, 0x80000008,
        "Intel Atom Processor (Snowridge, no MPX)",
        "-mpx",
    ),
    (
        "Snowridge-v3", "Snowridge-v2", 6, 134, 1, "GenuineIntel", 0x1B, 0x80000008,
        "Intel Atom Processor (Snowridge, no MPX)",
        "+xsaves",
    ),
    (
        "Snowridge-v4", "Snowridge-v3", 6, 134, 1, "GenuineIntel", 0x1B, 0x80000008,
        "Intel Atom Processor (Snowridge, no MPX)",
        "-core-capability -split-lock-detect",
    ),
)  # fmt: skip

_SECOND_NAMES = {
    "Broadwell-noTSX": "Broadwell-v2",
    "Broadwell-IBRS": "Broadwell-v3",
    "Broadwell-noTSX-IBRS": "Broadwell-v4",
    "Cascadelake-Server-noTSX": "Cascadelake-Server-v3",
    "EPYC-IBPB": "EPYC-v2",
    "Haswell-noTSX": "Haswell-v2",
    "Haswell-IBRS": "Haswell-v3",
    "Haswell-noTSX-IBRS": "Haswell-v4",
    "Icelake-Server-noTSX": "Icelake-Server-v2",
    "IvyBridge-IBRS": "IvyBridge-v2",
    "Nehalem-IBRS": "Nehalem-v2",
    "SandyBridge-IBRS": "SandyBridge-v2",
    "Skylake-Client-IBRS": "Skylake-Client-v2",
    "Skylake-Client-noTSX-IBRS": "Skylake-Client-v3",
    "Skylake-Server-IBRS": "Skylake-Server-v2",
    "Skylake-Server-noTSX-IBRS": "Skylake-Server-v3",
    "Westmere-IBRS": "Westmere-v2",
}


def version_of(name: str) -> str | None:
    """The model by version that ``name`` is another name of, the first if nothing else is said; None if it is one."""
    _, mark, number = name.rpartition("-v")
    if mark and number.isdecimal():
        return None
    return _SECOND_NAMES.get(name, f"{name}-v1")
