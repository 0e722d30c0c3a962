"""``python -m qobra.testing.fuzz``: see the package."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from qobra.testing.differential import limit_descriptors
from qobra.testing.fuzz import play
from qobra.testing.fuzz.cases import CASES
from qobra.testing.fuzz.pair import all_members
from qobra.testing.fuzz.trial import Trial


def main() -> int:
    """Play scripts from seed to seed; 1 if there was a difference."""
    parser = argparse.ArgumentParser(description="Random QMP scripts to QEMU and to Qobra.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--length", type=int, default=25)
    parser.add_argument("--server", choices=("storage", "none", "pc"), default="storage")
    parser.add_argument("--script", help="play this file, a JSON list of steps, instead")
    parser.add_argument(
        "--members", metavar="TEXT", help="each member in turn of the cases that have this text instead"
    )
    parser.add_argument("--stride", type=int, default=1, help="with --members: every so manyth form only")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--known", help="a file of kinds of differences that are not told again; new ones are added")
    arguments = parser.parse_args()
    limit_descriptors()
    with tempfile.TemporaryDirectory(prefix="qf") as place:
        images = Path(place) / "images"
        play.make_images(images)
        start, devices = play.SERVERS[arguments.server]
        trial = Trial(Path(place), images, start, devices)
        if arguments.script:
            found = trial.compare(json.loads(Path(arguments.script).read_text()))
            print(found.text if found else "the same", found and (found.step, found.command))
            return int(found is not None)
        if arguments.members is not None:
            for text in all_members(trial, CASES, arguments.members, arguments.stride):
                print(text, flush=True)
            return 0
        known = Path(arguments.known) if arguments.known else None
        seen = set(known.read_text().splitlines()) if known and known.exists() else set()
        total = 0
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            steps, found = trial.draw(seed, 5 + seed * 7919 % (arguments.length * 2 - 5))
            if found is None:
                continue
            total += 1
            kind = json.dumps(found.kind)
            if kind in seen:
                continue
            seen.add(kind)
            if known:
                with known.open("a") as file:
                    file.write(kind + "\n")
            if not arguments.no_shrink:
                steps, found = trial.shrink(steps, found)
            print(f"== seed {seed}: {found.command}\n" + "\n".join(json.dumps(step)[:2000] for step in steps))
            print(found.text, flush=True)
        print(trial.coverage.report())
        print(f"{arguments.count} scripts, {total} played differently")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
