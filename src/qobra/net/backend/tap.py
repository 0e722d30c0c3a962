"""``tap``: an interface of the host's kernel (Linux tun/tap)."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import threading

from qobra.errors import QobraError
from qobra.net.netdev import MAX_PACKET, Netdev, registry

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_NO_SCRIPT = "no"


@registry.register("tap")
class TapNetdev(Netdev):
    """Opens ``ifname`` (or a new interface), or takes the descriptor ``fd``."""

    kind = "tap"

    def start(self) -> None:
        options = self.options
        self._fd = -1
        self._wake_read, self._wake_write = os.pipe()
        self.interface = ""
        if "fd" in options:
            if "ifname" in options or "script" in options or "downscript" in options or "vnet_hdr" in options:
                raise QobraError(
                    "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are "
                    "invalid with fd="
                )
            self._fd = self.machine.fdsets.take_named_or_number(options["fd"])
        else:
            self._open(options.get("ifname", ""))
            self._script(options.get("script", _NO_SCRIPT))
        os.set_blocking(self._fd, False)
        threading.Thread(target=self._read, name=f"net {self.id}", daemon=True).start()

    def _open(self, name: str) -> None:
        try:
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise QobraError.from_os("could not open /dev/net/tun", error)
        request = struct.pack("16sH22x", name.encode()[:15], _IFF_TAP | _IFF_NO_PI)
        try:
            answer = fcntl.ioctl(self._fd, _TUNSETIFF, request)
        except OSError as error:
            if name:
                raise QobraError.from_os(f"could not configure /dev/net/tun ({name})", error)
            raise QobraError.from_os("could not configure /dev/net/tun", error)
        self.interface = answer[:16].rstrip(b"\0").decode()

    def _script(self, path: str) -> None:
        if path and path != _NO_SCRIPT:
            try:
                status = subprocess.run([path, self.interface], check=False).returncode
            except OSError as error:
                raise QobraError.from_os(f"could not launch network script {path}", error)
            if status:
                raise QobraError(f"network script {path} failed with status {status}")

    def close(self) -> None:
        if self._fd >= 0:
            os.write(self._wake_write, b"x")
            self._script_down()

    def _script_down(self) -> None:
        try:
            self._script(self.options.get("downscript", _NO_SCRIPT))
        except QobraError:
            pass  # the interface goes anyhow

    def send(self, packet: bytes) -> None:
        try:
            os.write(self._fd, packet)
        except OSError:
            pass  # a network loses packets

    def _read(self) -> None:
        fd = self._fd
        try:
            while True:
                ready, _, _ = select.select([fd, self._wake_read], [], [])
                if self._wake_read in ready:
                    return
                try:
                    packet = os.read(fd, MAX_PACKET)
                except BlockingIOError:
                    continue
                except OSError:
                    return
                self.deliver(packet)
        finally:
            self._fd = -1
            for each in (fd, self._wake_read, self._wake_write):
                os.close(each)
