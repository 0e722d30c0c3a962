"""The handlers of QMP commands: unpack the arguments, call the machine, pack the result; no logic of their own.

One module per subject. Importing a module registers its commands (:mod:`qobra.qmp.registry`) and HMP commands.
"""

from __future__ import annotations

from qobra.registry import modules


def load_all() -> None:
    """Import every module of this package."""
    for name in modules(__name__):
        __import__(f"{__name__}.{name}")
