"""What the virtio standard calls its devices, status bits and features (virtio 1.2, chapters 2, 5 and 6)."""

from __future__ import annotations

from collections.abc import Mapping

_DEVICES = {
    1: "virtio-net",
    2: "virtio-blk",
    3: "virtio-serial",
    4: "virtio-rng",
    5: "virtio-balloon",
    8: "virtio-scsi",
    16: "virtio-gpu",
    18: "virtio-input",
    24: "virtio-mem",
    27: "virtio-pmem",
}

_STATUS = {0: "ACKNOWLEDGE", 1: "DRIVER", 2: "DRIVER_OK", 3: "FEATURES_OK", 6: "NEEDS_RESET", 7: "FAILED"}

_COMMON = {
    24: "VIRTIO_F_NOTIFY_ON_EMPTY",
    27: "VIRTIO_F_ANY_LAYOUT",
    28: "VIRTIO_RING_F_INDIRECT_DESC",
    29: "VIRTIO_RING_F_EVENT_IDX",
    30: "VIRTIO_F_BAD_FEATURE",
    32: "VIRTIO_F_VERSION_1",
    33: "VIRTIO_F_IOMMU_PLATFORM",
    34: "VIRTIO_F_RING_PACKED",
    35: "VIRTIO_F_IN_ORDER",
    36: "VIRTIO_F_ORDER_PLATFORM",
    37: "VIRTIO_F_SR_IOV",
    38: "VIRTIO_F_NOTIFICATION_DATA",
    40: "VIRTIO_F_RING_RESET",
}

_OWN: dict[int, tuple[str, Mapping[int, str]]] = {
    1: (
        "NET",
        {
            0: "CSUM", 1: "GUEST_CSUM", 2: "CTRL_GUEST_OFFLOADS", 3: "MTU", 5: "MAC", 6: "GSO", 7: "GUEST_TSO4",
            8: "GUEST_TSO6", 9: "GUEST_ECN", 10: "GUEST_UFO", 11: "HOST_TSO4", 12: "HOST_TSO6", 13: "HOST_ECN",
            14: "HOST_UFO", 15: "MRG_RXBUF", 16: "STATUS", 17: "CTRL_VQ", 18: "CTRL_RX", 19: "CTRL_VLAN",
            20: "CTRL_RX_EXTRA", 21: "GUEST_ANNOUNCE", 22: "MQ", 23: "CTRL_MAC_ADDR", 57: "HASH_REPORT", 60: "RSS",
            61: "RSC_EXT", 62: "STANDBY", 63: "SPEED_DUPLEX",
        },
    ),
    2: (
        "BLK",
        {
            0: "BARRIER", 1: "SIZE_MAX", 2: "SEG_MAX", 4: "GEOMETRY", 5: "RO", 6: "BLK_SIZE", 7: "SCSI", 9: "FLUSH",
            10: "TOPOLOGY", 11: "CONFIG_WCE", 12: "MQ", 13: "DISCARD", 14: "WRITE_ZEROES", 16: "SECURE_ERASE",
        },
    ),
    3: ("CONSOLE", {0: "SIZE", 1: "MULTIPORT", 2: "EMERG_WRITE"}),
    5: (
        "BALLOON",
        {
            0: "MUST_TELL_HOST", 1: "STATS_VQ", 2: "DEFLATE_ON_OOM", 3: "FREE_PAGE_HINT", 4: "PAGE_POISON",
            5: "REPORTING",
        },
    ),
    8: ("SCSI", {0: "INOUT", 1: "HOTPLUG", 2: "CHANGE", 3: "T10_PI"}),
    16: ("GPU", {0: "VIRGL", 1: "EDID", 2: "RESOURCE_UUID", 3: "RESOURCE_BLOB", 4: "CONTEXT_INIT"}),
    24: ("MEM", {0: "ACPI_PXM", 1: "UNPLUGGED_INACCESSIBLE"}),
}  # fmt: skip
"""By the device's number: what its features begin with, and their names by bit."""


def device(number: int) -> str:
    """The name of a type of device."""
    return _DEVICES[number]


def status(bits: int) -> list[str]:
    """The names of the bits of a status, lowest first."""
    return [f"VIRTIO_CONFIG_S_{name}" for bit, name in _STATUS.items() if bits >> bit & 1]


def features(number: int, bits: int) -> list[str]:
    """The names of the features of a device, lowest bit first; last comes what has no name, in hexadecimal."""
    prefix, own = _OWN.get(number, ("", {}))
    known = {bit: f"VIRTIO_{prefix}_F_{name}" for bit, name in own.items()} | _COMMON
    words = [name for bit, name in sorted(known.items()) if bits >> bit & 1]
    unknown = bits & ~sum(1 << bit for bit in known)
    return [*words, f"unknown-features(0x{unknown:016x})"] if unknown else words
