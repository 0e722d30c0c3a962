"""Sound as numbers, and the files that it is written to."""

from __future__ import annotations

import random
import wave
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.audio.sound import Form, Resampler, from_stereo, mix, scale, to_stereo
from qobra.errors import QobraError
from qobra.machine.machine import Machine

_LOUD = (1.0, 1.0)
_CD = Form(44100, 2, 16)


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def test_samples() -> None:
    assert to_stereo(b"\x80\x00\xff", Form(8000, 1, 8)).tolist() == [0, 0, -32768, -32768, 32512, 32512]
    assert to_stereo(b"\1\0\2\0\3\0", Form(8000, 3, 16)).tolist() == [1, 2]
    assert to_stereo(b"\0\0\1\0\0\0\xff\xff", Form(8000, 2, 32)).tolist() == [1, -1]
    frames = array("h", (100, -300))
    assert from_stereo(frames, Form(8000, 1, 16)) == b"\x9c\xff"
    assert from_stereo(frames, Form(8000, 2, 8)) == b"\x80\x7e"
    assert to_stereo(from_stereo(frames, Form(8000, 2, 32)), Form(8000, 2, 32)) == frames
    assert scale(frames, (0.5, 2.0)).tolist() == [50, -600]
    assert scale(array("h", (30000, -30000)), (2.0, 2.0)).tolist() == [32767, -32768]


def test_mixing() -> None:
    frames = array("h", (1, 2, 30000, -30000))
    mix(frames, array("h", (30000, -30000, 5, 6)), 2)
    assert frames.tolist() == [1, 2, 32767, -32768, 5, 6]


@pytest.mark.parametrize(("source", "target"), [(48000, 44100), (8000, 48000), (44100, 44100), (96000, 1)])
def test_other_rates_however_the_sound_is_cut(source: int, target: int) -> None:
    chance = random.Random(source)
    frames = array("h", (chance.randrange(-3000, 3000) for _ in range(2 * 4000)))
    whole = Resampler(source, target).run(frames)
    pieces, parted = Resampler(source, target), array("h")
    at = 0
    while at < len(frames):
        size = 2 * chance.randrange(1, 300)
        parted += pieces.run(frames[at : at + size])
        at += size
    assert parted == whole
    assert abs(len(whole) // 2 - 4000 * target / source) <= max(1, target / source)
    assert whole[:2] == frames[:2]


def _open(machine: Machine, path: Path, **options: Any) -> Any:
    return machine.audiodevs.create({"id": f"a{path.name}", "driver": "wav", "path": str(path), **options})


def test_a_file(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "x"
    backend = _open(machine, path)
    assert not path.exists()
    voice = backend.open_voice()
    assert path.stat().st_size == 44
    data = bytes(range(200))
    voice.play(data[:80], _CD, _LOUD)
    voice.play(data[80:], _CD, _LOUD)
    voice.pause()
    with wave.open(str(path)) as file:
        assert file.getparams()[:4] == (2, 2, 44100, 50)
        assert file.readframes(50) == data
    voice.play(data, _CD, _LOUD)
    machine.audiodevs.close()
    with wave.open(str(path)) as file:
        assert file.readframes(1000) == data * 2


def test_a_file_of_another_form(machine: Machine, tmp_path: Path) -> None:
    backend = _open(machine, tmp_path / "x", out={"frequency": 22050, "channels": 1, "format": "u8"})
    voice = backend.open_voice()
    voice.play(b"\0\x40" * 400, _CD, _LOUD)
    voice.close()
    with wave.open(str(tmp_path / "x")) as file:
        assert file.getparams()[:4] == (1, 1, 22050, 100)
        assert file.readframes(100) == b"\xc0" * 100


def test_the_form_that_is_played_first(machine: Machine, tmp_path: Path) -> None:
    backend = _open(machine, tmp_path / "x", out={"fixed-settings": False})
    voice = backend.open_voice()
    voice.play(bytes(80), Form(8000, 1, 16), _LOUD)
    voice.close()
    with wave.open(str(tmp_path / "x")) as file:
        assert file.getparams()[:4] == (1, 2, 8000, 40)


def test_voices_at_the_same_time(machine: Machine, tmp_path: Path) -> None:
    backend = _open(machine, tmp_path / "x")
    one, other = backend.open_voice(), backend.open_voice()
    one.play(b"\1\0" * 20, _CD, _LOUD)
    other.play(b"\2\0" * 20, _CD, _LOUD)
    one.play(b"\1\0" * 20, _CD, _LOUD)
    one.pause()
    other.play(b"\2\0" * 20, _CD, _LOUD)
    other.pause()
    with wave.open(str(tmp_path / "x")) as file:
        samples = array("h", file.readframes(1000)).tolist()
    assert samples == [3] * 40


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"driver": "alsa"}, "Audio driver 'alsa' is not available"),
        ({"driver": "wav", "out": {"format": "f32"}}, "wav files of format 'f32' are not supported"),
        (
            {"driver": "wav", "out": {"channels": 6}},
            "wav files have one or two channels and a frequency of 1 to 1048576",
        ),
        (
            {"driver": "none", "out": {"fixed-settings": False, "channels": 1}},
            "You can't use frequency, channels or format with fixed-settings=off",
        ),
        (
            {"driver": "none", "in": {"mixing-engine": False, "fixed-settings": True}},
            "You can't use fixed-settings without mixeng",
        ),
    ],
)  # fmt: skip
def test_refusals(machine: Machine, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(QobraError) as caught:
        machine.audiodevs.create({"id": "a", **options})
    assert caught.value.desc == complaint
    assert machine.audiodevs.find("a") is None


def test_a_place_that_cannot_be_written_to(machine: Machine, tmp_path: Path) -> None:
    backend = _open(machine, tmp_path / "no" / "where")
    with pytest.raises(QobraError, match="Failed to open wave file '.*': No such file or directory"):
        backend.open_voice()


def test_a_disk_that_is_full(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    voice = _open(machine, Path("/dev/full")).open_voice()
    voice.play(bytes(4000), _CD, _LOUD)
    voice.close()
    assert "No space left on device" in capsys.readouterr().err


def test_voices_do_not_wait_for_one_that_says_no_more(machine: Machine, tmp_path: Path) -> None:
    backend = _open(machine, tmp_path / "x")
    one, other = backend.open_voice(), backend.open_voice()
    one.play(b"\1\0" * 200, _CD, _LOUD)
    for _ in range(50):
        other.play(b"\2\0" * 8820, _CD, _LOUD)
    assert len(backend._mixing._pending) <= 2 * 44100
    one.play(b"\1\0" * 200, _CD, _LOUD)
    one.pause()
    other.pause()
    with wave.open(str(tmp_path / "x")) as file:
        samples = array("h", file.readframes(1 << 20)).tolist()
    assert len(samples) == 50 * 8820 and samples.count(3) == 400
