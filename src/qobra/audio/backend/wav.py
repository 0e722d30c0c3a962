"""``wav``: a file that holds what the guest plays (RIFF, "Multimedia Programming Interface and Data Specifications").

The file begins where a card is there to play. Voices that play at the same time are mixed; the time between is not
in the file.
"""

from __future__ import annotations

from array import array
from struct import pack
from typing import IO, TYPE_CHECKING, Any

from qobra.audio.audiodev import Audiodev, Voice, registry
from qobra.audio.mixing import Mixing
from qobra.audio.sound import Form, frame_size, from_stereo
from qobra.errors import QobraError, strerror
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_PATH = "qemu.wav"
_BITS = {"u8": 8, "s8": 8, "u16": 16, "s16": 16, "u32": 32, "s32": 32}
_RATES = (1, 1 << 20)
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
        self._mixing: Mixing | None = None

    def make_voice(self) -> Voice:
        """Begin the file, if it has not begun. Raises QobraError."""
        if self._file is None:
            path = self.options.get("path", _PATH)
            try:
                self._file = open(path, "wb", buffering=0)
            except OSError as error:
                raise QobraError(f"Failed to open wave file '{path}': {strerror(error)}", errno=error.errno)
            self._put_header()
        return WavVoice(self)

    def play(self, voice: WavVoice, data: bytes, form: Form, volumes: tuple[float, float]) -> None:
        """``voice`` plays."""
        if self._form is None:
            self._form = form._replace(channels=min(form.channels, 2))
            self._put_header()
        if self._mixing is None:
            self._mixing = Mixing(self._form.rate, self._put)
        self._mixing.play(voice, data, form, volumes)

    def pause(self, voice: WavVoice) -> None:
        """``voice`` does not."""
        if self._mixing is not None:
            self._mixing.pause(voice)
            if self._mixing.idle:
                self._put_header()

    def close(self) -> None:
        """Put all of it in the file, and how long that is."""
        if self._mixing is not None:
            self._mixing.finish()
        if self._file is not None:
            self._put_header()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self, frames: array[int]) -> None:
        if self._file is None or self._form is None:
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
    """A voice."""

    def __init__(self, owner: WavAudiodev) -> None:
        self._owner = owner

    def play(self, data: bytes, form: Form, volumes: tuple[float, float]) -> None:
        """Have ``data`` in the file."""
        self._owner.play(self, data, form, volumes)

    def pause(self) -> None:
        """Others go on without it."""
        self._owner.pause(self)

    def close(self) -> None:
        """It does not come back."""
        self.pause()
