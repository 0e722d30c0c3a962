"""Resource descriptors: what a device decodes and signals (ACPI specification 6.4, section 6.4)."""

from __future__ import annotations

from struct import pack

from qobra.machine.acpi_tables import aml

_MEMORY, _IO, _BUS = 0, 1, 2
_PRODUCER_FIXED = 0x0C
_READ_WRITE, _CACHEABLE, _PREFETCHABLE, _WHOLE_RANGE = 0x01, 0x02, 0x06, 0x03


def template(*descriptors: bytes) -> bytes:
    """``ResourceTemplate () {...}``."""
    return aml.buffer(b"".join(descriptors) + b"\x79\0")


def io(base: int, size: int, *, limit: int | None = None) -> bytes:
    """Ports, decoded with 16 bits."""
    return pack("<BBHHBB", 0x47, 1, base, base if limit is None else limit, 1, size)


def irq(*numbers: int) -> bytes:
    """One of some ISA interrupts, edge-triggered."""
    return pack("<BH", 0x22, sum(1 << number for number in numbers))


def interrupt(*numbers: int, shared: bool = True) -> bytes:
    """One of some interrupts of the system, level-triggered and high."""
    flags = 1 | shared << 3
    body = pack("<BB", flags, len(numbers)) + b"".join(number.to_bytes(4, "little") for number in numbers)
    return pack("<BH", 0x89, len(body)) + body


def dma(channel: int) -> bytes:
    """A channel of the ISA bus."""
    return bytes((0x2A, 1 << channel, 0))


def memory_fixed(base: int, size: int) -> bytes:
    """Memory at an address."""
    return pack("<BHBII", 0x86, 9, 1, base, size)


def i2c(address: int, speed: int = 100_000) -> bytes:
    """An address of seven bits on the I2C bus of the device above."""
    body = pack("<BBBBHBHIH", 1, 0, 1, 0, 0, 1, 6, speed, address) + b"^\0"
    return pack("<BH", 0x8E, len(body)) + body


def buses(first: int, last: int) -> bytes:
    """Bus numbers that a host bridge hands on."""
    return pack("<BHBBB5H", 0x88, 0x0D, _BUS, _PRODUCER_FIXED, 0, 0, first, last, 0, last - first + 1)


def io_window(first: int, last: int) -> bytes:
    """Ports that a host bridge hands on."""
    return pack("<BHBBB5H", 0x88, 0x0D, _IO, _PRODUCER_FIXED, _WHOLE_RANGE, 0, first, last, 0, last - first + 1)


def memory_window(first: int, last: int, *, wide: bool = False) -> bytes:
    """Memory that a host bridge hands on; above 4 GiB ``wide``."""
    code, width, size = (0x8A, "Q", 0x2B) if wide else (0x87, "I", 0x17)
    head = pack("<BHBBB", code, size, _MEMORY, _PRODUCER_FIXED, _READ_WRITE | (_CACHEABLE if wide else 0))
    return head + pack(f"<5{width}", 0, first, last, 0, last - first + 1)
