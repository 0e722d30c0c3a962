"""Interfaces that a helper makes, which may do so where we may not: it hands the descriptor over a socket."""

from __future__ import annotations

import os
import socket
import subprocess

from qobra.errors import QobraError

DEFAULT_HELPER = "/usr/lib/qemu/qemu-bridge-helper"
DEFAULT_BRIDGE = "br0"


def interface(helper: str, bridge: str) -> int:
    """The descriptor of a new interface on ``bridge``, from ``helper``, a program or a line. Raises QobraError."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = [f"--fd={theirs.fileno()}", f"--br={bridge}"]
        if any(character.isspace() for character in helper):
            own = options[:1] if "--br=" in helper else options
            command = ["/bin/sh", "-c", " ".join([helper, *own])]
        else:
            command = [helper, *options]
        try:
            status = subprocess.run(command, pass_fds=[theirs.fileno()], check=False).returncode
        except OSError as error:
            raise QobraError.from_os("failed to launch bridge helper", error)
        theirs.close()
        _data, fds, _flags, _peer = socket.recv_fds(ours, 1, 1)
    if status or not fds:
        for fd in fds:
            os.close(fd)
        raise QobraError("bridge helper failed")
    return fds[0]
