"""``wav``: a file that holds what the guest plays (RIFF, "Multimedia Programming Interface and Data Specifications").

The file begins where a card is there to play. Voices that play at the same time are mixed; the time between is not
in the file.
"""

from __future__ import annotations

from array import array
from struct import pack
from typing import IO, TYPE_CHECKING, Any

from qobra.audio.audiodev import Audiodev, Voice, registry
from qobra.audio.sound import Form, Resampler, frame_size, from_stereo, mix, scale, to_stereo
from qobra.errors import QobraError, strerror
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_PATH = "qemu.wav"
_BITS = {"u8": 8, "s8": 8, "u16": 16, "s16": 16, "u32": 32, "s32": 32}
_RATES = (1, 1 << 20)
_LATE = 25
"""What part of a second is kept back for voices that join in."""
_MOST = 0xFFFFFFFF - 36
"""How many bytes of sound a file can tell of."""


@registry.register("wav")
class WavAudiodev(Audiodev):
    """One file. ``out`` says in which form; with ``fixed-settings=off`` in the form that is played first."""

    driver = "wav"

    def __init__(self, machine: Machine, options: dict[str, Any]) -> None:
        super().__init__(machine, options)
        self._form: Form | None = None
        settings = options.get("out", {})
        if settings.get("fixed-settings", True):
            name = settings.get("format", "s16")
            if name not in _BITS:
                raise QobraError(f"wav files of format '{name}' are not supported")
            form = Form(settings.get("frequency", 44100), settings.get("channels", 2), _BITS[name])
            if not _RATES[0] <= form.rate <= _RATES[1] or form.channels not in (1, 2):
                raise QobraError("wav files have one or two channels and a frequency of 1 to 1048576")
            self._form = form
        self._file: IO[bytes] | None = None
        self._written = 0
        self._pending = array("h")
        """Frames that are not written yet, as voices that play still add to them."""
        self._voices: list[WavVoice] = []

    def open_voice(self) -> Voice:
        """Begin the file, if it has not begun. Raises QobraError."""
        if self._file is None:
            path = self.options.get("path", _PATH)
            try:
                self._file = open(path, "wb", buffering=0)
            except OSError as error:
                raise QobraError(f"Failed to open wave file '{path}': {strerror(error)}", errno=error.errno)
            self._put_header()
        return WavVoice(self)

    def begin(self, form: Form) -> None:
        """A voice is about to play sound of ``form``."""
        if self._form is None:
            self._form = form._replace(channels=min(form.channels, 2))
            self._put_header()

    @property
    def rate(self) -> int:
        """Frames a second in the file."""
        assert self._form is not None
        return self._form.rate

    def add(self, voice: WavVoice, frames: array[int]) -> None:
        """``voice`` plays ``frames``, of the file's rate."""
        if voice not in self._voices:
            # What others play now, they may have played already.
            latest = max((each.at for each in self._voices), default=0)
            voice.at = max(0, latest - len(frames))
            self._voices.append(voice)
        mix(self._pending, frames, voice.at)
        voice.at += len(frames)
        self._write_until(min(each.at for each in self._voices) - 2 * self.rate // _LATE)

    def end(self, voice: WavVoice) -> None:
        """``voice`` pauses."""
        if voice in self._voices:
            self._voices.remove(voice)
        if not self._voices:
            self._write_until(len(self._pending))
            self._put_header()

    def close(self) -> None:
        """Put all of it in the file, and how long that is."""
        if self._file is not None:
            self._voices.clear()
            self._write_until(len(self._pending))
            self._put_header()
            self._file.close()
            self._file = None

    def _write_until(self, count: int) -> None:
        if count <= 0 or self._form is None:
            return
        frames = self._pending[:count]
        del self._pending[:count]
        for each in self._voices:
            each.at -= count
        if self._file is None:
            return
        data = from_stereo(frames, self._form)[: _MOST - self._written]
        try:
            self._written += _write(self._file, data)
        except OSError as error:
            self._fail(error)

    def _put_header(self) -> None:
        if self._file is None:
            return
        form = self._form or Form(44100, 2, 16)
        size = frame_size(form)
        header = b"RIFF" + pack("<I", 36 + self._written) + b"WAVEfmt "
        header += pack("<IHHIIHH", 16, 1, form.channels, form.rate, form.rate * size, size, form.bits)
        header += b"data" + pack("<I", self._written)
        try:
            self._file.seek(0)
            _write(self._file, header)
            self._file.seek(len(header) + self._written)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """There is no more to be done with the file, while the guest plays on."""
        report_error(f"audiodev '{self.id}': {strerror(error)}")
        assert self._file is not None
        self._file.close()
        self._file = None


def _write(file: IO[bytes], data: bytes) -> int:
    left = data
    while left:
        left = left[file.write(left) :]
    return len(data)


class WavVoice(Voice):
    """A voice, which plays from the sample ``at`` of what is not written yet on."""

    def __init__(self, owner: WavAudiodev) -> None:
        self._owner = owner
        self._resampler: Resampler | None = None
        self.at = 0

    def play(self, data: bytes, form: Form, volumes: tuple[float, float]) -> None:
        """Have ``data`` in the file."""
        owner = self._owner
        if self._resampler is None:
            owner.begin(form)
        if self._resampler is None or self._resampler.source != form.rate:
            self._resampler = Resampler(form.rate, owner.rate)
        owner.add(self, self._resampler.run(scale(to_stereo(data, form), volumes)))

    def pause(self) -> None:
        """Others go on without it."""
        if self._resampler is not None:
            self._resampler = None
            self._owner.end(self)

    def close(self) -> None:
        """It does not come back."""
        self.pause()
