"""Mounting a FUSE file system: by mount(2) as root, else through the setuid helper fusermount3."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import struct

from qobra.errors import QobraError, strerror

_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_FORCE, _MNT_DETACH = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(mountpoint: str, *, allow_other: bool) -> int:
    """Mount over the file ``mountpoint``; the descriptor on which requests come. Raises QobraError or OSError."""
    mode = os.stat(mountpoint).st_mode
    if not stat.S_ISREG(mode):
        raise QobraError(f"'{mountpoint}' is not a regular file")
    options = "default_permissions" + (",allow_other" if allow_other else "")
    if os.geteuid() == 0:
        return _mount_directly(mountpoint, options)
    return _mount_by_helper(mountpoint, options)


def unmount(mountpoint: str) -> None:
    """Take the file system away. Who has the file open gets errors from now on, or would keep the export for ever."""
    if os.geteuid() == 0:
        _libc.umount2(os.fsencode(mountpoint), _MNT_FORCE | _MNT_DETACH)
    else:
        import subprocess

        number = _connection_number(mountpoint)
        subprocess.run(["fusermount3", "-u", "-z", "-q", mountpoint], check=False)
        if number:
            _abort(number)


def _connection_number(mountpoint: str) -> str:
    """How the kernel calls the connection behind ``mountpoint``; empty if nothing is mounted there."""
    path, number = os.path.realpath(mountpoint), ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            _id, _parent, device, _root, place, *_rest = line.split(" ")
            if _without_escapes(place) == path:
                number = device.partition(":")[2]
    return number


def _without_escapes(text: str) -> str:
    """A path of /proc/self/mountinfo, in which blanks and backslashes are octal numbers."""
    for number in ("040", "011", "012", "134"):
        text = text.replace(f"\\{number}", chr(int(number, 8)))
    return text


def _abort(number: str) -> None:
    # Where the control file system is not mounted, the connection goes with the last who has the file open.
    try:
        fd = os.open(f"/sys/fs/fuse/connections/{number}/abort", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def _mount_directly(mountpoint: str, options: str) -> int:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fd},rootmode={stat.S_IFREG:o},user_id={os.getuid()},group_id={os.getgid()},{options}"
    result = _libc.mount(b"qobra", os.fsencode(mountpoint), b"fuse.qobra", _MS_NOSUID | _MS_NODEV, data.encode())
    if result:
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, os.strerror(number))
    return fd


def _mount_by_helper(mountpoint: str, options: str) -> int:
    import subprocess

    ours, theirs = socket.socketpair()
    with ours, theirs:
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        try:
            result = subprocess.run(
                ["fusermount3", "-o", options, "--", mountpoint],
                env=environment,
                pass_fds=(theirs.fileno(),),
                capture_output=True,
                check=False,
            )
        except OSError as error:
            raise QobraError(f"Could not run fusermount3: {strerror(error)}", errno=error.errno)
        if result.returncode:
            reason = result.stderr.decode(errors="replace").strip()
            raise QobraError(f"Could not mount FUSE session to export: {reason}")
        _data, ancillary, _flags, _address = ours.recvmsg(1, socket.CMSG_SPACE(4))
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fd: int = struct.unpack("i", payload[:4])[0]
                os.set_inheritable(fd, False)
                return fd
    raise QobraError("Could not mount FUSE session to export: fusermount3 passed no descriptor")
