"""Numbers and sizes as QEMU's tools read and print them."""

from __future__ import annotations

from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

INT32_MAX = (1 << 31) - 1
UINT32_MAX = (1 << 32) - 1
INT64_MAX = (1 << 63) - 1
UINT64_MAX = (1 << 64) - 1


def signed32(value: int) -> int:
    """What the 32 bits of ``value`` are as a signed number."""
    return value - (1 << 32) if value > INT32_MAX else value


def signed64(value: int) -> int:
    """What the 64 bits of ``value`` are as a signed number."""
    return value - (1 << 64) if value > INT64_MAX else value


_SHIFTS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")

BOOLEANS = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}
"""The words of options that are switches."""


def decimal(text: str) -> int | None:
    """The number of up to 64 bits that ``text`` says in the digits 0 to 9 alone; None where it says none.

    ``int()`` by itself fails where ``str.isdigit`` does not: for superscripts, and for thousands of digits.
    """
    if not text.isascii() or not text.isdigit() or len(text.lstrip("0")) > 20:
        return None
    number = int(text.lstrip("0") or "0")
    return number if number <= UINT64_MAX else None


_BLANKS = " \t\n\v\f\r"
_DIGITS = "0123456789abcdef"
_MAX_DIGITS = 64


def integer(text: str) -> int | None:
    """The number that ``text`` says as C's strtoll reads it: decimal, octal after ``0``, hexadecimal after ``0x``.

    None where it says none. ``int(text, 0)`` is no substitute: it takes ``1_6``, ``0b1``, blanks at the end and
    digits of any script, and refuses ``010``. How large a number may be is the caller's to say.
    """
    digits = text.lstrip(_BLANKS).lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits[1:] if digits.startswith(("-", "+")) else digits
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
    digits = digits[2:] if base == 16 else digits
    if not digits or len(digits) > _MAX_DIGITS or digits.strip(_DIGITS[:base]):
        return None
    return sign * int(digits, base)


class NotANumber(ValueError):
    """The text is no size."""


class OutOfRange(ValueError):
    """The size does not fit in 64 bits."""


def parse_size(text: str, warn: Callable[[str], None] | None = None) -> int:
    """Bytes that ``text`` says: decimal, with a fraction if the unit allows, or hexadecimal; one suffix of bkMGTPE.

    ``warn`` is told of what is deprecated. Raises NotANumber or OutOfRange.
    """
    body = text.lstrip(_BLANKS).removeprefix("+")
    fraction = ""
    if body[:2].lower() == "0x":
        digits = body[2:].rstrip("kKmMgGtTpP")
        suffix = body[2 + len(digits) :].lower() or "b"
        if len(suffix) > 1 or not digits or digits.strip("0123456789abcdefABCDEF"):
            raise NotANumber(text)
        whole = int(digits, 16)
        if suffix != "b" and warn is not None:
            warn(f"Using a multiplier suffix on hex numbers is deprecated: {text}")
    else:
        suffix = body[-1:].lower()
        number, suffix = (body[:-1], suffix) if suffix in _SHIFTS else (body, "b")
        digits, _, fraction = number.partition(".")
        if not digits or (digits + fraction).strip("0123456789"):
            raise NotANumber(text)
        whole = int(digits) if len(digits) < 40 else UINT64_MAX + 1
    shift = _SHIFTS[suffix]
    value = whole << shift
    fraction = fraction.rstrip("0")[:40]
    if fraction:
        if not shift:
            raise NotANumber(text)  # no such thing as half a byte
        scale = 10 ** len(fraction)
        value += ((int(fraction) << shift) * 2 + scale) // (2 * scale)
    if value > UINT64_MAX:
        raise OutOfRange(text)
    return value


def not_a_size(name: str) -> QobraError:
    """The error of an option ``name`` that has to be a size, and is not."""
    return QobraError(
        f"Parameter '{name}' expects a non-negative number below 2^64",
        hint="Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.",
    )


def size_text(size: int) -> str:
    """``size`` in bytes for a person, with three digits and a binary unit: ``1.5 GiB``."""
    unit = 0
    # The next unit is taken from 1000 up, so that three digits always do.
    while unit < len(_UNITS) - 1 and size * 1024 >= 1000 << (10 * (unit + 1)):
        unit += 1
    return f"{three_digits(size / (1 << (10 * unit)))} {_UNITS[unit]}B"


def three_digits(value: float) -> str:
    """As printf's ``%0.3g``."""
    return f"{value:.3g}"


def io_size_text(value: float) -> str:
    """``value`` bytes as qemu-io prints quantities: ``64 KiB``, ``1.500 MiB``, ``512 bytes``."""
    unit = 0
    while unit < len(_UNITS) - 1 and value >= 1024:
        value /= 1024
        unit += 1
    text = f"{value:.3f}".removesuffix(".000")
    return f"{text} {_UNITS[unit]}B" if unit else f"{text if isinstance(value, int) else f'{value:f}'} bytes"
