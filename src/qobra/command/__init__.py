"""The handlers of QMP commands: unpack the arguments, call the machine, pack the result; no logic of their own.

One module per subject. Importing a module registers its commands (:mod:`qobra.qmp.registry`) and HMP commands.
"""

from __future__ import annotations

import importlib
import os


def load_all() -> None:
    """Import every module of this package."""
    for entry in sorted(os.listdir(os.path.dirname(__file__))):
        if entry.endswith(".py") and not entry.startswith("_"):
            importlib.import_module(f"{__name__}.{entry[:-3]}")
