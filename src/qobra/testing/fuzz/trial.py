"""One script on both sides, drawn or given, and the shortest that still shows a difference."""

from __future__ import annotations

import copy
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qobra.testing.fuzz import play
from qobra.testing.fuzz.coverage import Coverage
from qobra.testing.fuzz.play import Gone, Player
from qobra.testing.fuzz.script import LAST, WEIGHTS, Author, Step
from qobra.testing.fuzz.values import DRIVERS
from qobra.testing.fuzz.world import World

ENDING = ("job-complete", "block-job-complete", "job-cancel", "block-job-cancel")
DELETED = 0.3
"""Seconds that a device may take to go."""
Start = Callable[[Path, bool], Player]
"""Starts a server in a directory; True for ours."""


class Difference:
    """Where a script was played differently first: ``step`` is its number, or -1 for what was left at the end."""

    def __init__(self, step: int, command: str, text: str) -> None:
        self.step = step
        self.command = command
        self.text = text

    @property
    def kind(self) -> str:
        """What is the same of two differences that are likely the same one."""
        text = re.sub(r"'[^']*'|\"[^\"]*\"|#auto\d+", "'X'", self.text)
        return f"{self.command}: " + re.sub(r"\b[nbjes]\d\b|\d+", "N", text)


class Trial:
    """Plays scripts in ``directory``, with images copied from ``images``."""

    def __init__(self, directory: Path, images: Path, start: Start, devices: list[str]) -> None:
        self._directory = directory
        self._images = images
        self._start = start
        self._devices = devices
        self.coverage = Coverage(WEIGHTS, DRIVERS)
        self._theirs: list[Any] = []

    def draw(self, seed: int, length: int) -> tuple[list[Step], Difference | None]:
        """A script from a seed, which the peer plays while it is drawn, and how ours differs."""
        chance = random.Random(seed)
        player = self.open(ours=False)
        steps: list[Step] = []
        theirs: list[Any] = []
        slow: list[list[str]] = []
        gone = False
        try:
            commands = frozenset(each["name"] for each in player.query("query-commands"))
            world = World(chance, commands, self._devices)
            author = Author(world)
            waiting = author.first()
            while len(steps) < length:
                step = waiting.pop(0) if waiting else author.next()
                answer, quiet = self.step(player, step, None)
                steps.append(step)
                theirs.append(answer)
                slow.append(quiet)
                if step[0] == "qmp":
                    self.coverage.note(step[1], step[2], done="return" in answer[0])
                if step[1] == "blockdev-add" and "return" in answer[0]:
                    world.added_by(step[2])
                if _spoils(step, answer[0]):
                    break
                world.look(player.query)
            for step in LAST if not _spoils(steps[-1], theirs[-1][0]) else []:
                answer, quiet = self.step(player, step, None)
                steps.append(step)
                theirs.append(answer)
                slow.append(quiet)
        except Gone:
            gone = True
        finally:
            player.close()
        return steps[: len(theirs)], self._against(steps[: len(theirs)], theirs, slow, images=not gone)

    def compare(self, steps: list[Step]) -> Difference | None:
        """How ours differs in a script."""
        player = self.open(ours=False)
        theirs: list[Any] = []
        slow: list[list[str]] = []
        gone = False
        try:
            for step in steps:
                answer, quiet = self.step(player, step, None)
                theirs.append(answer)
                slow.append(quiet)
                if _spoils(step, answer[0]):
                    break
        except Gone:
            gone = True
        finally:
            player.close()
        return self._against(steps[: len(theirs)], theirs, slow, images=not gone)

    def shrink(self, steps: list[Step], found: Difference) -> tuple[list[Step], Difference]:
        """A short script that still shows the difference, and how."""
        if found.step >= 0:
            steps = steps[: found.step + 1]

        def shows(candidate: list[Step]) -> Difference | None:
            other = self.compare(candidate)
            return other if other is not None and other.kind == found.kind else None

        last = len(steps) - 1
        done = [step for number, step in enumerate(steps) if number == last or "error" not in self._answers[number]]
        if len(done) < len(steps) and (other := shows(done)):
            steps, found = done, other
        size = max(len(steps) // 2, 1)
        while True:
            at = 0
            while at < len(steps):
                candidate = steps[:at] + steps[at + size :]
                if candidate and (other := shows(candidate)):
                    steps, found = candidate, other
                else:
                    at += size
            if size == 1:
                break
            size = max(size // 2, 1)
        for number, step in enumerate(steps):
            if step[0] != "qmp" or not step[2]:
                continue
            for path in _paths(step[2]):
                candidate = copy.deepcopy(steps)
                if _without(candidate[number][2], path) and (other := shows(candidate)):
                    steps, found = candidate, other
        return steps, found

    @property
    def _answers(self) -> list[Any]:
        """What the peer answered to the last script."""
        return [told[0] for told in self._theirs]

    def _against(
        self, steps: list[Step], theirs: list[Any], slow: list[list[str]], *, images: bool
    ) -> Difference | None:
        """``images``: compare them too, as the peer did not break down."""
        self._theirs = theirs
        player = self.open(ours=True)
        names: dict[str, str] = {}
        other_names: dict[str, str] = {}
        number = -1
        try:
            for number, step in enumerate(steps):
                (answer, events), _ = self.step(player, step, set(slow[number]))
                ours = play.told(answer, events, names, player.directory, step[1])
                expected = play.told(
                    theirs[number][0], theirs[number][1], other_names, self._directory / "theirs", step[1]
                )
                if text := play.difference(ours, expected):
                    return Difference(number, str(step[1] if step[0] == "qmp" else "io"), text)
        except Gone as gone:
            return Difference(number, str(steps[number][1]), f"  {gone}")
        finally:
            player.close()
            told = (player.directory / "stderr").read_text(errors="replace")
        if "Traceback" in told or "Error" in told:
            return Difference(-1, "stderr", told[-2000:])
        if any(slow) or not steps or not images:
            return None
        if left := self.left():
            return Difference(-1, "images", "\n".join("  " + each for each in left))
        return None

    def left(self) -> list[str]:
        """What differs between the images that both sides have left."""
        return play.compare_images(self._directory / "ours", self._directory / "theirs", self._images)

    def open(self, *, ours: bool) -> Player:
        """A server in its directory, with images of its own."""
        directory = self._directory / ("ours" if ours else "theirs")
        shutil.rmtree(directory, ignore_errors=True)
        play.copy_images(self._images, directory)
        return self._start(directory, ours)

    def step(self, player: Player, step: Step, slow: set[str] | None) -> tuple[list[Any], list[str]]:
        """Play a step: the answer and the events, and the jobs that go on; ``slow`` ones are not waited for."""
        answer = player.play(step)
        if step[1] == "device_del" and "return" in answer:
            player.wait_deleted(DELETED)
        if step[1] in ENDING and "return" in answer:
            player.wait_moved(step[2].get("id") or step[2].get("device"), play.PATIENCE)
        if step[0] == "io":
            player.let_ready_rest()
        quiet = player.settle(slow)
        return [answer, player.events()], quiet


def _spoils(step: Step, answer: Any) -> bool:
    """Whether QEMU is not to be compared with any more: a block-stream that is refused late leaves its root behind."""
    return (
        step[1] == "block-stream"
        and "error" in answer
        and answer["error"]["desc"].startswith(("Permission conflict", "Failed to get"))
    )


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in pairs for found in [(*path, key), *_paths(each, (*path, key))]]


def _without(value: Any, path: tuple[Any, ...]) -> bool:
    """Delete what is at ``path``; False if that is no longer there."""
    for key in path[:-1]:
        if not _has(value, key):
            return False
        value = value[key]
    if not _has(value, path[-1]):
        return False
    del value[path[-1]]
    return True


def _has(value: Any, key: Any) -> bool:
    return key < len(value) if isinstance(value, list) else isinstance(value, dict) and key in value
