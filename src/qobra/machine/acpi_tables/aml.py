"""ACPI machine language: terms as bytes (ACPI specification 6.4, chapter 20), put together by concatenation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

ZERO, ONE, NOTHING = b"\x00", b"\x01", b"\x00"
LOCALS = tuple(bytes((0x60 + n,)) for n in range(8))
ARGS = tuple(bytes((0x68 + n,)) for n in range(7))

SYSTEM_MEMORY, SYSTEM_IO, PCI_CONFIG = 0, 1, 2
ANY, BYTE, WORD, DWORD = 0, 1, 2, 3
"""How wide the accesses to a field are."""
PRESERVE, WRITE_AS_ZEROES = 0, 2
"""What becomes of the bits beside those that are written."""


def name(path: str) -> bytes:
    """A name such as ``\\_SB.PCI0`` or ``^BSEL``."""
    prefix = path[: len(path) - len(path.lstrip("\\^"))].encode()
    segments = [part.ljust(4, "_").encode() for part in path.lstrip("\\^").split(".") if part]
    if len(segments) > 2:
        return prefix + bytes((0x2F, len(segments))) + b"".join(segments)
    if len(segments) == 2:
        return prefix + b"\x2e" + b"".join(segments)
    return prefix + (segments[0] if segments else b"\0")


def integer(value: int) -> bytes:
    """A number in the shortest form."""
    if value in (0, 1):
        return bytes((value,))
    for code, width in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * width:
            return bytes((code,)) + value.to_bytes(width, "little")
    raise ValueError(value)


def string(text: str) -> bytes:
    """Text."""
    return b"\x0d" + text.encode() + b"\0"


def eisa_id(text: str) -> bytes:
    """An identity such as ``PNP0A03``, as the number that it is."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | (ord(letter) - 0x40)
    return b"\x0c" + letters.to_bytes(2, "big") + bytes.fromhex(text[3:])


def uuid(value: UUID) -> bytes:
    """``ToUUID (value)``."""
    return buffer(value.bytes_le)


def length(size: int, *, inclusive: bool = True) -> bytes:
    """PkgLength: of ``size`` bytes and of itself, or of a field's ``size`` bits."""
    for count in range(1, 5):
        total = size + count if inclusive else size
        if total < (1 << 6 if count == 1 else 1 << (4 + 8 * (count - 1))):
            break
    if count == 1:
        return bytes((total,))
    return bytes(((count - 1) << 6 | total & 0xF,)) + (total >> 4).to_bytes(count - 1, "little")


def _block(code: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return code + length(len(body)) + body


def buffer(data: bytes) -> bytes:
    """Bytes."""
    return _block(b"\x11", integer(len(data)), data)


def package(*elements: bytes) -> bytes:
    """A list of objects."""
    return _block(b"\x12", bytes((len(elements),)), *elements)


def define(path: str, value: bytes) -> bytes:
    """``Name (path, value)``."""
    return b"\x08" + name(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """``Scope (path) {...}``."""
    return _block(b"\x10", name(path), *terms)


def device(path: str, *terms: bytes) -> bytes:
    """``Device (path) {...}``."""
    return _block(b"\x5b\x82", name(path), *terms)


def method(path: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    """``Method (path, arguments) {...}``."""
    return _block(b"\x14", name(path), bytes((arguments | serialized << 3,)), *terms)


def region(path: str, space: int, offset: int | bytes, size: int) -> bytes:
    """``OperationRegion (...)``; the offset is a number or a term."""
    start = integer(offset) if isinstance(offset, int) else offset
    return b"\x5b\x80" + name(path) + bytes((space,)) + start + integer(size)


def field(of: str, access: int, update: int, *entries: tuple[str, int]) -> bytes:
    """``Field (of, ...)``: names and lengths in bits, one after the other; an empty name only takes room."""
    body = b""
    for label, bits in entries:
        body += (name(label) if label else b"\0") + length(bits, inclusive=False)
    return _block(b"\x5b\x81", name(of), bytes((access | update << 5,)), body)


def mutex(path: str) -> bytes:
    """``Mutex (path)``."""
    return b"\x5b\x01" + name(path) + b"\0"


def acquire(path: str) -> bytes:
    """``Acquire (path, ...)``, waiting as long as it takes."""
    return b"\x5b\x23" + name(path) + b"\xff\xff"


def release(path: str) -> bytes:
    """``Release (path)``."""
    return b"\x5b\x27" + name(path)


def store(value: bytes, target: bytes) -> bytes:
    """``target = value``."""
    return b"\x70" + value + target


def give(value: bytes) -> bytes:
    """``Return (value)``."""
    return b"\xa4" + value


def notify(target: bytes, value: bytes) -> bytes:
    """``Notify (target, value)``."""
    return b"\x86" + target + value


def call(path: str, *arguments: bytes) -> bytes:
    """``path (arguments)``."""
    return name(path) + b"".join(arguments)


def when(predicate: bytes, *terms: bytes) -> bytes:
    """``If (predicate) {...}``."""
    return _block(b"\xa0", predicate, *terms)


def otherwise(*terms: bytes) -> bytes:
    """``Else {...}``, after :func:`when`."""
    return _block(b"\xa1", *terms)


def repeat(predicate: bytes, *terms: bytes) -> bytes:
    """``While (predicate) {...}``."""
    return _block(b"\xa2", predicate, *terms)


def equal(left: bytes, right: bytes) -> bytes:
    """``left == right``."""
    return b"\x93" + left + right


def less(left: bytes, right: bytes) -> bytes:
    """``left < right``."""
    return b"\x95" + left + right


def at_least(left: bytes, right: bytes) -> bytes:
    """``left >= right``."""
    return b"\x92\x95" + left + right


def both(left: bytes, right: bytes, target: bytes = NOTHING) -> bytes:
    """``left & right``, bit by bit."""
    return b"\x7b" + left + right + target


def either(left: bytes, right: bytes, target: bytes = NOTHING) -> bytes:
    """``left | right``, bit by bit."""
    return b"\x7d" + left + right + target


def add(left: bytes, right: bytes, target: bytes = NOTHING) -> bytes:
    """``left + right``."""
    return b"\x72" + left + right + target


def subtract(left: bytes, right: bytes, target: bytes = NOTHING) -> bytes:
    """``left - right``."""
    return b"\x74" + left + right + target


def shift_left(value: bytes, count: bytes, target: bytes = NOTHING) -> bytes:
    """``value << count``."""
    return b"\x79" + value + count + target


def increment(target: bytes) -> bytes:
    """``target++``."""
    return b"\x75" + target


def object_type(value: bytes) -> bytes:
    """``ObjectType (value)``: 1 for a number, 3 for a buffer, 4 for a package."""
    return b"\x8e" + value


def size_of(value: bytes) -> bytes:
    """``SizeOf (value)``."""
    return b"\x87" + value


def place(of: bytes, index: bytes) -> bytes:
    """``of [index]``, to store something there."""
    return b"\x88" + of + index + NOTHING


def element(of: bytes, index: bytes) -> bytes:
    """``DerefOf (of [index])``."""
    return b"\x83\x88" + of + index + NOTHING


def concatenate(left: bytes, right: bytes, target: bytes) -> bytes:
    """``Concatenate (left, right, target)``."""
    return b"\x73" + left + right + target


def bits_of(source: bytes, first: bytes, count: bytes, path: str) -> bytes:
    """``CreateField (source, first, count, path)``."""
    return b"\x5b\x13" + source + first + count + name(path)


def dword_of(source: bytes, offset: int, path: str) -> bytes:
    """``CreateDWordField (source, offset, path)``."""
    return b"\x8a" + source + integer(offset) + name(path)
