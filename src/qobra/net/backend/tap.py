"""``tap``: an interface of the host's kernel (Linux tun/tap)."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import threading

from qobra.errors import QobraError
from qobra.net.bridge_helper import DEFAULT_BRIDGE, interface
from qobra.net.netdev import MAX_PACKET, Netdev, registry
from qobra.units import INT32_MAX, NotANumber, OutOfRange, not_a_size, parse_size

_TUNSETIFF, _TUNSETSNDBUF, _TUNGETIFF, _TUNGETVNETHDRSZ = 0x400454CA, 0x400454D4, 0x800454D2, 0x800454D7
_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
_REQUEST = struct.Struct("16sH22x")
_MAX_QUEUES = 1024
_UP_SCRIPT, _DOWN_SCRIPT = "/etc/qemu-ifup", "/etc/qemu-ifdown"
_NO_SCRIPT = "no"

# What cannot be set for an interface that comes from elsewhere.
_EXCLUDED = {
    "fd": ("ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "fds", "vhostfds"),
    "fds": ("ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "vhostfd"),
    "helper": ("ifname", "script", "downscript", "vnet_hdr", "queues", "vhostfds"),
}


@registry.register("tap")
class TapNetdev(Netdev):
    """Opens ``ifname`` (or a new interface), takes the descriptors ``fd`` or ``fds``, or has a ``helper`` make one.

    Of an interface with several queues all are read, as the kernel spreads what comes in over them.
    """

    kind = "tap"

    def start(self) -> None:
        options = self.options
        given = next((key for key in _EXCLUDED if key in options), None)
        if given is not None and any(key in options for key in _EXCLUDED[given]):
            *names, last = (f"{key}=" for key in _EXCLUDED[given])
            raise QobraError(f"{', '.join(names)}, and {last} are invalid with {given}=")
        if given == "fd":
            self._use([self.machine.fdsets.take_named_or_number(options["fd"])])
        elif given == "fds":
            self._use([self.machine.fdsets.take_named_or_number(name) for name in options["fds"].split(":")])
        elif given == "helper":
            self._use([interface(options["helper"], options.get("br", DEFAULT_BRIDGE))])
        else:
            self._make()

    def _make(self) -> None:
        queues = self.options.get("queues", 1)
        if not 1 <= queues <= _MAX_QUEUES:
            raise QobraError(f"queues= must be between 1 and {_MAX_QUEUES}")
        name, fds = self.options.get("ifname", ""), []
        try:
            for _ in range(queues):
                fds.append(_open(name, several=queues > 1, with_header=self.options.get("vnet_hdr", False)))
                name = _interface(fds[0])[0]
            _script(self.options.get("script", _UP_SCRIPT if os.path.exists(_UP_SCRIPT) else _NO_SCRIPT), name)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        self._use(fds)

    def _use(self, fds: list[int]) -> None:
        self.interface, flags = _interface(fds[0])
        self._header = _header_length(fds[0]) if flags & _IFF_VNET_HDR else 0
        """Bytes before each packet, which say what the other side need not do: nothing."""
        if "sndbuf" in self.options:
            try:
                wanted = min(parse_size(self.options["sndbuf"]), INT32_MAX)
                fcntl.ioctl(fds[0], _TUNSETSNDBUF, struct.pack("i", wanted or INT32_MAX))
            except (NotANumber, OutOfRange):
                raise not_a_size("sndbuf")
            except OSError as error:
                raise QobraError.from_os("TUNSETSNDBUF ioctl failed", error)
        self._fds = fds
        self._wake_read, self._wake_write = os.pipe()
        for fd in fds:
            os.set_blocking(fd, False)
        threading.Thread(target=self._read, name=f"net {self.id}", daemon=True).start()

    def describe(self) -> str:
        options = self.options
        if "helper" in options:
            return f"tap,helper={options['helper']}"
        if "fd" in options or "fds" in options:
            return f"tap,fd={self._fds[0]}"
        scripts = {"script": _UP_SCRIPT, "downscript": _DOWN_SCRIPT}
        return f"tap,ifname={self.interface}," + ",".join(f"{key}={options.get(key, scripts[key])}" for key in scripts)

    def close(self) -> None:
        if not getattr(self, "_fds", None):
            return
        os.write(self._wake_write, b"x")
        if self.options.keys().isdisjoint(_EXCLUDED) and self.kind == "tap":
            down = self.options.get("downscript", _DOWN_SCRIPT if os.path.exists(_DOWN_SCRIPT) else _NO_SCRIPT)
            try:
                _script(down, self.interface)
            except QobraError:
                pass  # the interface goes anyhow

    def send(self, packet: bytes) -> None:
        try:
            os.write(self._fds[0], bytes(self._header) + packet)
        except (OSError, IndexError):
            pass  # a network loses packets

    def _read(self) -> None:
        fds, header = self._fds, self._header
        poll = select.poll()
        for fd in (*fds, self._wake_read):
            poll.register(fd, select.POLLIN)
        try:
            while True:
                ready = [fd for fd, _events in poll.poll()]
                if self._wake_read in ready:
                    return
                for fd in ready:
                    try:
                        packet = os.read(fd, header + MAX_PACKET)
                    except BlockingIOError:
                        continue
                    except OSError:
                        return
                    self.deliver(packet[header:])
        finally:
            self._fds = []
            for each in (*fds, self._wake_read, self._wake_write):
                os.close(each)


def _open(name: str, *, several: bool, with_header: bool) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise QobraError.from_os("could not open /dev/net/tun", error)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_MULTI_QUEUE * several | _IFF_VNET_HDR * with_header
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(name.encode()[:15], flags))
    except OSError as error:
        os.close(fd)
        shown = f"could not configure /dev/net/tun ({name})" if name else "could not configure /dev/net/tun"
        raise QobraError.from_os(shown, error)
    return fd


def _interface(fd: int) -> tuple[str, int]:
    """The name and the flags of the interface behind ``fd``; nothing where it is no interface."""
    try:
        name, flags = _REQUEST.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_REQUEST.size)))
    except OSError:
        return "", 0
    return name.rstrip(b"\0").decode("utf-8", "replace"), flags


def _header_length(fd: int) -> int:
    length: int = struct.unpack("i", fcntl.ioctl(fd, _TUNGETVNETHDRSZ, bytes(4)))[0]
    return length


def _script(path: str, interface: str) -> None:
    if path and path != _NO_SCRIPT:
        try:
            status = subprocess.run([path, interface], check=False).returncode
        except OSError as error:
            raise QobraError.from_os(f"could not launch network script {path}", error)
        if status:
            raise QobraError(f"network script {path} failed with status {status}")
