"""Character devices in the syntax of programs' options."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.chardev.options import parse, parse_short, split
from qobra.errors import QobraError
from qobra.qapi.contract import contract


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("null,id=c", "null", {}),
        ("backend=null,id=c", "null", {}),
        ("null,id=c,mux=on,logfile=/l,logappend=on", "null", {"logfile": "/l", "logappend": True}),
        (
            "socket,id=c,path=/a,,b,server=on,wait=off",
            "socket",
            {"addr": {"type": "unix", "data": {"path": "/a,b"}}, "server": True, "wait": False},
        ),
        (
            "socket,id=c,path=/a,server,nowait",
            "socket",
            {"addr": {"type": "unix", "data": {"path": "/a"}}, "server": True, "wait": False},
        ),
        (
            "socket,id=c,path=/a,server=on,abstract=on,tight=off",
            "socket",
            {
                "addr": {"type": "unix", "data": {"path": "/a", "abstract": True, "tight": False}},
                "server": True,
                "wait": True,
            },
        ),
        (
            "socket,id=c,host=h,port=1,to=9,ipv4=on,reconnect=5,nodelay=on,tls-creds=t",
            "socket",
            {
                "addr": {"type": "inet", "data": {"host": "h", "port": "1", "to": 9, "ipv4": True}},
                "server": False,
                "nodelay": True,
                "reconnect": 5,
                "tls-creds": "t",
            },
        ),
        ("socket,id=c,fd=7", "socket", {"addr": {"type": "fd", "data": {"str": "7"}}, "server": False}),
        ("file,id=c,path=/f,append=on", "file", {"out": "/f", "append": True}),
        ("pipe,id=c,path=/p", "pipe", {"device": "/p"}),
        ("stdio,id=c,signal=off", "stdio", {"signal": False}),
        ("ringbuf,id=c,size=64k", "ringbuf", {"size": 65536}),
        ("ringbuf,id=c,size=0", "ringbuf", {}),
        ("mux,id=c,chardev=x", "mux", {"chardev": "x"}),
        (
            "udp,id=c,port=1,localport=2",
            "udp",
            {
                "remote": {"type": "inet", "data": {"host": "localhost", "port": "1"}},
                "local": {"type": "inet", "data": {"host": "", "port": "2"}},
            },
        ),
    ],
)
def test_options(text: str, kind: str, data: dict[str, Any]) -> None:
    id, backend = parse(text, named_fds=True)
    assert (id, backend) == ("c", {"type": kind, "data": data})
    contract().check("ChardevBackend", backend)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("null", "chardev: no id specified"),
        ("", "chardev: no id specified"),
        ("null,id=9", "Parameter 'id' expects an identifier"),
        ("foo,id=c", "'foo' is not a valid char driver name"),
        ("null,id=c,x=1", "Invalid parameter 'x'"),
        ("socket,id=c,path=/a,foo=1", "Invalid parameter 'foo'"),
        ("socket,id=c,host=h", "chardev: socket: no port given"),
        ("socket,id=c", "Unable to parse FD number $"),
        ("socket,id=c,port=1", "Unable to parse FD number $"),
        ("socket,id=c,fd=name", "Unable to parse FD number name$"),
        ("socket,id=c,fd=999999", "File descriptor '999999' is not a socket"),
        ("socket,id=c,cid=1,port=1", "Invalid parameter 'cid'"),
        ("socket,id=c,path=/a,host=h,port=1", "None or one of 'path', 'fd' or 'host' option required."),
        ("socket,id=c,path=/a,server=x", "Parameter 'server' expects 'on' or 'off'"),
        ("socket,id=c,path=/a,nodelay=on,delay=on", "'delay' and 'nodelay' are mutually exclusive"),
        ("file,id=c", "chardev: file: no filename given"),
        ("pipe,id=c", "chardev: pipe: no device path given"),
        ("udp,id=c", "chardev: udp: remote port not specified"),
        ("ringbuf,id=c,size=x", "Parameter 'size' expects a number"),
    ],
)
def test_refusals(text: str, error: str) -> None:
    with pytest.raises(QobraError, match=f"^{error}"):
        parse(text)


def test_short_booleans_warn() -> None:
    told: list[str] = []
    assert split("socket,server,nowait,x", "backend", warn=told.append) == {
        "backend": "socket",
        "server": "on",
        "wait": "off",
        "x": "on",
    }
    assert told == [
        "short-form boolean option 'server' deprecated\nPlease use server=on instead",
        "short-form boolean option 'nowait' deprecated\nPlease use wait=off instead",
    ]


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("stdio", "stdio", {}),
        ("null", "null", {}),
        ("pty", "pty", {}),
        ("file:/a:b", "file", {"out": "/a:b"}),
        ("pipe:/p", "pipe", {"device": "/p"}),
        ("/dev/ttyS0", "serial", {"device": "/dev/ttyS0"}),
        (
            "unix:/s,server=on,wait=off",
            "socket",
            {"addr": {"type": "unix", "data": {"path": "/s"}}, "server": True, "wait": False},
        ),
        (
            "tcp:h:1,server=on",
            "socket",
            {"addr": {"type": "inet", "data": {"host": "h", "port": "1"}}, "server": True, "wait": True},
        ),
        (
            "telnet:[::1]:1",
            "socket",
            {"addr": {"type": "inet", "data": {"host": "::1", "port": "1"}}, "server": False, "telnet": True},
        ),
        (
            "udp:h:1@:2",
            "udp",
            {
                "remote": {"type": "inet", "data": {"host": "h", "port": "1"}},
                "local": {"type": "inet", "data": {"host": "", "port": "2"}},
            },
        ),
    ],
)
def test_short_forms(text: str, kind: str, data: dict[str, Any]) -> None:
    assert parse_short(text) == {"type": kind, "data": data}


@pytest.mark.parametrize("text", ["foo", "tcp:x", "spice:1", "udp:1"])
def test_short_forms_refused(text: str) -> None:
    with pytest.raises(QobraError, match="is not a valid char driver"):
        parse_short(text)
