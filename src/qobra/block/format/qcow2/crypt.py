"""Encryption of guest data: LUKS, and the old AES that QEMU keeps for reading what there is."""

from __future__ import annotations

import errno

from qobra.block.format.qcow2 import layout
from qobra.crypto import luks
from qobra.crypto.secret import secret_bytes
from qobra.crypto.sectors import SECTOR, SectorCipher
from qobra.errors import QobraError
from qobra.units import UINT32_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.layer import BlockLayer
    from qobra.block.node import Options

FORMATS = {layout.CRYPT_AES: "aes", layout.CRYPT_LUKS: "luks"}


class Crypt:
    """Encrypts and decrypts guest data; lengths and offsets are multiples of 512."""

    def __init__(self, cipher: SectorCipher, by_host: bool) -> None:
        self._cipher = cipher
        self._by_host = by_host
        """A sector's vector comes from its place in the file (LUKS), not in the disk (AES)."""

    def encrypt(self, guest: int, host: int, data: memoryview) -> bytes:
        """``data`` of guest offset ``guest`` as it is to be stored at ``host``."""
        return self._cipher.encrypt((host if self._by_host else guest) // SECTOR, data)

    def decrypt(self, guest: int, host: int, data: bytes | bytearray) -> bytes:
        """What ``data``, read from ``host`` for guest offset ``guest``, means."""
        return self._cipher.decrypt((host if self._by_host else guest) // SECTOR, data)


def check_format(header_method: int, options: Options) -> None:
    """Refuse ``encrypt`` options of another format than the image's. Raises QobraError in QEMU's words."""
    given = (options.get("encrypt") or {}).get("format")
    found = FORMATS.get(header_method)
    if given is None:
        return
    if found is None:
        raise QobraError(f"No encryption in image header, but options specified format '{given}'", errno=errno.EINVAL)
    if given != found:
        raise QobraError(
            f"Header reported '{found}' encryption format but options specify '{given}'", errno=errno.EINVAL
        )


def open_crypt(node: Qcow2Disk, options: Options) -> Crypt:
    """The cipher of the image's data, with the key that the secret in ``options`` opens."""
    passphrase = _secret(node.layer, options.get("encrypt") or {}, "key-secret")
    if node.header.crypt_method == layout.CRYPT_AES:
        return Crypt(_aes(passphrase), False)
    area = _luks_area(node)
    header = luks.parse_header(area)
    key, _slot = header.unlock(area, passphrase)
    return Crypt(header.sector_cipher(key), True)


def _secret(layer: BlockLayer, encrypt: Options, name: str) -> bytes:
    if encrypt.get(name) is None:
        raise QobraError(f"Parameter 'encrypt.{name}' is required for cipher", errno=errno.EINVAL)
    return secret_bytes(layer.find_object, encrypt[name])


def _aes(passphrase: bytes) -> SectorCipher:
    # The key is the passphrase itself: its first 16 bytes.
    return SectorCipher("aes-128", "cbc", passphrase[:16].ljust(16, b"\0"))


def _luks_area(node: Qcow2Disk) -> bytes:
    """The encryption header with its key material."""
    place = node.header.crypto
    if place is None:
        raise QobraError("Missing CRYPTO header for crypt method 2", errno=errno.EINVAL)
    offset, length = place
    if not luks.HEADER_LENGTH <= length <= luks.MAX_HEADER:
        raise QobraError(f"Encryption header of {length} bytes cannot be", errno=errno.EINVAL)
    return node.image.read_meta(offset, length)


def crypt_info(node: Qcow2Disk) -> dict[str, Any] | None:
    """ImageInfoSpecificQCow2Encryption, None where the image is not encrypted."""
    name = FORMATS.get(node.header.crypt_method)
    if name is None:
        return None
    info: dict[str, Any] = {"format": name}
    if name == "luks":
        info.update(luks.parse_header(_luks_area(node)).info())
    return info


def create_area(layer: BlockLayer, encrypt: Options) -> tuple[int, bytes]:
    """For a new image: the encryption method, and the bytes of its encryption header."""
    passphrase = _secret(layer, encrypt, "key-secret")
    if encrypt["format"] == "luks":
        return layout.CRYPT_LUKS, luks.create_header(encrypt, passphrase)[1]
    return layout.CRYPT_AES, b""


# -- changing key slots ---------------------------------------------------------------------------------------------


def require_luks(node: Qcow2Disk) -> None:
    """Raise QobraError unless the image has key slots."""
    if not node.header.crypt_method:
        raise QobraError("Can't amend encryption options - encryption not present", errno=errno.EINVAL)
    if node.header.crypt_method != layout.CRYPT_LUKS:
        raise QobraError("Only LUKS encryption options can be amended", errno=errno.EINVAL)


def amend_crypt(node: Qcow2Disk, encrypt: Options, *, force: bool = False) -> None:
    """Change key slots as ``encrypt`` (QCryptoBlockAmendOptionsLUKS) says. Raises QobraError in QEMU's words."""
    require_luks(node)
    area = _luks_area(node)
    header = luks.parse_header(area)
    if encrypt.get("state") == "active":
        _add_key(node, header, area, encrypt, force)
    else:
        _erase_keys(node, header, area, encrypt, force)


def _slot_number(encrypt: Options, shown_with: int) -> int | None:
    # A wrong number is told as -1 where keys are erased, as one without a sign where one is added: `shown_with` it.
    number: int | None = encrypt.get("keyslot")
    if number is not None and not 0 <= number < luks.SLOTS:
        raise QobraError(f"Invalid keyslot {number & shown_with} specified, must be between 0 and {luks.SLOTS - 1}")
    return number


def _add_key(node: Qcow2Disk, header: luks.LuksHeader, area: bytes, encrypt: Options, force: bool) -> None:
    if encrypt.get("new-secret") is None:
        raise QobraError("'new-secret' is required to activate a keyslot")
    if encrypt.get("old-secret") is not None:
        raise QobraError("'old-secret' must not be given when activating keyslots")
    number = _slot_number(encrypt, UINT32_MAX)
    if number is None:
        free = [index for index, slot in enumerate(header.slots) if not slot.active]
        if not free:
            raise QobraError("Can't add a keyslot - all keyslots are in use")
        number = free[0]
    elif header.slots[number].active and not force:
        raise QobraError(f"Refusing to overwrite active keyslot {number} - please erase it first")
    known = node.options.get("encrypt") or {}
    current = encrypt.get("secret", known.get("key-secret"))
    key, _slot = header.unlock(area, _secret(node.layer, {"key-secret": current}, "key-secret"))
    fresh = secret_bytes(node.layer.find_object, encrypt["new-secret"])
    material = header.set_slot(number, key, fresh, encrypt.get("iter-time", luks.DEFAULT_ITER_TIME))
    # The material is there before the header says so.
    _write(node, header.slots[number].offset, material)
    _write(node, 0, header.pack())


def _erase_keys(node: Qcow2Disk, header: luks.LuksHeader, area: bytes, encrypt: Options, force: bool) -> None:
    if encrypt.get("new-secret") is not None:
        raise QobraError("'new-secret' must not be given when erasing keyslots")
    if encrypt.get("iter-time") is not None:
        raise QobraError("'iter-time' must not be given when erasing keyslots")
    number, old = _slot_number(encrypt, -1), encrypt.get("old-secret")
    active = [index for index, slot in enumerate(header.slots) if slot.active]
    if old is not None:
        chosen = _matching(header, area, secret_bytes(node.layer.find_object, old), active)
        if number is not None:
            if number not in chosen:
                raise QobraError(f"Given keyslot {number} doesn't contain the given old password for erase operation")
            chosen = [number]
        if not chosen:
            raise QobraError("No keyslots match given (old) password for erase operation")
        if len(chosen) == len(active) and not force:
            raise QobraError(
                "All the active keyslots match the (old) password that was given and erasing them will erase all the "
                "data in the image irreversibly - refusing operation"
            )
    elif number is not None:
        if number not in active:
            raise QobraError(f"Given keyslot {number} is already erased (inactive) ")
        if len(active) == 1 and not force:
            raise QobraError(
                f"Attempt to erase the only active keyslot {number} which will erase all the data in the image "
                "irreversibly - refusing operation"
            )
        chosen = [number]
    else:
        raise QobraError(
            "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be "
            "given"
        )
    import os

    for each in chosen:
        size = header.clear_slot(each)
        # The header first: a slot that is half overwritten must not be tried.
        _write(node, 0, header.pack())
        _write(node, header.slots[each].offset, os.urandom(size))


def _matching(header: luks.LuksHeader, area: bytes, passphrase: bytes, active: list[int]) -> list[int]:
    matching = []
    for number in active:
        probe = luks.parse_header(header.pack())
        for other, slot in enumerate(probe.slots):
            slot.active = other == number
        try:
            probe.unlock(area, passphrase)
        except QobraError:
            continue
        matching.append(number)
    return matching


def _write(node: Qcow2Disk, offset: int, data: bytes) -> None:
    """Write into the encryption header, on stable storage when this returns."""
    assert node.header.crypto is not None
    start, length = node.header.crypto
    if offset + len(data) > length:
        raise QobraError("LUKS key material lies outside the encryption header", errno=errno.EINVAL)
    try:
        node.file.write(start + offset, data)
    except OSError as error:
        raise QobraError.from_os("Could not read encryption header", error)  # in QEMU's words
    node.image.writeback.barrier()
