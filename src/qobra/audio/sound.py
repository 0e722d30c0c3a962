"""Sound as numbers: forms of samples, and how one becomes another.

In between are frames of two signed 16-bit samples, left and right, which is what nearly all guests play.
"""

from __future__ import annotations

import sys
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from collections import namedtuple

if TYPE_CHECKING:

    class Form(NamedTuple):
        """Frames a second, channels, and the bits of a sample, in whole bytes: 8 are unsigned, 16 and 32 signed."""

        rate: int
        channels: int
        bits: int

else:
    Form = namedtuple("Form", ("rate", "channels", "bits"))

_LOUDEST, _QUIETEST = 0x7FFF, -0x8000


def frame_size(form: Form) -> int:
    """Bytes of one frame."""
    return form.channels * form.bits // 8


def to_stereo(data: bytes, form: Form) -> array[int]:
    """Frames of ``form`` as frames of two 16-bit samples; channels above the second are dropped."""
    if form.bits == 8:
        samples = array("h", ((value - 0x80) << 8 for value in data))
    else:
        samples = array("h" if form.bits == 16 else "i", data)
        if sys.byteorder == "big":
            samples.byteswap()
    if form.channels != 2:
        left = samples[:: form.channels]
        stereo = array(samples.typecode, bytes(2 * left.itemsize * len(left)))
        stereo[::2] = left
        stereo[1::2] = left if form.channels == 1 else samples[1 :: form.channels]
        samples = stereo
    return array("h", (value >> 16 for value in samples)) if form.bits == 32 else samples


def from_stereo(frames: array[int], form: Form) -> bytes:
    """The same the other way round; the channels of ``form`` are one or two."""
    if form.channels == 1:
        frames = array("h", ((frames[at] + frames[at + 1]) >> 1 for at in range(0, len(frames), 2)))
    if form.bits == 8:
        return bytes((value >> 8) + 0x80 for value in frames)
    if form.bits == 32:
        frames = array("i", (value << 16 for value in frames))
    if sys.byteorder == "big":
        frames = frames[:]
        frames.byteswap()
    return frames.tobytes()


def scale(frames: array[int], volumes: tuple[float, float]) -> array[int]:
    """``frames`` as loud as the factors for left and right say."""
    if volumes == (1.0, 1.0):
        return frames
    scaled = frames[:]
    for side, volume in enumerate(volumes):
        scaled[side::2] = array("h", (max(_QUIETEST, min(_LOUDEST, int(value * volume))) for value in frames[side::2]))
    return scaled


def mix(frames: array[int], more: array[int], at: int) -> None:
    """Add ``more`` to what is in ``frames`` from the sample ``at`` on, and put behind it what is longer."""
    shared = max(0, min(len(frames) - at, len(more)))
    for number in range(shared):
        frames[at + number] = max(_QUIETEST, min(_LOUDEST, frames[at + number] + more[number]))
    frames.extend(more[shared:])


class Resampler:
    """Frames at one rate as frames at another, on straight lines between them."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self._left = self._right = 0
        # Where the next frame lies behind the last one of the call before, in parts of which a frame has ``target``.
        self._position = target

    def run(self, frames: array[int]) -> array[int]:
        """What follows from ``frames``, which come after those of the last call."""
        if self.source == self.target:
            return frames
        lefts, rights = array("h", (self._left,)) + frames[::2], array("h", (self._right,)) + frames[1::2]
        made = array("h")
        position, step, target = self._position, self.source, self.target
        end = (len(lefts) - 1) * target
        while position <= end:
            at, part = divmod(position, target)
            if part:
                made.append((lefts[at] * (target - part) + lefts[at + 1] * part) // target)
                made.append((rights[at] * (target - part) + rights[at + 1] * part) // target)
            else:
                made.append(lefts[at])
                made.append(rights[at])
            position += step
        self._position = position - end
        self._left, self._right = lefts[-1], rights[-1]
        return made
