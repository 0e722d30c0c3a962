"""Sector ciphers against published vectors, and the LUKS header."""

from __future__ import annotations

import time
from typing import Any

import pytest

from qobra.crypto.luks import HEADER_LENGTH, LuksHeader, create_header, parse_header
from qobra.crypto.sectors import SectorCipher
from qobra.errors import QobraError


def test_xts_known_answer():
    """IEEE 1619-2007, annex B, vector 10: AES-256, data unit 0xff, 512 bytes counting up."""
    key = bytes.fromhex(
        "2718281828459045235360287471352662497757247093699959574966967627"
        "3141592653589793238462643383279502884197169399375105820974944592"
    )
    data = bytes(range(256)) * 2
    cipher = SectorCipher("aes-256", "xts", key)
    encrypted = cipher.encrypt(0xFF, data)
    assert encrypted[:16].hex() == "1c3b3a102f770386e4836c99e370cf9b"
    assert encrypted[-16:].hex() == "c4f36ffda9fcea70b9c6e693e148c151"
    assert cipher.decrypt(0xFF, encrypted) == data


@pytest.mark.parametrize("mode", ["ecb", "cbc", "xts", "ctr"])
@pytest.mark.parametrize("generator", ["plain", "plain64", "essiv"])
def test_every_mode_gives_back_what_it_got(mode, generator):
    key = bytes(range(32 if mode == "xts" else 16))
    cipher = SectorCipher("aes-128", mode, key, generator)
    data = b"sector of data.." * 32 * 3
    encrypted = cipher.encrypt((1 << 32) + 5, data)
    assert encrypted != data and cipher.decrypt((1 << 32) + 5, encrypted) == data
    if mode != "ecb":
        assert encrypted[:512] != encrypted[512:1024]
    if mode != "ecb" and generator != "essiv":
        truncated = cipher.encrypt(5, data) == encrypted
        assert truncated == (generator == "plain")


def test_a_key_of_the_wrong_length():
    with pytest.raises(QobraError, match="key length"):
        SectorCipher("aes-256", "xts", bytes(32))
    with pytest.raises(QobraError, match="Algorithm 'serpent-256' not supported"):
        SectorCipher("serpent-256", "xts", bytes(64))


@pytest.mark.parametrize(
    "options", [{}, {"cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "essiv", "hash-alg": "sha1"}]
)
def test_a_header_opens_for_its_passphrases_only(options):
    made, area, key = create_header({"iter-time": 1, **options}, b"first")
    header = parse_header(area)
    assert header.info() == made.info() and len(area) == header.payload_offset
    assert header.unlock(area, b"first") == (key, 0)
    with pytest.raises(QobraError, match="Invalid password, cannot unlock any keyslot"):
        header.unlock(area, b"second")
    changed = bytearray(area)
    material = header.set_slot(5, key, b"second", 1)
    offset = header.slots[5].offset
    changed[offset : offset + len(material)] = material
    changed[:HEADER_LENGTH] = header.pack()
    again = parse_header(bytes(changed))
    assert again.unlock(bytes(changed), b"second") == (key, 5)
    again.clear_slot(0)
    with pytest.raises(QobraError):
        again.unlock(bytes(changed), b"first")


@pytest.mark.parametrize(("mode", "generator"), [("ecb", "plain64"), ("ecb", "essiv"), ("cbc", "plain")])
def test_every_mode_is_written_with_its_generator(mode, generator):
    """Also where there is nothing to generate for: QEMU wants it to be there."""
    _made, area, _key = create_header({"iter-time": 1, "cipher-mode": mode, "ivgen-alg": generator}, b"x")
    assert area[40:72].startswith(f"{mode}-{generator}".encode())
    assert parse_header(area).info()["ivgen-alg"] == generator


def test_bad_headers():
    _made, area, _key = create_header({"iter-time": 1}, b"x")
    for at, data, text in (
        (0, b"LUCK", "not in LUKS format"),
        (6, b"\0\2", "LUKS version 2 is not supported"),
        (8, b"serpent\0", "Algorithm 'serpent' with key size 32 bytes"),
        (40, b"odd-mode\0", "Unexpected cipher mode"),
        (72, b"rot13\0\0", "Hash algorithm 'rot13' not supported"),
        (72, b"shake_128\0", "Hash algorithm 'shake_128' not supported"),
        (208, b"\1\2\3\4", r"Keyslot 0 state \(active/disable\) is corrupted"),
        (104, b"\0\0\0\1", "LUKS payload is overlapping with the header"),
        (208 + 4, b"\0\0\0\0", "Keyslot 0 iteration count is zero"),
        (208 + 7 * 48 + 44, b"\0\0\1\0", r"Keyslot 7 is corrupted \(stripes 256 != 4000\)"),
        (208 + 40, b"\xff\xff\xff\xff", "Keyslot 0 is overlapping with the encrypted payload"),
        (208 + 40, b"\0\0\0\1", "Keyslot 0 is overlapping with the LUKS header"),
        (208 + 5 * 48 + 40, b"\0\0\0\x20", "Keyslots 0 and 5 are overlapping in the header"),
    ):
        bad = bytearray(area)
        bad[at : at + len(data)] = data
        with pytest.raises(QobraError, match=text):
            parse_header(bytes(bad))
    with pytest.raises(QobraError, match="Unable to read LUKS header"):
        parse_header(area[:100])


@pytest.mark.parametrize("at", [164, 208 + 4])
def test_more_rounds_than_a_key_can_be_derived_in(at):
    """Those of the digest and those of a slot."""
    _made, area, _key = create_header({"iter-time": 1}, b"x")
    bad = area[:at] + b"\xff\xff\xff\xff" + area[at + 4 :]
    with pytest.raises(QobraError, match="PBKDF iterations 4294967295 larger than 2147483647"):
        parse_header(bad).unlock(bad, b"x")


def test_a_hash_whose_digest_is_no_key():
    options = {"iter-time": 1, "cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": "sha512"}
    with pytest.raises(QobraError, match="No AES cipher with key size 64 available"):
        create_header(options, b"x")


@pytest.mark.parametrize("milliseconds", [-1, 1 << 62, 1 << 32])
def test_more_rounds_than_a_header_can_tell(milliseconds):
    with pytest.raises(QobraError, match="PBKDF iterations .*: Numerical result out of range"):
        create_header({"iter-time": milliseconds}, b"x")


def test_a_busy_host_makes_no_weak_key(monkeypatch: pytest.MonkeyPatch) -> None:
    free = create_header({"iter-time": 200}, b"x")[0].slots[0].iterations
    derive = LuksHeader._derive

    def waiting(self: LuksHeader, *arguments: Any) -> bytes:
        time.sleep(0.1)  # others have the processor
        return derive(self, *arguments)

    monkeypatch.setattr(LuksHeader, "_derive", waiting)
    assert create_header({"iter-time": 200}, b"x")[0].slots[0].iterations > free / 3
