"""The same command lines given to QEMU's image tools and to ours, and where the two part.

Both run in directories of their own that start alike. After each command its status and what it printed are compared,
and after the last what is in the directories: contents, maps, descriptions and consistency of the images, as QEMU's
qemu-img sees them. ``python -m qobra.testing.tools.differential --help`` tells how to run many at random
(:mod:`qobra.testing.tools.script`); a sequence that parts the two is printed as short as it can be made.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from filecmp import cmp
from pathlib import Path
from types import TracebackType
from typing import Any

TIMEOUT_SECONDS = 60.0
"""How long a command may take on a busy machine."""

_PROBED = r"WARNING: Image format was not specified for .*\n.*\n.*restrictions\.\n"

Outcome = tuple[int, str, str]
"""Exit status, standard output and error."""

_FORK = """
import json, os, sys
from qobra.cli import img, io, nbd
from qobra.cli._tool.process import run_program
from qobra.block.io_commands._interpreter import load_commands
load_commands()
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(task["cwd"])
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        program, *arguments = sys.argv[:] = task["command"]
        run_program(lambda: {"qemu-img": img, "qemu-io": io, "qemu-nbd": nbd}[program].main(arguments, program))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Theirs:
    """QEMU's tools."""

    def __init__(self, directory: Path) -> None:
        self._out, self._err = directory / "theirs.out", directory / "theirs.err"

    def run(self, command: Sequence[str], cwd: Path) -> Outcome:
        """Run a command line there."""
        with open(self._out, "w+b") as out, open(self._err, "w+b") as err:  # no pipes, which a server would keep open
            done = subprocess.run(
                command, cwd=cwd, stdout=out, stderr=err, stdin=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS
            )
        return done.returncode, _text(self._out.read_bytes()), _text(self._err.read_bytes())

    def close(self) -> None:
        """Nothing is left running."""


class Ours:
    """Our tools, each in a process that is forked from one in which they are loaded."""

    def __init__(self, directory: Path) -> None:
        self._out, self._err = directory / "ours.out", directory / "ours.err"
        self._process = subprocess.Popen([sys.executable, "-c", _FORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, command: Sequence[str], cwd: Path) -> Outcome:
        """Run a command line there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        task = {"cwd": str(cwd), "command": command, "out": str(self._out), "err": str(self._err)}
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return status, _text(self._out.read_bytes()), _text(self._err.read_bytes())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Pair:
    """Both sides, with a directory to work in."""

    def __init__(self, directory: Path, prepare: Callable[[Path], None] | None = None) -> None:
        """``prepare`` makes the directory that each sequence finds, and what is in it."""
        self._directory = directory
        self._template = directory / "template"
        (prepare or _prepare)(self._template)
        self._theirs = Theirs(directory)
        self._ours = Ours(directory)
        self.reached = 0
        """The command that the last sequence was ended by."""

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()

    def difference(self, script: Sequence[Sequence[str]]) -> str | None:
        """What differs after the first command that parts the two, or at the end; None if nothing does."""
        places = []
        for side in ("theirs", "ours"):
            place = self._directory / side / "w"
            place.parent.mkdir(exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            subprocess.run(["cp", "-a", "--sparse=always", str(self._template), str(place)], check=True)
            places.append(place)
        theirs, ours = places
        for self.reached, command in enumerate(script):
            try:
                expected = run(self._theirs, command, theirs)
            except subprocess.TimeoutExpired:
                return None  # QEMU's tools can hang
            if expected[0] < 0 or "Lost persistent bitmaps" in expected[2]:
                return None  # or crash, or lose the bitmaps of an image of no length
            found = run(self._ours, command, ours)
            if why := unlike(command, expected, found):
                return f"{shlex.join(command)}\n{why}"
            self._make_alike(command, expected[0], theirs, ours)
        return self._end(theirs, ours)

    def _make_alike(self, command: Sequence[str], status: int, theirs: Path, ours: Path) -> None:
        """Take back differences that are meant: what is left of a target that failed, and the holes of ``dd``."""
        if command[1:2] not in (["convert"], ["dd"]):
            return
        target = next((word[3:] for word in command if word.startswith("of=")), command[-1])
        paths = [place / target for place in (theirs, ours) if (place / target).is_file()]
        if status:
            for path in paths:
                path.unlink()
        elif command[1] == "dd" and len(paths) == 2 and self._same_contents(*paths):
            shutil.copyfile(paths[0], paths[1])

    def _same_contents(self, one: Path, other: Path) -> bool:
        return self._theirs.run(["qemu-img", "compare", "-U", str(one), str(other)], one.parent)[0] == 0

    def _end(self, theirs: Path, ours: Path) -> str | None:
        names = sorted(os.listdir(theirs))
        if names != sorted(os.listdir(ours)):
            return f"files: {names}, ours: {sorted(os.listdir(ours))}"
        for name in names:
            if not (theirs / name).is_file() or cmp(theirs / name, ours / name, shallow=False):
                continue
            for command in (
                ["qemu-img", "info", "-U", name],
                ["qemu-img", "check", "-U", name],
                ["qemu-img", "map", "--output=json", "-U", name],
            ):
                try:
                    expected, found = self._theirs.run(command, theirs), self._theirs.run(command, ours)
                except subprocess.TimeoutExpired:
                    continue  # of an image in a file of many TiB it counts every cluster
                if why := unlike(command, expected, found):
                    return f"at the end: {shlex.join(command)}\n{why}"
            one, other = theirs / name, ours / name
            if self._same_contents(one, one) and not self._same_contents(one, other):
                return f"at the end: contents of {name}"
        return None

    def shrink(self, script: Sequence[Sequence[str]]) -> list[list[str]]:
        """The shortest sequence that leaving things out of ``script`` leads to and that still parts the two."""
        shortest = [list(command) for command in script]
        self.difference(shortest)
        del shortest[self.reached + 1 :]
        for number in reversed(range(len(shortest))):
            without = shortest[:number] + shortest[number + 1 :]
            if without and self.difference(without):
                shortest = without
        for number in range(len(shortest)):
            place = 1
            while place < len(shortest[number]):
                command = shortest[number]
                for count in (2, 1):
                    rest = command[:place] + command[place + count :]
                    without = [*shortest[:number], rest, *shortest[number + 1 :]]
                    if place + count <= len(command) and self.difference(without):
                        shortest = without
                        break
                else:
                    place += 1
        return shortest


_PROGRAMS = ("qemu-img", "qemu-io", "qemu-nbd")


def run(side: Theirs | Ours, command: Sequence[str], place: Path) -> Outcome:
    """Run a command line of one side, also one that serves (see :mod:`qobra.testing.tools.nbd_script`)."""
    if command[0] == "damage":
        return _damage(place, *command[1:]) if len(command) == 4 else (0, "", "")  # shortened
    if command[0] != "serve":
        return side.run(command, place)
    if "--" not in command:
        return 0, "", ""  # shortened
    client = command[command.index("--") + 1 :]
    served = command[1 : command.index("--")]
    try:
        outcomes = [side.run(["qemu-nbd", "--fork", "-t", "--pid-file=pid", "-k", str(place / "sock"), *served], place)]
        if not outcomes[0][0] and client and client[0] in _PROGRAMS:
            outcomes.append(side.run(client, place))
    finally:
        _stop(place / "pid")
        (place / "sock").unlink(missing_ok=True)
    statuses, outputs, errors = zip(*outcomes, strict=True)
    return max(statuses), "".join(outputs), "".join(errors)


def _damage(place: Path, name: str, offset: str, data: str) -> Outcome:
    """Overwrite bytes of a file (see :mod:`qobra.testing.tools.odd_script`)."""
    with open(place / name, "r+b") as file:
        file.seek(int(offset))
        file.write(bytes.fromhex(data))
    return 0, "", ""


def _stop(pid_file: Path) -> None:
    """End the server that left its number there, if it has not ended with its client."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline and not _has_ended(pid):
            time.sleep(0.005)
    except (OSError, ValueError):
        pass
    pid_file.unlink(missing_ok=True)


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to ask what became of it."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return state[0] == "Z"


def unlike(command: Sequence[str], expected: Outcome, found: Outcome) -> str | None:
    """How two outcomes of a command differ, in what may not."""
    if command[1:2] == ["measure"] and expected[1].startswith("qemu-img version"):
        # QEMU's shows its help for a command line that cannot be, and exits with 0.
        return None if found[0] == 1 else f"  status: {found[0]}"
    if command[0] == "serve" and "Image format was not specified" in expected[2]:
        return None  # QEMU's serves, but exits with 1
    lines = []
    for what, theirs, ours in zip(("status", "output", "errors"), expected, found, strict=True):
        if isinstance(theirs, str) and isinstance(ours, str):
            theirs, ours = comparable(command, theirs), comparable(command, ours)
        if theirs != ours:
            lines.append(f"  {what}: {theirs!r}\n  ours:   {ours!r}")
    return "\n".join(lines) or None


def comparable(command: Sequence[str], text: str) -> str:
    """What may differ is made equal: times, where things were put, what the host's file system takes for them."""
    text = re.sub(r"\d\d\.\d\d sec \([^)]*\)", "TIME", text)
    text = re.sub(r"\d+\.\d+ seconds", "TIME", text)
    text = re.sub(r"=(yes|true|y)\b", "=on", re.sub(r"=(no|false|n)\b", "=off", text))  # shown as it was given, or not
    text = re.sub(rf"({_PROBED})+", r"\1", text)  # QEMU's may open an image twice
    text = text.replace("%20", " ")  # in names of exports
    text = re.sub(r"#block\w+", "#block", text)
    text = re.sub(r"^(\s*disk size: |\s*\"actual-size\": ).*$", r"\1SIZE", text, flags=re.M)
    text = re.sub(r"^(Image end offset: |\s*\"image-end-offset\": ).*$", r"\1OFFSET", text, flags=re.M)
    text = re.sub(r"\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", text)
    text = re.sub(r"\"date-(n?)sec\": \d+", r'"date-\1sec": 0', text)
    text = re.sub(r"^(\d+,\d+),\d:\d\d:\d\d\.\d\d,.*$", r"\1,TIME", text, flags=re.M)  # -C
    text = re.sub(r"^(  [\w.-]+=<[^>]*>) +- .*$", r"\1", text, flags=re.M)  # -o help
    text = re.sub(r"^([a-z_]+ .*)-- .*$", r"\1", text, flags=re.M)  # how a command of qemu-io is written
    if text.startswith(("Usage: qemu-io", "qemu-img version", "usage: qemu-img")):
        return "usage\n"
    if "-p" in command:
        text = re.sub(r"( *\(\d+\.\d\d/100%\)\r)+", "", text).lstrip("\n")
    if command[1:2] == ["map"] or (command[0] == "serve" and command[-2:-1] == ["map"]):
        text = _map(text)  # of what is served, too
    if command[1:2] == ["check"]:
        text = re.sub(r"\d+\.\d+% fragmented", "FRAGMENTED", text)
        text = re.sub(r"^    \"fragmented-clusters\": .*\n", "", text, flags=re.M)
    return text


def _map(text: str) -> str:
    """A map without offsets in files, and without what may as well be a hole of a file as data that is zero."""
    if text.startswith("Offset "):
        return "extents that have data\n"
    try:
        extents = json.loads(text)
    except ValueError:
        return text
    joined: list[dict[str, Any]] = []
    for extent in extents:
        for name in ("offset", "zero", "data", "compressed"):
            extent.pop(name, None)
        last = joined[-1] if joined else {}
        if {**last, "start": 0, "length": 0} == {**extent, "start": 0, "length": 0}:
            last["length"] += extent["length"]
        else:
            joined.append(extent)
    return "".join(f"{extent}\n" for extent in joined)


def _prepare(place: Path) -> None:
    """What a sequence finds: two raw images, a file that is no image, and a directory."""
    place.mkdir(parents=True)
    (place / "dir").mkdir()
    with open(place / "r", "wb") as file:
        file.truncate(1 << 20)
        file.seek(65536)
        file.write(b"r" * 65536)
        file.seek(500000)
        file.write(b"r")
    (place / "s").write_bytes(bytes(range(256)) * 3906 + b"s" * 64)
    (place / "bad").write_bytes(b"QFI\xfb\0\0\0\3" + b"\xff" * 504)
    (place / "data.bin").write_bytes(b"pattern\n" * 3)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Run many sequences at random; prints what parts the two, as short as can be."""
    import argparse
    import tempfile

    from qobra.testing.differential import limit_descriptors
    from qobra.testing.tools.odd_script import odd_script, prepare
    from qobra.testing.tools.script import script

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--count", type=int, default=100, help="how many sequences")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--odd", action="store_true", help="single commands with any options on any kind of file")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    options = parser.parse_args(argv)
    limit_descriptors()
    end = time.monotonic() + options.seconds
    failures: list[Any] = []
    number = 0
    with tempfile.TemporaryDirectory() as directory, Pair(Path(directory), prepare if options.odd else None) as pair:
        for number in range(options.count):
            seed = options.seed + number
            commands = odd_script(seed) if options.odd else script(seed)
            if pair.difference(commands):
                shortest = pair.shrink(commands)
                failures.append(seed)
                print(f"seed {seed}:")
                for command in shortest:
                    print(f"  {shlex.join(command)}")
                print(pair.difference(shortest), flush=True)
            if time.monotonic() > end or len(failures) >= options.failures:
                break
    print(f"{number + 1} sequences from seed {options.seed}, {len(failures)} of them part the two")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
