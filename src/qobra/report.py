"""What a running program has to tell its user outside of any reply: one line on standard error, under its name."""

from __future__ import annotations

import os
import sys


def report_error(text: object) -> None:
    """Print ``PROGRAM: text`` on standard error, after what was printed on standard output."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        pass  # nobody reads it any more
    print(f"{os.path.basename(sys.argv[0]) or 'qobra'}: {text}", file=sys.stderr, flush=True)
