"""NBD URIs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.nbd import uri


@pytest.mark.parametrize(
    ("text", "address", "export", "tls"),
    [
        ("nbd://example.com", {"type": "inet", "host": "example.com", "port": "10809"}, "", False),
        ("nbd://example.com/", {"type": "inet", "host": "example.com", "port": "10809"}, "", False),
        ("nbd://h:99/a/b%20c", {"type": "inet", "host": "h", "port": "99"}, "a/b c", False),
        ("nbd://[::1]:5/x", {"type": "inet", "host": "::1", "port": "5"}, "x", False),
        ("nbd:///x", {"type": "inet", "host": "localhost", "port": "10809"}, "x", False),
        ("nbds://h/x", {"type": "inet", "host": "h", "port": "10809"}, "x", True),
        ("NBD+UNIX:///x?socket=/tmp/s%3F", {"type": "unix", "path": "/tmp/s?"}, "x", False),
        ("nbd+unix://?socket=s", {"type": "unix", "path": "s"}, "", False),
        ("nbds+unix:////x?socket=/s", {"type": "unix", "path": "/s"}, "/x", True),
        ("nbd+vsock://2:6/x", {"type": "vsock", "cid": "2", "port": "6"}, "x", False),
    ],
)
def test_parse(text: str, address: dict[str, str], export: str, tls: bool) -> None:
    parsed = uri.parse(text)
    assert (parsed.address, parsed.export, parsed.tls) == (address, export, tls)


def test_tls_parameters() -> None:
    parsed = uri.parse("nbds://alice@h/x?tls-psk-file=/keys&tls-hostname=other&unknown=1")
    assert parsed.parameters == {"tls-psk-file": "/keys", "tls-hostname": "other", "tls-username": "alice"}


@pytest.mark.parametrize(
    "text",
    [
        "http://h/x",
        "nbd",
        "nbd+unix:///x",
        "nbd+unix:///x?socket=a&socket=b",
        "nbd+unix://h/x?socket=a",
        "nbd://h/x?socket=a",
        "nbd://h:70000/x",
        "nbd://[::1/x",
        "nbd+vsock://host/x",
        "nbd://h/" + "x" * 5000,
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(QobraError, match="Invalid NBD URI"):
        uri.parse(text)


@given(
    st.one_of(
        st.builds(lambda p: {"type": "unix", "path": p}, st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
        st.builds(lambda n: {"type": "inet", "host": "::1", "port": str(n)}, st.integers(1, 65535)),
        st.builds(lambda n: {"type": "vsock", "cid": str(n), "port": "7"}, st.integers(0, 1 << 32)),
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=100),
    st.booleans(),
)
def test_build_is_the_inverse(address: dict[str, str], export: str, tls: bool) -> None:
    parsed = uri.parse(uri.build(address, export, tls=tls))
    assert (parsed.address, parsed.export, parsed.tls) == (address, export, tls)


@given(st.text(max_size=200))
def test_garbage_is_refused_or_parsed(text: str) -> None:
    for candidate in (text, "nbd:" + text, "nbd+unix://" + text):
        try:
            uri.parse(candidate)
        except QobraError:
            pass
