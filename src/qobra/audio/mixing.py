"""Voices that play at the same time as one sound."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from qobra.audio.sound import Form, Resampler, mix, scale, to_stereo

_LATE = 25
"""What part of a second is kept back for voices that join in."""
_MOST_SECONDS = 1
"""For so long voices that play wait for one that does not go on, and has not said so."""


class _Part:
    """A voice that plays, from the sample ``at`` of what was not given out yet on."""

    def __init__(self, resampler: Resampler, at: int) -> None:
        self.resampler = resampler
        self.at = at


class Mixing:
    """Gives out frames of two samples at ``rate`` to ``emit``; while no voice plays, nothing."""

    def __init__(self, rate: int, emit: Callable[[array[int]], None]) -> None:
        self.rate = rate
        self._emit = emit
        self._parts: dict[object, _Part] = {}
        self._pending = array("h")

    @property
    def idle(self) -> bool:
        """Whether no voice plays."""
        return not self._parts

    def play(self, who: object, data: bytes, form: Form, volumes: tuple[float, float]) -> None:
        """A voice plays ``data``; ``who`` tells one from the other."""
        part = self._parts.get(who)
        resampler = part.resampler if part is not None else Resampler(form.rate, self.rate)
        if resampler.source != form.rate:
            resampler = Resampler(form.rate, self.rate)
        frames = resampler.run(scale(to_stereo(data, form), volumes))
        if part is None:
            # What others play now, they may have played already.
            latest = max((each.at for each in self._parts.values()), default=0)
            part = self._parts[who] = _Part(resampler, max(0, latest - len(frames)))
        part.resampler = resampler
        mix(self._pending, frames, part.at)
        part.at += len(frames)
        done = min(each.at for each in self._parts.values()) - 2 * (self.rate // _LATE)
        self._give_out(max(done, len(self._pending) - 2 * self.rate * _MOST_SECONDS))

    def pause(self, who: object) -> None:
        """A voice has no more for now; with the last one, everything is given out."""
        if self._parts.pop(who, None) is not None and not self._parts:
            self._give_out(len(self._pending))

    def finish(self) -> None:
        """Give out everything: nobody plays any more."""
        self._parts.clear()
        self._give_out(len(self._pending))

    def _give_out(self, count: int) -> None:
        if count <= 0:
            return
        frames = self._pending[:count]
        del self._pending[:count]
        for each in self._parts.values():
            each.at = max(0, each.at - count)
        self._emit(frames)
