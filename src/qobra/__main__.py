"""``python -m qobra SUBCOMMAND``: the same as the program ``qobra``."""

from __future__ import annotations

import sys

from qobra.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
