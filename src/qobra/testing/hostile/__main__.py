"""``python -m qobra.testing.hostile``: see the package."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

from qobra.testing.hostile.target import PLACES, Target, devices, draw


def main() -> int:
    """Attack devices in turn until the time or the seeds are used up; 1 if something went wrong."""
    parser = argparse.ArgumentParser(description="Random attacks of a guest on every device.")
    parser.add_argument("--device", action="append", help="this one only (can be repeated)")
    parser.add_argument("--seed", type=int, default=1, help="the first round of each device")
    parser.add_argument("--count", type=int, help="rounds of each device (default: until the time is over)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--length", type=int, default=200, help="accesses in a round")
    parser.add_argument("--state", type=Path, help="a file that says how far each device came")
    arguments = parser.parse_args()
    names = arguments.device or devices()
    if unknown := set(names).difference(devices()):
        parser.error(f"there is no device {', '.join(sorted(unknown))}")
    done: dict[str, int] = {}
    if arguments.state is not None and arguments.state.exists():
        done = json.loads(arguments.state.read_text())
    deadline = time.monotonic() + arguments.seconds
    rounds = failures = 0
    last = None if arguments.count is None else arguments.seed + arguments.count
    while time.monotonic() < deadline:
        # Who came least far is next, so that slices of time reach all.
        name = min(names, key=lambda each: done.get(each, arguments.seed))
        seed = done.get(name, arguments.seed)
        if last is not None and seed >= last:
            break
        done[name] = seed + 1
        rounds += 1
        if text := play(name, seed, arguments.length):
            failures += 1
            print(f"== {name}, seed {seed}\n{text}", flush=True)
        if arguments.state is not None:
            arguments.state.write_text(json.dumps(done))
    print(f"{rounds} rounds, {failures} went wrong; next seed {min(done.get(each, arguments.seed) for each in names)}")
    return int(failures > 0)


def play(name: str, seed: int, length: int) -> str:
    """One round; what went wrong, or nothing."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), tempfile.TemporaryDirectory(prefix="qh") as directory:
        try:
            target = Target(name, Path(directory), tuple(PLACES)[seed % len(PLACES)])
            try:
                target.attack(seed, draw(seed, length))
            finally:
                target.close()
        except Exception:
            traceback.print_exc()
    text = said.getvalue()
    return text if "Traceback" in text else ""


if __name__ == "__main__":
    sys.exit(main())
