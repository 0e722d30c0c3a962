"""libslirp: a TCP/IP stack that reaches the outside by ordinary sockets; its ``libslirp.h``, version 4, through ctypes.

The library has one lock's worth of state: everything here is called with :attr:`Stack.lock` held, and what it says to
the guest is left in :attr:`Stack.outgoing`, for its owner to pass on once the lock is free again.
"""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_ssize_t, c_uint8, c_uint32, c_void_p
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from qobra.errors import QobraError

POLL_IN, POLL_OUT, POLL_PRI, POLL_ERR, POLL_HUP = 1, 2, 4, 8, 16
_CONFIG_VERSION = 1
"""Which fields of SlirpConfig are looked at: the first ones do, and every 4.x has them."""
_FOREVER = 0xFFFFFFFF
_OUTGOING_MAX = 512
"""Packets that wait for the guest; later ones push the first ones out, which TCP then sends again."""

Write = Callable[[bytes], int]
"""Takes bytes and says how many it took; 0 if it must be asked again later."""


class Config(NamedTuple):
    """What a stack is told of the guest's network; names and texts are as ``SlirpConfig`` has them."""

    restricted: bool = False
    in_enabled: bool = True
    in6_enabled: bool = True
    network: IPv4Address = IPv4Address("10.0.2.0")
    netmask: IPv4Address = IPv4Address("255.255.255.0")
    host: IPv4Address = IPv4Address("10.0.2.2")
    dhcp_start: IPv4Address = IPv4Address("10.0.2.15")
    nameserver: IPv4Address = IPv4Address("10.0.2.3")
    prefix6: IPv6Address = IPv6Address("fec0::")
    prefix6_length: int = 64
    host6: IPv6Address = IPv6Address("fec0::2")
    nameserver6: IPv6Address = IPv6Address("fec0::3")
    hostname: str | None = None
    tftp_server_name: str | None = None
    tftp_path: str | None = None
    bootfile: str | None = None
    dns_search: Sequence[str] = ()
    domainname: str | None = None


class _InAddr(ctypes.Structure):
    _fields_ = (("s_addr", c_uint32),)


class _In6Addr(ctypes.Structure):
    _fields_ = (("s6_addr32", c_uint32 * 4),)


class _SlirpConfig(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32),
        ("restricted", c_int),
        ("in_enabled", c_bool),
        *((name, _InAddr) for name in ("vnetwork", "vnetmask", "vhost")),
        ("in6_enabled", c_bool),
        ("vprefix_addr6", _In6Addr),
        ("vprefix_len", c_uint8),
        ("vhost6", _In6Addr),
        *((name, c_char_p) for name in ("vhostname", "tftp_server_name", "tftp_path", "bootfile")),
        *((name, _InAddr) for name in ("vdhcp_start", "vnameserver")),
        ("vnameserver6", _In6Addr),
        ("vdnssearch", POINTER(c_char_p)),
        ("vdomainname", c_char_p),
        *((name, c_size_t) for name in ("if_mtu", "if_mru")),
        *((name, c_bool) for name in ("disable_host_loopback", "enable_emu")),
        *((name, c_void_p) for name in ("outbound_addr", "outbound_addr6")),
        *((name, c_bool) for name in ("disable_dns", "disable_dhcp")),
    )


_WRITE = ctypes.CFUNCTYPE(c_ssize_t, c_void_p, c_size_t, c_void_p, use_errno=True)
_MESSAGE = ctypes.CFUNCTYPE(None, c_char_p, c_void_p)
_CLOCK = ctypes.CFUNCTYPE(c_int64, c_void_p)
_TIMER_CALL = ctypes.CFUNCTYPE(None, c_void_p)
_TIMER_NEW = ctypes.CFUNCTYPE(c_void_p, _TIMER_CALL, c_void_p, c_void_p)
_TIMER_FREE = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
_TIMER_MOD = ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_void_p)
_DESCRIPTOR = ctypes.CFUNCTYPE(None, c_int, c_void_p)
_NOTIFY = ctypes.CFUNCTYPE(None, c_void_p)
_ADD_POLL = ctypes.CFUNCTYPE(c_int, c_int, c_int, c_void_p)
_GET_EVENTS = ctypes.CFUNCTYPE(c_int, c_int, c_void_p)


class _SlirpCb(ctypes.Structure):
    _fields_ = (
        ("send_packet", _WRITE),
        ("guest_error", _MESSAGE),
        ("clock_get_ns", _CLOCK),
        ("timer_new", _TIMER_NEW),
        ("timer_free", _TIMER_FREE),
        ("timer_mod", _TIMER_MOD),
        ("register_poll_fd", _DESCRIPTOR),
        ("unregister_poll_fd", _DESCRIPTOR),
        ("notify", _NOTIFY),
        ("init_completed", c_void_p),
        ("timer_new_opaque", c_void_p),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "slirp_new": (c_void_p, (POINTER(_SlirpConfig), POINTER(_SlirpCb), c_void_p)),
    "slirp_cleanup": (None, (c_void_p,)),
    "slirp_pollfds_fill": (None, (c_void_p, POINTER(c_uint32), _ADD_POLL, c_void_p)),
    "slirp_pollfds_poll": (None, (c_void_p, c_int, _GET_EVENTS, c_void_p)),
    "slirp_input": (None, (c_void_p, c_char_p, c_int)),
    "slirp_add_hostfwd": (c_int, (c_void_p, c_int, _InAddr, c_int, _InAddr, c_int)),
    "slirp_remove_hostfwd": (c_int, (c_void_p, c_int, _InAddr, c_int)),
    "slirp_add_exec": (c_int, (c_void_p, c_char_p, POINTER(_InAddr), c_int)),
    "slirp_add_guestfwd": (c_int, (c_void_p, _WRITE, c_void_p, POINTER(_InAddr), c_int)),
    "slirp_socket_can_recv": (c_size_t, (c_void_p, _InAddr, c_int)),
    "slirp_socket_recv": (None, (c_void_p, _InAddr, c_int, c_char_p, c_int)),
    "slirp_connection_info": (c_void_p, (c_void_p,)),
}


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libslirp.so.0")
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library


_library = _load()
available = _library is not None
"""Whether the host has the library."""


class Stack:
    """One guest's network. ``notify`` is called where the stack wants :meth:`wanted` to be asked anew.

    Raises QobraError if the library is not there, or refuses ``config``.
    """

    def __init__(self, config: Config, notify: Callable[[], None]) -> None:
        if _library is None:
            raise QobraError("network backend 'user' needs libslirp, which this host does not have")
        self._library = _library
        self.lock = threading.Lock()
        self.outgoing: deque[bytes] = deque(maxlen=_OUTGOING_MAX)
        self._timers: dict[int, tuple[Any, int, int | None]] = {}
        self._last_timer = 0
        self._forwards: list[Any] = []
        self._callbacks = _SlirpCb(
            send_packet=_WRITE(self._send_packet),
            guest_error=_MESSAGE(lambda _text, _opaque: None),
            clock_get_ns=_CLOCK(lambda _opaque: time.monotonic_ns()),
            timer_new=_TIMER_NEW(self._timer_new),
            timer_free=_TIMER_FREE(lambda timer, _opaque: self._timers.pop(timer, None) and None),
            timer_mod=_TIMER_MOD(self._timer_mod),
            register_poll_fd=_DESCRIPTOR(lambda _fd, _opaque: None),
            unregister_poll_fd=_DESCRIPTOR(lambda _fd, _opaque: None),
            notify=_NOTIFY(lambda _opaque: notify()),
        )
        self._config = _structure(config)
        self._stack = self._library.slirp_new(self._config, self._callbacks, None)
        if not self._stack:
            raise QobraError("the user mode network stack refuses its settings")

    # -- what the library calls

    def _send_packet(self, data: int, length: int, _opaque: int | None) -> int:
        self.outgoing.append(ctypes.string_at(data, length))
        return length

    def _timer_new(self, call: Any, argument: int | None, _opaque: int | None) -> int:
        self._last_timer += 1
        # The function pointer belongs to this call alone: keep its address.
        address = ctypes.cast(call, c_void_p).value
        self._timers[self._last_timer] = (_TIMER_CALL(address or 0), argument or 0, None)
        return self._last_timer

    def _timer_mod(self, timer: int, expires_ms: int, _opaque: int | None) -> None:
        call, argument, _before = self._timers[timer]
        self._timers[timer] = (call, argument, expires_ms)

    # -- turns of the loop

    def wanted(self) -> tuple[list[tuple[int, int]], int | None]:
        """Which descriptors to wait for (with POLL_* bits), and how many milliseconds at most; None is for ever."""
        waits = [at - _now_ms() for _call, _argument, at in self._timers.values() if at is not None]
        timeout = c_uint32(min((max(wait, 0) for wait in waits), default=_FOREVER))
        polled: list[tuple[int, int]] = []

        def add(fd: int, events: int, _opaque: int | None) -> int:
            polled.append((fd, events))
            return len(polled) - 1

        self._library.slirp_pollfds_fill(self._stack, timeout, _ADD_POLL(add), None)
        return polled, None if timeout.value == _FOREVER else timeout.value

    def turn(self, events: Sequence[int]) -> None:
        """Serve what became ready: the events of each descriptor that :meth:`wanted` named, in its order."""
        for timer, (call, argument, at) in tuple(self._timers.items()):
            if at is not None and at <= _now_ms():
                self._timers[timer] = (call, argument, None)
                call(argument or None)
        ready = _GET_EVENTS(lambda index, _opaque: events[index] if 0 <= index < len(events) else 0)
        self._library.slirp_pollfds_poll(self._stack, 0, ready, None)

    def input(self, packet: bytes) -> None:
        """A packet of the guest's."""
        self._library.slirp_input(self._stack, packet, len(packet))

    def close(self) -> None:
        """End every connection and forwarding."""
        if self._stack:
            self._library.slirp_cleanup(self._stack)
        self._stack = None

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return not self._stack

    # -- forwarding

    def add_host_forward(
        self, udp: bool, host: IPv4Address, host_port: int, guest: IPv4Address, guest_port: int
    ) -> bool:
        """Pass connections to a port of the host's on to the guest; False if that port cannot be had."""
        result = self._library.slirp_add_hostfwd(
            self._stack, udp, _in_addr(host), host_port, _in_addr(guest), guest_port
        )
        return not result

    def remove_host_forward(self, udp: bool, host: IPv4Address, port: int) -> bool:
        """Stop listening at that port; False if nobody did."""
        return not self._library.slirp_remove_hostfwd(self._stack, udp, _in_addr(host), port)

    def add_command(self, command: str, address: IPv4Address, port: int) -> bool:
        """Have a command serve each connection of the guest's to ``address``; False where the address is not free."""
        return not self._library.slirp_add_exec(self._stack, command.encode(), _in_addr(address), port)

    def add_guest_forward(self, write: Write, address: IPv4Address, port: int) -> bool:
        """Give ``write`` what the guest sends to ``address``; False where the address is not free.

        ``write`` is called with the lock held.
        """

        def call(data: int, length: int, _opaque: int | None) -> int:
            count = write(ctypes.string_at(data, length))
            if count == 0:
                ctypes.set_errno(errno.EAGAIN)
            return count or -1

        kept = _WRITE(call)
        self._forwards.append(kept)
        return not self._library.slirp_add_guestfwd(self._stack, kept, None, _in_addr(address), port)

    def room(self, address: IPv4Address, port: int) -> int:
        """How many bytes :meth:`answer` would take from a guest forward."""
        count: int = self._library.slirp_socket_can_recv(self._stack, _in_addr(address), port) if self._stack else 0
        return count

    def answer(self, address: IPv4Address, port: int, data: bytes) -> None:
        """Send the guest ``data`` on the connection to a guest forward."""
        if self._stack:
            self._library.slirp_socket_recv(self._stack, _in_addr(address), port, data, len(data))

    def connections(self) -> str:
        """The library's table of connections, for people."""
        text = self._library.slirp_connection_info(self._stack)
        shown = ctypes.string_at(text).decode("utf-8", "replace")
        _free(text)
        return shown


def _free(address: int) -> None:
    free = ctypes.CDLL(None).free  # what GLib's memory comes from
    free.argtypes, free.restype = (c_void_p,), None
    free(address)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _in_addr(address: IPv4Address) -> _InAddr:
    return _InAddr.from_buffer_copy(address.packed)


def _in6_addr(address: IPv6Address) -> _In6Addr:
    return _In6Addr.from_buffer_copy(address.packed)


def _text(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _structure(config: Config) -> _SlirpConfig:
    search = [name.encode() for name in config.dns_search]
    return _SlirpConfig(
        version=_CONFIG_VERSION,
        restricted=config.restricted,
        in_enabled=config.in_enabled,
        vnetwork=_in_addr(config.network),
        vnetmask=_in_addr(config.netmask),
        vhost=_in_addr(config.host),
        in6_enabled=config.in6_enabled,
        vprefix_addr6=_in6_addr(config.prefix6),
        vprefix_len=config.prefix6_length,
        vhost6=_in6_addr(config.host6),
        vhostname=_text(config.hostname),
        tftp_server_name=_text(config.tftp_server_name),
        tftp_path=_text(config.tftp_path),
        bootfile=_text(config.bootfile),
        vdhcp_start=_in_addr(config.dhcp_start),
        vnameserver=_in_addr(config.nameserver),
        vnameserver6=_in6_addr(config.nameserver6),
        vdnssearch=(c_char_p * (len(search) + 1))(*search, None) if search else None,
        vdomainname=_text(config.domainname),
    )
