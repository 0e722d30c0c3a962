"""Sound cards on QEMU's program and ours: the same driver finds the same codecs, answers, positions and sound."""

from __future__ import annotations

import random
import time
import wave
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from qobra.testing.guest import PciFunction
from qobra.testing.hda import OUTPUT, SET_GAIN, SET_STREAM, STEREO_48000, HdaGuest
from qobra.testing.system import SystemProgram, peer_available
from qobra.testing.vnc import VncTestClient

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_CONVERTERS = (2, 4)
_CODECS = ("hda-output", "hda-duplex", "hda-micro", "hda-duplex,mixer=off")


def _arguments(card: str, codec: str, path: Path) -> tuple[str, ...]:
    audiodev = f"wav,id=a,path={path},out.frequency=48000"
    cards = ("-device", f"{card},addr=5,id=h", "-device", f"{codec},audiodev=a,cad=2")
    return ("-machine", "pc", "-m", "64", "-audiodev", audiodev, *cards)


@pytest.mark.parametrize("codec", _CODECS)
def test_codecs(tmp_path: Path, codec: str) -> None:
    seen = []
    for peer in (False, True):
        card = "intel-hda" if codec == "hda-output" else "ich9-intel-hda"
        with SystemProgram(tmp_path, "x86_64", *_arguments(card, codec, tmp_path / "wav"), peer=peer) as program:
            guest = HdaGuest(program.guest)
            found: list[Any] = [
                [guest.read(offset, width) for offset, width in ((0, 2), (2, 1), (3, 1), (4, 2), (6, 2))]
            ]
            found.append(
                [guest.read(0x0E, 2), guest.read(0x4E, 1), guest.read(0x5E, 1), guest.immediate(0, 0, 0xF0000)]
            )
            for node in range(7):
                verbs = [*range(0xF0000, 0xF0014), *range(0xF0100, 0xF3000, 0x100)]
                found.append([guest.immediate(2, node, verb) for verb in verbs])
            rnd = random.Random(codec)
            for _ in range(60):
                node = rnd.choice(_CONVERTERS if "output" not in codec else _CONVERTERS[:1])
                verb = rnd.choice((0x20000, SET_GAIN, 0xA0000, 0xB0000)) | rnd.randrange(1 << 16)
                verb = rnd.choice((verb, SET_STREAM | rnd.randrange(256), 0xF0600))
                found.append((node, hex(verb), guest.immediate(2, node, verb)))
            seen.append(found)
    assert seen[0] == seen[1]


def test_registers(tmp_path: Path) -> None:
    widths = {0x0C: 2, 0x20: 4, 0x40: 4, 0x44: 4, 0x48: 2, 0x50: 4, 0x54: 4, 0x5A: 2, 0x60: 4, 0x70: 4, 0x74: 4}
    of_streams = {0x02: 1, 0x04: 4, 0x08: 4, 0x0C: 2, 0x10: 2, 0x12: 2, 0x18: 4, 0x1C: 4}
    for first in range(0x80, 0x180, 0x20):
        widths |= {first + offset: width for offset, width in of_streams.items()}
    seen = []
    for peer in (False, True):
        arguments = _arguments("intel-hda", "hda-output", tmp_path / "wav")
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            guest = HdaGuest(program.guest)
            rnd = random.Random(5)
            found = []
            for _ in range(200):
                offset = rnd.choice(list(widths))
                guest.write(offset, widths[offset], rnd.getrandbits(8 * widths[offset]))
                found.append((hex(offset), [guest.read(each, width) for each, width in widths.items()]))
            guest.write(0x08, 4, 0)
            found.append(("reset", [guest.read(each, width) for each, width in widths.items()]))
            seen.append(found)
    for own, theirs in zip(*seen, strict=True):
        assert own == theirs


def test_rings(tmp_path: Path) -> None:
    seen = []
    for peer in (False, True):
        arguments = _arguments("intel-hda", "hda-duplex", tmp_path / "wav")
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            guest = HdaGuest(program.guest)
            guest.start_rings()
            guest.write(0x20, 4, 0xC0000000)
            found: list[Any] = []
            rnd = random.Random(9)
            for _ in range(12):
                commands = [
                    rnd.choice((0, 2)) << 28 | rnd.randrange(6) << 20 | 0xF0000 | rnd.randrange(20)
                    for _ in range(rnd.randrange(1, 6))
                ]
                guest.command(*commands)
                found.append([guest.answered(), guest.read(0x4A, 2), guest.read(0x24, 4)])
                found.append([guest.acknowledge(), guest.answered(), guest.read(0x24, 4)])
            seen.append(found)
    for own, theirs in zip(*seen, strict=True):
        assert own == theirs


def test_what_is_played(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(192 * 40)
    firmware = tmp_path / "firmware"
    firmware.write_bytes(bytes(0xFFF0) + b"\xfa\xf4\xeb\xfd" + bytes(12))  # cli; hlt; and again
    seen = []
    for peer in (False, True):
        path = tmp_path / f"wav{peer}"
        arguments = (*_arguments("intel-hda", "hda-duplex", path), "-bios", str(firmware))
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            guest = HdaGuest(program.guest)
            address = guest.memory.take(len(data), 128)
            program.guest.write(address, data)
            buffers = [(address + at, 192 * 10, True) for at in range(0, len(data), 192 * 10)]
            guest.list_buffers(OUTPUT, buffers, STEREO_48000, 3)
            guest.listen(2, 3)
            program.qmp("cont")
            guest.run(OUTPUT)
            told = False
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                time.sleep(0.01)
                told = told or bool(guest.stream(OUTPUT, 3, 1) & 4)
            position = guest.stream(OUTPUT, 4, 4)
            guest.run(OUTPUT, False)
            program.qmp("quit")
            program.process.wait(20)
            seen.append((told, position < len(data)))
        with wave.open(str(path)) as file:
            form, sound = file.getparams()[:3], file.readframes(1 << 20).lstrip(b"\0")
        assert form == (2, 2, 48000)
        # QEMU's mixing rounds; and both go round and round.
        heard = [int.from_bytes(sound[at : at + 2], "little", signed=True) for at in range(0, 4000, 2)]
        meant = [int.from_bytes(data[at : at + 2], "little", signed=True) for at in range(0, 4000, 2)]
        assert max(abs(a - b) for a, b in zip(heard, meant, strict=True)) <= 1, peer
    assert seen[0] == seen[1]


def test_ac97(tmp_path: Path) -> None:
    data = random.Random(4).randbytes(192 * 40)
    firmware = tmp_path / "firmware"
    firmware.write_bytes(bytes(0xFFF0) + b"\xfa\xf4\xeb\xfd" + bytes(12))
    mixers = (0x02, 0x18, 0x1A, 0x1C, 0x26, 0x28, 0x2A, 0x2C, 0x32, 0x34, 0x7C, 0x7E)
    seen = []
    for peer in (False, True):
        path = tmp_path / f"ac97{peer}"
        arguments = ("-machine", "pc", "-m", "64", "-audiodev", f"wav,id=a,path={path},out.frequency=48000")
        arguments += ("-device", "AC97,addr=5,audiodev=a", "-bios", str(firmware))
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            function = PciFunction(program.guest, 5 << 3)
            function.enable()
            mixer, masters = function.bars[0], function.bars[1]
            guest = program.guest
            found: list[Any] = [[guest.port_in(mixer + each, 2) for each in mixers]]
            rnd = random.Random(8)
            for _ in range(150):
                guest.port_out(mixer + rnd.choice((0, *mixers)), 2, rnd.getrandbits(16))
                found.append([guest.port_in(mixer + each, 2) for each in mixers])
            guest.port_out(mixer, 2, 0)
            guest.port_out(mixer + 0x02, 2, 0)
            guest.port_out(mixer + 0x18, 2, 0)
            for at in range(4):
                guest.write(0x100000 + 8 * at, (0x110000 + 1920 * at).to_bytes(4, "little") + b"\xc0\3\0\x80")
            guest.write(0x110000, data)
            guest.port_out(masters + 0x10, 4, 0x100000)
            guest.port_out(masters + 0x15, 1, 3)
            found.append([guest.port_in(masters + 0x10 + each, 4) for each in (0, 4, 8)])
            program.qmp("cont")
            guest.port_out(masters + 0x1B, 1, 0x1D)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                time.sleep(0.01)
            found.append([guest.port_in(masters + each, 4) for each in (0x10, 0x14, 0x18, 0x30)])
            guest.port_out(masters + 0x1B, 1, 0)
            program.qmp("quit")
            program.process.wait(20)
            seen.append(found)
        with wave.open(str(path)) as file:
            sound = file.readframes(1 << 20).lstrip(b"\0")
        assert len(sound) > 1000, peer
    for own, theirs in zip(*seen, strict=True):
        assert own == theirs


@pytest.mark.parametrize("model", ["hda", "ac97"])
def test_a_card_with_a_backend_of_its_own(tmp_path: Path, model: str) -> None:
    seen = []
    for peer in (False, True):
        arguments = ("-machine", "pc", "-audio", f"none,model={model}")
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            tree = program.qmp("human-monitor-command", {"command-line": "info qtree"}).replace("\r", "")
            seen.append(
                [line for line in tree.split("\n") if any(word in line for word in ("hda", "AC97", '"audiodev0'))]
            )
    assert seen[0] == seen[1]


def test_vnc_clients_hear(tmp_path: Path) -> None:
    firmware = tmp_path / "firmware"
    firmware.write_bytes(bytes(0xFFF0) + b"\xfa\xf4\xeb\xfd" + bytes(12))
    for peer in (False, True):
        arguments = ("-machine", "pc", "-audiodev", "none,id=a", "-device", "AC97,addr=5,audiodev=a")
        arguments += ("-bios", str(firmware), "-vnc", f"unix:{tmp_path}/vnc{peer},audiodev=a")
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            client = VncTestClient(tmp_path / f"vnc{peer}")
            client.join()
            client.encodings(0, -259)
            client.ask()
            while -259 not in [encoding for _place, encoding, _data in client.update()]:
                client.ask()
            client.send(pack(">BBHBBI", 255, 1, 2, 3, 2, 48000) + pack(">BBH", 255, 1, 0))
            program.qmp("query-vnc")
            function = PciFunction(program.guest, 5 << 3)
            function.enable()
            mixer, masters = function.bars[0], function.bars[1]
            guest = program.guest
            guest.port_out(mixer + 0x02, 2, 0)
            guest.port_out(mixer + 0x18, 2, 0x0808)
            for at in range(32):
                guest.write(0x100000 + 8 * at, pack("<II", 0x110000, 0x8000))
            guest.write(0x110000, b"\0\x10" * 0x8000)
            guest.port_out(masters + 0x10, 4, 0x100000)
            guest.port_out(masters + 0x15, 1, 31)
            program.qmp("cont")
            guest.port_out(masters + 0x1B, 1, 1)
            heard = b""
            begun = False
            while len(heard) < 9600:
                head = client.read(4)
                if head == b"\xff\1\0\2":
                    heard += client.read(int.from_bytes(client.read(4), "big"))
                elif not head[0]:
                    client.update(head=head)
                else:
                    assert head in (b"\xff\1\0\1", b"\xff\1\0\0")
                    begun = begun or head[-1] == 1
            assert begun
            level = int.from_bytes(heard[-2:], "little")
            assert abs(level - 0x1000) < 0x900, (peer, level)
            client.close()
