"""Offsets and bits of PCI configuration space (PCI Local Bus Specification 3.0, chapter 6; PCI Express Base 3.0)."""

from __future__ import annotations

VENDOR_ID, DEVICE_ID, COMMAND, STATUS = 0x00, 0x02, 0x04, 0x06
REVISION, PROG_IF, CLASS, CACHE_LINE = 0x08, 0x09, 0x0A, 0x0C
LATENCY, HEADER_TYPE, BAR0 = 0x0D, 0x0E, 0x10
SUBSYSTEM_VENDOR, SUBSYSTEM_ID, ROM, CAPABILITIES = 0x2C, 0x2E, 0x30, 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER = 0x1, 0x2, 0x4
COMMAND_PARITY, COMMAND_SERR, COMMAND_INTX_DISABLE = 0x40, 0x100, 0x400
STATUS_INTERRUPT, STATUS_CAPABILITIES = 0x08, 0x10
HEADER_MULTIFUNCTION = 0x80

BAR_IO, BAR_MEM64, BAR_PREFETCH = 0x1, 0x4, 0x8
ROM_ENABLE = 0x1

# Type 1 header (bridges)
PRIMARY_BUS, SECONDARY_BUS, SUBORDINATE_BUS = 0x18, 0x19, 0x1A
IO_BASE, IO_LIMIT, SECONDARY_STATUS = 0x1C, 0x1D, 0x1E
MEMORY_BASE, MEMORY_LIMIT = 0x20, 0x22
PREFETCH_BASE, PREFETCH_LIMIT, PREFETCH_BASE_HIGH, PREFETCH_LIMIT_HIGH = 0x24, 0x26, 0x28, 0x2C
IO_BASE_HIGH, IO_LIMIT_HIGH, BRIDGE_ROM, BRIDGE_CONTROL = 0x30, 0x32, 0x38, 0x3E

CAP_PM, CAP_MSI, CAP_VENDOR, CAP_SSVID, CAP_EXPRESS, CAP_MSIX = 0x01, 0x05, 0x09, 0x0D, 0x10, 0x11

RED_HAT, QUMRANET, INTEL, TEXAS_INSTRUMENTS = 0x1B36, 0x1AF4, 0x8086, 0x104C
SUBSYSTEM_DEFAULT = 0x1100
"""The subsystem id of devices that have none of their own."""

CLASS_ETHERNET, CLASS_VGA, CLASS_DISPLAY = 0x0200, 0x0300, 0x0380
ROM_SIZE_FREE = 0xFFFFFFFF
"""The size of an option ROM that is as its file."""

CLASS_NAMES = {
    0x0001: "VGA controller",
    0x0100: "SCSI controller",
    0x0101: "IDE controller",
    0x0102: "Floppy controller",
    0x0103: "IPI controller",
    0x0104: "RAID controller",
    0x0106: "SATA controller",
    0x0107: "SAS controller",
    0x0180: "Storage controller",
    0x0200: "Ethernet controller",
    0x0201: "Token Ring controller",
    0x0202: "FDDI controller",
    0x0203: "ATM controller",
    0x0280: "Network controller",
    0x0300: "VGA controller",
    0x0301: "XGA controller",
    0x0302: "3D controller",
    0x0380: "Display controller",
    0x0400: "Video controller",
    0x0401: "Audio controller",
    0x0402: "Phone",
    0x0403: "Audio controller",
    0x0480: "Multimedia controller",
    0x0500: "RAM controller",
    0x0501: "Flash controller",
    0x0580: "Memory controller",
    0x0600: "Host bridge",
    0x0601: "ISA bridge",
    0x0602: "EISA bridge",
    0x0603: "MC bridge",
    0x0604: "PCI bridge",
    0x0605: "PCMCIA bridge",
    0x0606: "NUBUS bridge",
    0x0607: "CARDBUS bridge",
    0x0608: "RACEWAY bridge",
    0x0680: "Bridge",
    0x0700: "Serial port",
    0x0701: "Parallel port",
    0x0800: "Interrupt controller",
    0x0801: "DMA controller",
    0x0802: "Timer",
    0x0803: "RTC",
    0x0900: "Keyboard",
    0x0901: "Pen",
    0x0902: "Mouse",
    0x0A00: "Dock station",
    0x0B00: "i386 cpu",
    0x0B01: "i486 cpu",
    0x0B02: "pentium cpu",
    0x0B40: "coprocessor",
    0x0C00: "FireWire controller",
    0x0C01: "ACCESS.bus controller",
    0x0C02: "SSA controller",
    0x0C03: "USB controller",
    0x0C04: "FC controller",
    0x0C05: "SMBus",
}
