"""The LUKS header, version 1: make it, unlock it, change its key slots.

Source: "LUKS On-Disk Format Specification", version 1.2.3. A header holds the master key eight times over, each time
split into stripes (so that a part of it is worth nothing) and encrypted with a key derived from a passphrase.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import time
from typing import Any

from qobra.crypto.derivation import MOST_AT_ONCE, derive_key
from qobra.crypto.sectors import IV_GENERATORS, KEY_BYTES, MODES, SECTOR, SectorCipher
from qobra.errors import QobraError

MAGIC = b"LUKS\xba\xbe"
_HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
SLOTS = 8
HEADER_LENGTH = _HEADER.size + SLOTS * _SLOT.size
STRIPES = 4000
_ENABLED = 0x00AC71F3
_DISABLED = 0x0000DEAD
_ALIGNMENT = 4096
_HASHES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
"""QCryptoHashAlgorithm: hashlib has others, which no program writes and some of which have no digest of one length."""
_MOST_ITERATIONS = 0xFFFFFFFF
_MOST_DERIVED = 0x7FFFFFFF
"""Rounds that OpenSSL can be asked for."""
_MIN_ITERATIONS = 1000
DEFAULT_ITER_TIME = 2000
"""Milliseconds to spend on deriving a key."""
MAX_HEADER = 4 << 20
"""Bytes beyond which a header is refused."""


class Slot:
    """A key slot; ``offset`` of the key material in bytes from the header's start."""

    def __init__(self, offset: int) -> None:
        self.active = False
        self.iterations = 0
        self.salt = bytes(32)
        self.offset = offset
        self.stripes = STRIPES


class LuksHeader:
    """A header and its key slots. Sizes and offsets in bytes."""

    def __init__(self) -> None:
        self.cipher = "aes-256"
        self.mode = "xts"
        self.iv_generator = "plain64"
        self.iv_hash: str | None = None
        self.hash = "sha256"
        self.payload_offset = 0
        self.key_length = 64
        self.digest = bytes(20)
        self.digest_salt = bytes(32)
        self.digest_iterations = 0
        self.uuid = ""
        self.slots: list[Slot] = []

    def pack(self) -> bytes:
        """The header with its slots, without key material."""
        generator = self.iv_generator + (f":{self.iv_hash}" if self.iv_hash else "")
        parts = [
            _HEADER.pack(
                MAGIC,
                1,
                b"aes",
                f"{self.mode}-{generator}".encode(),
                self.hash.encode(),
                self.payload_offset // SECTOR,
                self.key_length,
                self.digest,
                self.digest_salt,
                self.digest_iterations,
                self.uuid.encode(),
            )
        ]
        parts += [
            _SLOT.pack(
                _ENABLED if slot.active else _DISABLED, slot.iterations, slot.salt, slot.offset // SECTOR, slot.stripes
            )
            for slot in self.slots
        ]
        return b"".join(parts)

    def info(self) -> dict[str, Any]:
        """QCryptoBlockInfoLUKS."""
        slots: list[dict[str, Any]] = []
        for slot in self.slots:
            each: dict[str, Any] = {"active": slot.active}
            if slot.active:
                each.update(iters=slot.iterations, stripes=slot.stripes)
            each["key-offset"] = slot.offset
            slots.append(each)
        info: dict[str, Any] = {
            "cipher-alg": self.cipher,
            "cipher-mode": self.mode,
            "ivgen-alg": self.iv_generator,
            "hash-alg": self.hash,
            "payload-offset": self.payload_offset,
            "master-key-iters": self.digest_iterations,
            "uuid": self.uuid,
            "slots": slots,
        }
        if self.iv_hash:
            info["ivgen-hash-alg"] = self.iv_hash
        return info

    def sector_cipher(self, key: bytes) -> SectorCipher:
        """The cipher of the data, or with a slot's key that of its material."""
        return SectorCipher(self.cipher, self.mode, key, self.iv_generator, self.iv_hash or "sha256")

    # -- keys ---------------------------------------------------------------------------------------------------

    def unlock(self, area: bytes, passphrase: bytes) -> tuple[bytes, int]:
        """The master key and the slot that ``passphrase`` opens; ``area`` is the header with the key material.

        Raises QobraError where it opens none.
        """
        for number, slot in enumerate(self.slots):
            if not slot.active:
                continue
            material = area[slot.offset : slot.offset + self.key_length * slot.stripes]
            if len(material) < self.key_length * slot.stripes:
                raise QobraError("LUKS key material is cut short")
            derived = self._derive(passphrase, slot.salt, slot.iterations, self.key_length)
            padded = material + bytes(-len(material) % SECTOR)
            split = self.sector_cipher(derived).decrypt(0, padded)[: len(material)]
            key = _merge(split, self.key_length, slot.stripes, self.hash)
            if self._derive(key, self.digest_salt, self.digest_iterations, len(self.digest)) == self.digest:
                return key, number
        raise QobraError("Invalid password, cannot unlock any keyslot")

    def set_slot(self, number: int, key: bytes, passphrase: bytes, iter_time: int) -> bytes:
        """Let ``passphrase`` open slot ``number``; the key material, to be written at the slot's offset."""
        slot = self.slots[number]
        slot.salt = os.urandom(32)
        slot.stripes = STRIPES
        slot.iterations = self._iterations(iter_time)
        derived = self._derive(passphrase, slot.salt, slot.iterations, self.key_length)
        split = _split(key, slot.stripes, self.hash)
        slot.active = True
        return self.sector_cipher(derived).encrypt(0, split + bytes(-len(split) % SECTOR))[: len(split)]

    def clear_slot(self, number: int) -> int:
        """Take the passphrase from slot ``number``; the bytes of key material that must be overwritten."""
        slot = self.slots[number]
        slot.active = False
        slot.iterations = 0
        slot.salt = bytes(32)
        return self.key_length * slot.stripes

    def set_digest(self, key: bytes, iter_time: int) -> None:
        """Remember how to tell that a key is the master key."""
        self.digest_salt = os.urandom(32)
        self.digest_iterations = max(_MIN_ITERATIONS, self._iterations(iter_time) // 8)
        self.digest = self._derive(key, self.digest_salt, self.digest_iterations, 20)

    def _derive(self, secret: bytes, salt: bytes, iterations: int, length: int) -> bytes:
        if iterations > _MOST_DERIVED:
            raise _out_of_range(f"{iterations} larger than {_MOST_DERIVED}")
        return derive_key(self.hash, secret, salt, max(iterations, 1), length)

    def _time(self, rounds: int) -> float:
        """Seconds of a processor that so many rounds take."""
        start = time.thread_time()
        self._derive(b"password", b"salt" * 8, rounds, self.key_length)
        return time.thread_time() - start

    def _iterations(self, iter_time: int) -> int:
        """How many rounds take ``iter_time`` milliseconds of a processor. Raises QobraError if a header cannot tell.

        What else the host does must not make a key cheap to guess: it is not the time that passes which counts.
        """
        rounds = 1 << 12
        spent = 0.0
        while spent < 0.02 and rounds < MOST_AT_ONCE // 4:  # more are not derived in this thread, whose time it is
            rounds *= 4
            spent = self._time(rounds)
        spent = min(spent, self._time(rounds))
        second = int(rounds / spent)
        iter_time &= (1 << 64) - 1
        if second * iter_time >= 1 << 64:
            raise _out_of_range(f"{second} too large to scale")
        wanted = second * iter_time // 1000
        if wanted > _MOST_ITERATIONS:
            raise _out_of_range(f"{wanted} larger than {_MOST_ITERATIONS}")
        return max(_MIN_ITERATIONS, wanted)


def _out_of_range(what: str) -> QobraError:
    return QobraError(f"PBKDF iterations {what}: {os.strerror(errno.ERANGE)}", errno=errno.ERANGE)


def _require_hash(name: str) -> None:
    """Raise QobraError unless there is such a hash here: OpenSSL may have been built without the old ones."""
    if name in _HASHES:
        try:
            hashlib.new(name)
        except ValueError:
            pass
        else:
            return
    raise QobraError(f"Hash algorithm '{name}' not supported")


def plan_header(options: dict[str, Any]) -> LuksHeader:
    """What ``options`` (QCryptoBlockCreateOptionsLUKS) ask for, and where its parts will lie; it has no key yet.

    Raises QobraError for what is not supported.
    """
    header = LuksHeader()
    header.cipher = options.get("cipher-alg", "aes-256")
    header.mode = options.get("cipher-mode", "xts")
    header.iv_generator = options.get("ivgen-alg", "plain64")
    header.hash = options.get("hash-alg", "sha256")
    if header.iv_generator == "essiv":
        header.iv_hash = options.get("ivgen-hash-alg", "sha256")
    if header.cipher not in KEY_BYTES:
        raise QobraError(f"Algorithm '{header.cipher}' not supported")
    _require_hash(header.hash)
    header.key_length = KEY_BYTES[header.cipher] * (2 if header.mode == "xts" else 1)
    size = -(-header.key_length * STRIPES // _ALIGNMENT) * _ALIGNMENT
    header.slots = [Slot(_ALIGNMENT + number * size) for number in range(SLOTS)]
    header.payload_offset = _ALIGNMENT + SLOTS * size
    return header


def create_header(options: dict[str, Any], passphrase: bytes) -> tuple[LuksHeader, bytes, bytes]:
    """A new header as ``options`` (QCryptoBlockCreateOptionsLUKS) say: (header, its bytes, the master key).

    The bytes include the key material, and end where the payload begins. Raises QobraError for what is not supported.
    """
    import uuid

    header = plan_header(options)
    key = os.urandom(header.key_length)
    header.uuid = str(uuid.uuid4())
    iter_time = options.get("iter-time", DEFAULT_ITER_TIME)
    header.set_digest(key, iter_time)
    material = header.set_slot(0, key, passphrase, iter_time)
    area = bytearray(header.payload_offset)
    area[:HEADER_LENGTH] = header.pack()
    area[_ALIGNMENT : _ALIGNMENT + len(material)] = material
    return header, bytes(area), key


def parse_header(data: bytes) -> LuksHeader:
    """The header that ``data`` begins with. Raises QobraError in QEMU's words."""
    if len(data) < HEADER_LENGTH:
        raise QobraError("Unable to read LUKS header")
    magic, version, cipher, mode, hash, payload, key_length, digest, salt, iterations, uuid = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise QobraError("Volume is not in LUKS format")
    if version != 1:
        raise QobraError(f"LUKS version {version} is not supported")
    header = LuksHeader()
    header.payload_offset = payload * SECTOR
    header.key_length = key_length
    header.digest, header.digest_salt, header.digest_iterations = digest, salt, iterations
    header.uuid = _text(uuid)
    if header.payload_offset < HEADER_LENGTH:
        raise QobraError("LUKS payload is overlapping with the header")
    for number in range(SLOTS):
        state, slot_iterations, slot_salt, offset, stripes = _SLOT.unpack_from(data, _HEADER.size + number * _SLOT.size)
        if state not in (_ENABLED, _DISABLED):
            raise QobraError(f"Keyslot {number} state (active/disable) is corrupted")
        if stripes != STRIPES:
            raise QobraError(f"Keyslot {number} is corrupted (stripes {stripes} != {STRIPES})")
        if state == _ENABLED and slot_iterations == 0:
            raise QobraError(f"Keyslot {number} iteration count is zero")
        slot = Slot(offset * SECTOR)
        slot.active, slot.iterations, slot.salt = state == _ENABLED, slot_iterations, slot_salt
        header.slots.append(slot)
    _require_places(header)
    header.hash = _text(hash).lower()
    _require_hash(header.hash)
    _take_cipher(header, _text(cipher), _text(mode))
    return header


def _require_places(header: LuksHeader) -> None:
    """Slots may lie over nothing else, used or not: a key that is put into one would destroy it."""
    length = -(-header.key_length * STRIPES // SECTOR) * SECTOR
    for number, slot in enumerate(header.slots):
        if slot.offset < HEADER_LENGTH:
            raise QobraError(f"Keyslot {number} is overlapping with the LUKS header")
        if slot.offset + length > min(header.payload_offset, MAX_HEADER):
            raise QobraError(f"Keyslot {number} is overlapping with the encrypted payload")
        for other in range(number + 1, SLOTS):
            if abs(header.slots[other].offset - slot.offset) < length:
                raise QobraError(f"Keyslots {number} and {other} are overlapping in the header")


def _take_cipher(header: LuksHeader, cipher: str, mode_text: str) -> None:
    mode, dash, generator = mode_text.partition("-")
    generator, _colon, iv_hash = generator.partition(":")
    if mode not in MODES or not dash:
        raise QobraError(f"Unexpected cipher mode string format '{mode_text}'")
    if mode != "ecb" and generator not in IV_GENERATORS:
        raise QobraError(f"IV generator '{generator}' is not supported")
    header.mode, header.iv_generator, header.iv_hash = mode, generator or "plain64", iv_hash or None
    if header.iv_hash:
        _require_hash(header.iv_hash)
    length = header.key_length // 2 if mode == "xts" else header.key_length
    header.cipher = f"{cipher}-{length * 8}"
    if KEY_BYTES.get(header.cipher) != length:
        raise QobraError(f"Algorithm '{cipher}' with key size {length} bytes not supported")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("ascii", "replace")


# -- the anti-forensic splitter (specification, section 2.4) --------------------------------------------------------


def _diffuse(block: bytes, name: str) -> bytes:
    size = hashlib.new(name).digest_size
    parts = []
    for number, at in enumerate(range(0, len(block), size)):
        piece = block[at : at + size]
        parts.append(hashlib.new(name, number.to_bytes(4, "big") + piece).digest()[: len(piece)])
    return b"".join(parts)


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).to_bytes(len(left), "little")


def _split(key: bytes, stripes: int, name: str) -> bytes:
    """``key`` spread over ``stripes`` times its length, so that all of it is needed to put it together."""
    length = len(key)
    noise = os.urandom(length * (stripes - 1))
    block = bytes(length)
    for at in range(0, len(noise), length):
        block = _diffuse(_xor(block, noise[at : at + length]), name)
    return noise + _xor(block, key)


def _merge(split: bytes, length: int, stripes: int, name: str) -> bytes:
    """The reverse of :func:`_split`."""
    block = bytes(length)
    for at in range(0, length * (stripes - 1), length):
        block = _diffuse(_xor(block, split[at : at + length]), name)
    return _xor(block, split[length * (stripes - 1) : length * stripes])
