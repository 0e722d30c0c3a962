"""File descriptors that clients passed to a machine: by name (getfd), and in sets that paths refer to (add-fd).

``/dev/fdset/N`` opens to a duplicate of the descriptor in the set N whose access mode is the one that is asked for,
so that whoever runs the machine may open files for it and it needs no right to open them itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from typing import Any

from qobra.errors import QobraError

PREFIX = "/dev/fdset/"


class _Member:
    __slots__ = ("fd", "opaque")

    def __init__(self, fd: int, opaque: str | None) -> None:
        self.fd = fd
        self.opaque = opaque


class FdSets:
    """Owns the descriptors that it was given, until they are removed or the machine ends."""

    def __init__(self) -> None:
        self._named: dict[str, int] = {}
        self._sets: dict[int, list[_Member]] = {}
        # Opened from the threads of jobs and exports as well.
        self._lock = threading.Lock()

    # -- names

    def put_named(self, name: str, fd: int) -> None:
        """Keep ``fd`` as ``name``, in place of one that has that name."""
        if name[:1].isdecimal():
            os.close(fd)
            raise QobraError("Parameter 'fdname' expects a name not starting with a digit")
        with self._lock:
            old = self._named.pop(name, None)
            self._named[name] = fd
        if old is not None:
            os.close(old)

    def close_named(self, name: str) -> None:
        """Close the descriptor ``name``."""
        with self._lock:
            fd = self._named.pop(name, None)
        if fd is None:
            raise QobraError(f"File descriptor named '{name}' not found")
        os.close(fd)

    def take_named(self, name: str) -> int:
        """The descriptor ``name``, which is the caller's from now on."""
        with self._lock:
            fd = self._named.pop(name, None)
        if fd is None:
            raise QobraError(f"File descriptor named '{name}' has not been found")
        return fd

    def take_named_or_number(self, name: str) -> int:
        """The descriptor ``name``, or of that number where it is one that the process inherited."""
        if name in self._named or not name.isdecimal():
            return self.take_named(name)
        fd = int(name) if len(name) < 10 else -1
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except (OSError, ValueError):
            raise QobraError(f"File descriptor named '{name}' has not been found")
        return fd

    # -- sets

    def add(self, fd: int, set_id: int | None = None, opaque: str | None = None) -> dict[str, Any]:
        """Put ``fd`` into the set ``set_id``, or into a new one. Returns AddfdInfo."""
        with self._lock:
            if set_id is None:
                set_id = next(number for number in range(len(self._sets) + 1) if number not in self._sets)
            elif set_id < 0:
                os.close(fd)
                raise QobraError("Parameter 'fdset-id' expects a non-negative value")
            self._sets.setdefault(set_id, []).append(_Member(fd, opaque))
            return {"fdset-id": set_id, "fd": fd}

    def remove(self, set_id: int, fd: int | None = None) -> None:
        """Remove and close ``fd``, or all of the set ``set_id``; duplicates that are in use stay open."""
        where = f"fdset-id:{set_id}" + (f", fd:{fd}" if fd is not None else "")
        with self._lock:
            members = self._sets.get(set_id, [])
            removed = [member for member in members if fd in (None, member.fd)]
            if not removed:
                raise QobraError(f"File descriptor named '{where}' not found")
            for member in removed:
                members.remove(member)
                os.close(member.fd)
            if not members:
                del self._sets[set_id]

    def query(self) -> list[dict[str, Any]]:
        """FdsetInfo of every set."""
        result = []
        with self._lock:
            for set_id, members in sorted(self._sets.items(), reverse=True):
                fds = []
                for member in members:
                    info: dict[str, Any] = {"fd": member.fd}
                    if member.opaque is not None:
                        info["opaque"] = member.opaque
                    fds.append(info)
                result.append({"fdset-id": set_id, "fds": fds})
        return result

    def open(self, path: str, flags: int) -> int:
        """A duplicate of the descriptor that ``/dev/fdset/N`` stands for with the access mode of ``flags``.

        Raises OSError (ENOENT: no such set; EACCES: none with that mode), as opening a file does.
        """
        number = path.removeprefix(PREFIX)
        if not path.startswith(PREFIX) or not number.isdecimal() or len(number) > 18:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        with self._lock:
            if int(number) not in self._sets:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            for member in self._sets[int(number)]:
                mode = fcntl.fcntl(member.fd, fcntl.F_GETFL)
                if mode & os.O_ACCMODE == flags & os.O_ACCMODE:
                    duplicate = fcntl.fcntl(member.fd, fcntl.F_DUPFD_CLOEXEC, 3)
                    break
            else:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        # The flags belong to the open file, which the duplicate shares; only those that may change do.
        settable = os.O_APPEND | os.O_NONBLOCK | getattr(os, "O_DIRECT", 0) | getattr(os, "O_NOATIME", 0)
        wanted = mode & ~settable | flags & settable
        creates = os.O_CREAT | os.O_EXCL
        try:
            if wanted != mode:
                fcntl.fcntl(duplicate, fcntl.F_SETFL, wanted)
            # An exclusively created file would be empty.
            if flags & os.O_TRUNC or flags & creates == creates:
                os.ftruncate(duplicate, 0)
        except OSError:
            os.close(duplicate)
            raise
        return duplicate

    def open_image(self, path: str, flags: int) -> int:
        """:meth:`open` for an image file: a QobraError says what failed."""
        try:
            return self.open(path, flags)
        except OSError as error:
            shown = flags & ~os.O_CLOEXEC
            raise QobraError.from_os(f"Could not dup FD for {path} flags {shown:x}", error)

    def close(self) -> None:
        """Close every descriptor that is still owned."""
        with self._lock:
            fds = list(self._named.values())
            fds += [member.fd for members in self._sets.values() for member in members]
            self._named.clear()
            self._sets.clear()
        for fd in fds:
            os.close(fd)
