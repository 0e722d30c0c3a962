"""The handlers of QMP commands: unpack the arguments, call the machine, pack the result; no logic of their own.

One module per subject. Importing a module registers its commands (:mod:`qobra.qmp.registry`) and HMP commands.
"""

from __future__ import annotations

from qobra.registry import modules


def load(name: str) -> bool:
    """Import the module that serves the command ``name``; whether it is known.

    All of them take fifty times as long, and a client that has just been greeted waits for the first.
    """
    from qobra.command._index import COMMANDS

    if name not in COMMANDS:
        return False
    __import__(f"{__name__}.{COMMANDS[name][0]}")
    return True


def needs() -> dict[str, str | None]:
    """What each command needs of a machine, by the command's name; see :func:`qobra.qmp.registry.command`."""
    from qobra.command._index import COMMANDS

    return {name: need for name, (_module, need) in COMMANDS.items()}


def load_all() -> None:
    """Import every module of this package."""
    for name in modules(__name__):
        __import__(f"{__name__}.{name}")
