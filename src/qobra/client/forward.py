"""A socket on another host, reached through the ssh program."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time

from qobra.client.address import SshAddress, UnixAddress
from qobra.client.errors import ConnectError


class SshForward:
    """An ``ssh -L`` that makes the remote socket one of this host's, at :attr:`path`, until :meth:`close`."""

    def __init__(self, address: SshAddress, timeout: float) -> None:
        self._address = address
        self._directory = tempfile.mkdtemp(prefix="qobra-ssh-")
        self.path = os.path.join(self._directory, "qmp")
        target = address.target
        remote = target.path if isinstance(target, UnixAddress) else str(target).removeprefix("tcp:")
        command = ["ssh", "-N", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"]
        if address.port is not None:
            command += ["-p", str(address.port)]
        command += ["-L", f"{self.path}:{remote}", "--", address.destination]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        except OSError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise ConnectError.from_os("ssh", error) from None
        try:
            self._wait(timeout)
        except BaseException:
            self.close()
            raise

    def connect(self) -> socket.socket:
        """A new connection through the forward."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self.path)
        except OSError as error:
            connection.close()
            raise ConnectError.from_os(str(self._address), error) from None
        return connection

    def close(self) -> None:
        """End ssh; connections through it break."""
        self._process.terminate()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not os.path.exists(self.path):
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                reason = self._process.stderr.read().decode(errors="replace").strip()
                raise ConnectError(f"{self._address}: {reason or 'ssh ended'}")
            if time.monotonic() > deadline:
                raise ConnectError(f"{self._address}: ssh did not connect within {timeout:g} seconds")
            time.sleep(0.02)
