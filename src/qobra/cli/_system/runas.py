"""``-runas``: go on as another user."""

from __future__ import annotations

import os
import pwd

from qobra.errors import QobraError
from qobra.units import decimal


def become(text: str) -> None:
    """Become the user of that name, or ``UID:GID``, for good. Raises QobraError."""
    try:
        entry = pwd.getpwnam(text)
        uid, gid, name = entry.pw_uid, entry.pw_gid, text
    except KeyError:
        user, _colon, group = text.partition(":")
        first, second = decimal(user), decimal(group)
        if first is None or second is None:
            raise QobraError(f'-runas {text}: User "{text}" doesn\'t exist (and is not <uid>:<gid>)')
        uid, gid, name = first, second, ""
    try:
        os.setgid(gid)
        if name:
            os.initgroups(name, gid)
        else:
            os.setgroups([gid])
        os.setuid(uid)
    except OverflowError:
        raise QobraError(f"-runas {text}: Failed to change user: there is no such number")
    except OSError as error:
        raise QobraError.from_os(f"-runas {text}: Failed to change user", error)
