"""``-runas``: go on as another user."""

from __future__ import annotations

import os
import pwd

from qobra.errors import QobraError


def become(text: str) -> None:
    """Become the user of that name, or ``UID:GID``, for good. Raises QobraError."""
    try:
        entry = pwd.getpwnam(text)
        uid, gid, name = entry.pw_uid, entry.pw_gid, text
    except KeyError:
        first, colon, second = text.partition(":")
        if not (colon and first.isdigit() and second.isdigit()):
            raise QobraError(f'-runas {text}: User "{text}" doesn\'t exist (and is not <uid>:<gid>)')
        uid, gid, name = int(first), int(second), ""
    try:
        os.setgid(gid)
        if name:
            os.initgroups(name, gid)
        else:
            os.setgroups([gid])
        os.setuid(uid)
    except OSError as error:
        raise QobraError.from_os(f"-runas {text}: Failed to change user", error)
