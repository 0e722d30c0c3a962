"""Encrypted images: LUKS and the old AES."""

from __future__ import annotations

import random

import pytest

from qobra.crypto.object.secret import Secret
from qobra.errors import QobraError
from qobra.testing.images import ImageLab

CLUSTER = 65536


def _secret(data):
    secret = Secret.__new__(Secret)
    secret.raw = data
    return secret


@pytest.fixture
def secure(tmp_path):
    secrets = {"s": _secret(b"open sesame"), "t": _secret(b"treasure"), "w": _secret(b"wrong")}
    return ImageLab(tmp_path, lambda id, _type: secrets.get(id))


def _create(lab, **options):
    lab.create("a", encrypt={"format": "luks", "key-secret": "s", "iter-time": 1}, **options)


def _key(id="s"):
    return {"format": "luks", "key-secret": id}


@pytest.mark.parametrize("options", [{}, {"extended_l2": True}, {"cluster_size": 512}, {"data_file": "d"}], ids=str)
def test_random_requests(secure, options):
    size = 8 * CLUSTER
    _create(secure, size=size, **options)
    chosen = random.Random(4)
    model = bytearray(size)
    with secure.open("a", encrypt=_key(), discard="unmap") as disk:
        for _ in range(60):
            offset = chosen.randrange(size - 1)
            length = min(chosen.choice([1, 100, 512, 5000, 70000]), size - offset)
            if chosen.random() < 0.8:
                data = chosen.randbytes(length)
                disk.write(offset, data)
            else:
                data = bytes(length)
                disk.backend.write_zeroes(offset, length, may_unmap=True)
            model[offset : offset + length] = data
            assert disk.read(offset, length) == data
        assert disk.content() == model
        if "data_file" not in options:
            disk.node.snapshot_create("s1")
            disk.write(100, b"changed")
            disk.node.snapshot_apply("s1")
    with secure.open("a", read_only=True, encrypt=_key()) as disk:
        assert disk.content() == model
        result = disk.node.check()
        assert "corruptions" not in result and "leaks" not in result
    for name in ("a", "d") if "data_file" in options else ("a",):
        with open(secure.path(name), "rb") as file:
            raw = file.read()
        assert not any(bytes(model[at : at + 32]) in raw for at in range(0, size, 4096) if any(model[at : at + 32]))


def test_what_is_refused(secure):
    _create(secure, size=CLUSTER)
    for options, text in (
        ({}, "Parameter 'encrypt.key-secret' is required for cipher"),
        ({"encrypt": _key("absent")}, "No secret with id 'absent'"),
        ({"encrypt": _key("w")}, "Invalid password, cannot unlock any keyslot"),
        (
            {"encrypt": {"format": "aes", "key-secret": "s"}},
            "Header reported 'luks' encryption format but options specify 'aes'",
        ),
    ):
        with pytest.raises(QobraError) as error:
            secure.open("a", **options)
        assert str(error.value) == text
    secure.create("plain", size=CLUSTER)
    with pytest.raises(QobraError, match="No encryption in image header, but options specified format 'luks'"):
        secure.open("plain", encrypt=_key())
    refused = pytest.raises(QobraError, match="Compression and encryption not supported at the same time")
    with secure.open("a", encrypt=_key()) as disk, refused:
        disk.node.write_compressed(0, bytes(CLUSTER))


def test_info_needs_no_key(secure):
    _create(secure, size=CLUSTER)
    with secure.open("a", read_only=True, **{"_no-io": True}) as disk:
        info = disk.node.info()
        encrypt = info["format-specific"]["data"]["encrypt"]
        assert info["encrypted"] and encrypt["format"] == "luks" and encrypt["cipher-mode"] == "xts"
        assert [slot["active"] for slot in encrypt["slots"]] == [True] + [False] * 7


def test_key_slots_can_be_changed(secure):
    _create(secure, size=CLUSTER)
    with secure.open("a", encrypt=_key()) as disk:
        disk.write(0, b"treasure")
        amend = disk.node.amend
        with pytest.raises(QobraError, match="Refusing to overwrite active keyslot 0"):
            amend({"encrypt": {"state": "active", "new-secret": "t", "keyslot": 0}})
        with pytest.raises(QobraError, match="Attempt to erase the only active keyslot 0"):
            amend({"encrypt": {"state": "inactive", "keyslot": 0}})
        with pytest.raises(QobraError, match="Given keyslot 3 doesn't contain the given old password"):
            amend({"encrypt": {"state": "inactive", "old-secret": "s", "keyslot": 3}})
        with pytest.raises(QobraError, match="Invalid keyslot -1 specified, must be between 0 and 7"):
            amend({"encrypt": {"state": "inactive", "keyslot": -1}})
        with pytest.raises(QobraError, match="Invalid keyslot 4294967295 specified, must be between 0 and 7"):
            amend({"encrypt": {"state": "active", "new-secret": "t", "keyslot": -1}})
        with pytest.raises(QobraError, match="No secret with id ''"):
            amend({"encrypt": {"state": "active", "new-secret": "t", "secret": ""}})
        amend({"encrypt": {"state": "active", "new-secret": "t", "iter-time": 1}})
        with pytest.raises(QobraError, match="No keyslots match given"):
            amend({"encrypt": {"state": "inactive", "old-secret": "w"}})
        amend({"encrypt": {"state": "inactive", "old-secret": "s"}})
    with pytest.raises(QobraError, match="Invalid password"):
        secure.open("a", encrypt=_key())
    with secure.open("a", read_only=True, encrypt=_key("t")) as disk:
        assert disk.read(0, 8) == b"treasure"


def test_the_old_aes(secure):
    secure.create("a", size=CLUSTER, encrypt={"format": "qcow", "key-secret": "s"})
    with secure.open("a", encrypt={"format": "aes", "key-secret": "s"}) as disk:
        disk.write(1000, b"legacy" * 1000)
        assert disk.read(1000, 6000) == b"legacy" * 1000
        assert disk.node.info()["format-specific"]["data"]["encrypt"] == {"format": "aes"}
