"""QEMU and Qobra side by side: each step is played on both, and what they tell is compared at once."""

from __future__ import annotations

from collections.abc import Iterator

from qobra.testing.fuzz import play
from qobra.testing.fuzz.cases import Case
from qobra.testing.fuzz.members import tries
from qobra.testing.fuzz.play import Gone
from qobra.testing.fuzz.script import LAST, Step
from qobra.testing.fuzz.trial import Trial


class PeerGone(Exception):
    """QEMU ended, or no longer answers."""


class Pair:
    """Two servers that have carried out the same steps so far."""

    def __init__(self, trial: Trial, steps: list[Step]) -> None:
        self._trial = trial
        self._names: tuple[dict[str, str], dict[str, str]] = {}, {}
        self._slow = False
        self._theirs = trial.open(ours=False)
        self._ours = trial.open(ours=True)
        for step in steps:
            self.step(step)

    def step(self, step: Step) -> tuple[bool, str]:
        """Whether QEMU carried ``step`` out, and what Qobra told otherwise. Raises PeerGone, Gone."""
        try:
            (answer, events), slow = self._trial.step(self._theirs, step, None)
        except Gone:
            raise PeerGone from None
        self._slow |= bool(slow)
        (own_answer, own_events), _ = self._trial.step(self._ours, step, set(slow))
        done = not isinstance(answer, dict) or "error" not in answer
        theirs = play.told(answer, events, self._names[0], self._theirs.directory, step[1])
        ours = play.told(own_answer, own_events, self._names[1], self._ours.directory, step[1])
        return done, play.difference(ours, theirs)

    def close(self, *, images: bool) -> str:
        """End both; what is left otherwise, if ``images`` are to be compared."""
        self._theirs.close()
        self._ours.close()
        told = (self._ours.directory / "stderr").read_text(errors="replace")
        if "Traceback" in told:
            return told[-2000:]
        if images and not self._slow:
            return "\n".join(self._trial.left())
        return ""


def differences(trial: Trial, case: Case, *, first: int = 0, stride: int = 1) -> list[str]:
    """What is answered otherwise to the command of ``case`` with each member changed; every ``stride``-th form of it.

    A server goes on as long as commands are refused; one that carried a command out is looked at and replaced.
    """
    setup, command, arguments = case
    found = []
    pair: Pair | None = None
    for drawn in tries(command, arguments)[first::stride]:
        step = ["qmp", command, drawn]
        text = ""
        try:
            pair = pair or Pair(trial, setup)
            done, text = pair.step(step)
            if done or text:
                text = text or _look(pair)
                text = pair.close(images=not text) or text
                pair = None
        except PeerGone:
            pair = _give_up(pair)
        except Gone as gone:
            text = f"  {gone}"
            pair = _give_up(pair)
        if text:
            found.append(f"{command} {drawn}\n{text}")
    if pair is not None:
        pair.close(images=False)
    return found


def _give_up(pair: Pair | None) -> Pair | None:
    if pair is not None:
        pair.close(images=False)
    return None


def _look(pair: Pair) -> str:
    for step in LAST:
        _done, text = pair.step(step)
        if text:
            return f"  then {step[1]}\n{text}"
    return ""


def all_members(trial: Trial, cases: list[Case], only: str, stride: int) -> Iterator[str]:
    """What differs in each of ``cases`` in whose command or arguments the text ``only`` is."""
    for case in cases:
        if only in f"{case[1]} {case[2]}":
            yield from differences(trial, case, stride=stride)
