"""All benchmarks, or the named ones (``qmp``, ``nbd``, ...), each with its defaults: ``python -m bench [NAME...]``.

For other sizes and rows run one of them by itself: ``python bench/nbd.py --help``. The exit code is 1 if a goal was
missed, 2 if a peer is not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ALL = ("qmp", "nbd", "jobs", "throttle", "img", "machine")


def main(names: list[str]) -> int:
    """Run the benchmarks called ``names`` one after the other, and return the worst of their exit codes."""
    for name in names:
        if name not in ALL:
            print(f"there is no benchmark called {name}; there are {', '.join(ALL)}", file=sys.stderr)
            return 2
    worst = 0
    for name in names or ALL:
        print(f"== {name}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, os.path.join(HERE, f"{name}.py")], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
