from __future__ import annotations

import pytest

from qobra.units import NotANumber, OutOfRange, decimal, integer, io_size_text, not_a_size, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("1", 1), ("1.0", 1), ("1.", 1), ("+5", 5), (" 5", 5), ("1k", 1024), ("1.5M", 1572864), ("0x10", 16),
        ("1.7k", 1741), ("1.0001k", 1024), ("0.1G", 107374182), ("7E", 7 << 60), ("18446744073709551615", 2**64 - 1),
        ("5b", 5),
    ],
)  # fmt: skip
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "x", "1Z", "1KB", "-1", ".5M", "1e3", "1.5", "1.5b", "0x", "0xk", "1 k", "٣"])
def test_not_sizes(text: str) -> None:
    with pytest.raises(NotANumber):
        parse_size(text)


@pytest.mark.parametrize("text", ["16E", "18446744073709551616", "9" * 100])
def test_too_large(text: str) -> None:
    with pytest.raises(OutOfRange):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("007", 7), ("18446744073709551615", 2**64 - 1), ("18446744073709551616", None), ("", None),
        ("-1", None), ("+1", None), (" 1", None), ("1_0", None), ("0x1", None), ("\u00b2", None), ("\u0663", None),
        ("9" * 5000, None), ("0" * 5000 + "1", 1),
    ],
)  # fmt: skip
def test_decimal(text: str, value: int | None) -> None:
    assert decimal(text) == value


def test_hexadecimal_with_suffix_is_deprecated() -> None:
    told: list[str] = []
    assert parse_size("0x10k", told.append) == 16384
    assert told == ["Using a multiplier suffix on hex numbers is deprecated: 0x10k"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "0.977 KiB"), (1024, "1 KiB"), (1024000, "0.977 MiB"),
        (200704, "196 KiB"), (1572864, "1.5 MiB"), (1 << 30, "1 GiB"),
    ],
)  # fmt: skip
def test_size_text(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"), (512, "512 bytes"), (1025, "1.001 KiB"), (65536, "64 KiB"), (1.5 * 2**20, "1.500 MiB"),
        (0.5, "0.500000 bytes"),
    ],
)  # fmt: skip
def test_io_size_text(size: float, text: str) -> None:
    assert io_size_text(size) == text


def test_what_a_size_may_look_like_is_a_hint():
    error = not_a_size("offset")
    assert error.desc == "Parameter 'offset' expects a non-negative number below 2^64"
    assert str(error).endswith("and exabytes, respectively.")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16", 16), ("0x1F", 31), ("0X1f", 31), ("020", 16), ("0", 0), ("-0", 0), ("-16", -16), (" \t+16", 16),
        ("", None), (" ", None), ("16 ", None), ("1_6", None), ("0b1", None), ("0o7", None), ("08", None), ("0x", None),
        ("--1", None), ("- 1", None), ("\u0664", None), ("\u00b2", None), ("\u00a016", None), ("16k", None),
        ("1" * 5000, None),
    ],
)  # fmt: skip
def test_integer_is_as_in_c(text: str, number: int | None) -> None:
    assert integer(text) == number
