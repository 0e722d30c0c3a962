"""The user's objects: what create, delete and resolve accept and refuse, in QEMU's words."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qobra.crypto.secret import secret_bytes
from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.machine.machine import Machine


@pytest.fixture
def machine() -> Any:
    machine = Machine()
    yield machine
    machine.close()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("type_name", "id", "props", "text"),
    [
        ("secret", "1s", {"data": "a"}, "Parameter 'id' expects an identifier"),
        ("secret", "", {"data": "a"}, "Parameter 'id' expects an identifier"),
        ("nonesuch", "s", {}, "invalid object type: nonesuch"),
        ("secret", "s", {}, "Either 'file' or 'data' must be provided"),
        ("secret", "s", {"data": "a", "file": "b"}, "'file' and 'data' are mutually exclusive"),
        ("secret", "s", {"data": "a-b!", "format": "base64"}, "Base64 data contains invalid characters"),
        ("secret", "s", {"data": "a b=", "format": "base64"}, "Base64 data contains invalid characters"),
        ("secret", "s", {"data": "abc", "format": "base64"}, "Base64 data is not valid"),
        ("secret", "s", {"data": "ab=c", "format": "base64"}, "Base64 data is not valid"),
        ("secret", "s", {"data": "a", "keyid": "x"}, "No secret with id 'x'"),
        ("secret", "s", {"data": "a", "loaded": True}, "Property 'secret.loaded' is not writable"),
        ("secret", "s", {"data": 1}, "Invalid parameter type for 'data', expected: string"),
        ("secret", "s", {"bogus": 1}, "Property 'secret.bogus' not found"),
        ("iothread", "t", {"poll-max-ns": -1}, "poll-max-ns value must be in range [0, 9223372036854775807]"),
        (
            "iothread",
            "t",
            {"thread-pool-min": 9, "thread-pool-max": 3},
            "bad thread-pool-min/thread-pool-max values",
        ),
        ("secret", "taken", {"data": "a"}, "attempt to add duplicate property 'taken' to object (type 'container')"),
    ],
)
def test_create_refuses_and_leaves_nothing(
    machine: Machine, type_name: str, id: str, props: dict[str, Any], text: str
) -> None:
    taken = machine.objects.create("secret", "taken", {"data": "x"})
    with pytest.raises(QobraError) as caught:
        machine.objects.create(type_name, id, props)
    assert caught.value.desc == text
    assert machine.objects.objects.children == {"taken": taken}


def test_secret_decrypts_with_another_secret(machine: Machine) -> None:
    key, iv = bytes(range(32)), bytes(range(16))
    machine.objects.create("secret", "key", {"data": _b64(key), "format": "base64"})
    plain = b"open sesame"
    padded = plain + bytes([5] * 5)
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    props = {"data": _b64(encryptor.update(padded)), "format": "base64", "keyid": "key", "iv": _b64(iv)}
    machine.objects.create("secret", "s", props)
    assert secret_bytes(machine.objects.find, "s") == plain
    with pytest.raises(QobraError, match="IV should be 16 bytes in length not 3"):
        machine.objects.create("secret", "t", props | {"iv": _b64(b"abc")})
    with pytest.raises(QobraError, match="Length 3 must be a multiple of block size 16"):
        machine.objects.create("secret", "t", props | {"data": _b64(b"abc")})


def test_an_object_in_use_stays(machine: Machine) -> None:
    iothread = machine.objects.create("iothread", "t", {})
    iothread.in_use += 1
    with pytest.raises(QobraError, match="object 't' is in use, can not be deleted"):
        machine.objects.delete("t")
    iothread.in_use -= 1
    machine.objects.delete("t")
    with pytest.raises(QobraError, match="object 't' not found"):
        machine.objects.delete("t")


def test_find_takes_a_base_type(machine: Machine) -> None:
    secret = machine.objects.create("secret", "s", {"data": "a"})
    assert machine.objects.find("s", "secret_common") is secret
    assert machine.objects.find("s", "iothread") is None


def test_paths_absolute_relative_and_ambiguous(machine: Machine) -> None:
    secret = machine.objects.create("secret", "s", {"data": "a"})
    assert machine.objects.resolve("/objects/s") is machine.objects.resolve("s") is secret
    assert secret.path() == "/objects/s"
    machine.objects.container("backend").add_child("s", machine.objects.create("secret", "t", {"data": "a"}))
    for path in ("s", ""):  # the empty path ends every path
        with pytest.raises(QobraError, match=f"Path '{path}' is ambiguous"):
            machine.objects.resolve(path, tells_ambiguous=True)
        with pytest.raises(QobraError, match=f"Device '{path}' not found"):
            machine.objects.resolve(path)
    with pytest.raises(QobraError) as caught:
        machine.objects.resolve("/x/y")
    assert (caught.value.desc, caught.value.error_class) == ("Device '/x/y' not found", DEVICE_NOT_FOUND)


def test_option_text_is_converted(machine: Machine) -> None:
    iothread = machine.objects.create("iothread", "t", {"poll-max-ns": "0x10"}, keyval=True)
    assert iothread.get("poll-max-ns") == 16
    with pytest.raises(QobraError, match="Parameter 'poll-max-ns' expects integer"):
        machine.objects.create("iothread", "u", {"poll-max-ns": "ten"}, keyval=True)


def test_numbers_beyond_64_bits_with_sign_are_of_the_wrong_type(machine: Machine) -> None:
    with pytest.raises(QobraError, match="Invalid parameter type for 'poll-max-ns', expected: integer"):
        machine.objects.create("iothread", "t", {"poll-max-ns": 1 << 63})


def test_iothread_runs_what_it_is_given_in_order(machine: Machine) -> None:
    iothread = machine.objects.create("iothread", "t", {})
    seen: list[int] = []
    for i in range(100):
        iothread.run(lambda i=i: seen.append(i))
    machine.objects.delete("t")
    assert seen == list(range(100))
    assert iothread.thread_id > 0


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"policy": "allow"}, "Parameter 'rules{}.match' is missing"),
        ({"match": "x", "policy": "allow", "zz": "1"}, "Parameter 'rules{}.zz' is unexpected"),
        ("x", "Invalid parameter type for 'rules{}', expected: object"),
    ],
)
@pytest.mark.parametrize("keyval", [False, True])
def test_rules_are_named_as_they_were_given(machine: Machine, rule: Any, text: str, keyval: bool) -> None:
    fine = {"match": "y", "policy": "deny"}
    with pytest.raises(QobraError) as caught:
        machine.objects.create("authz-list", "l", {"rules": [fine, rule]}, keyval=keyval)
    assert str(caught.value) == text.format(".1" if keyval else "[1]")


def test_base64_in_lines(machine: Machine) -> None:
    machine.objects.create("secret", "s", {"data": "b3Bl\n\tbg==\r\n", "format": "base64"})
    assert secret_bytes(machine.objects.find, "s") == b"open"


def test_authz_rules_first_match_decides(machine: Machine, tmp_path: Any) -> None:
    rules = [
        {"match": "fred", "policy": "deny"},
        {"match": "fr*", "policy": "allow", "format": "glob"},
    ]
    listed = machine.objects.create("authz-list", "l", {"rules": rules})
    assert [listed.is_allowed(who) for who in ("fred", "frank", "bob")] == [False, True, False]
    acl = tmp_path / "acl"
    acl.write_text('{"policy": "allow", "rules": [{"match": "bob", "policy": "deny"}]}')
    filed = machine.objects.create("authz-listfile", "f", {"filename": str(acl)})
    assert [filed.is_allowed(who) for who in ("fred", "bob")] == [True, False]
    acl.write_text('{"policy": "deny"}')
    assert not filed.is_allowed("fred")
    acl.write_text("{broken")
    assert not filed.is_allowed("fred")
    with pytest.raises(QobraError, match="JSON parse error"):
        machine.objects.create("authz-listfile", "g", {"filename": str(acl)})
    assert machine.objects.create("authz-simple", "s", {"identity": "fred"}).is_allowed("fred")
