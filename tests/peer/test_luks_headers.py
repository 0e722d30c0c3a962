"""Damaged LUKS headers: Qobra and QEMU open the same ones, and say the same of the others."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qobra.cli.img import main

pytestmark = [pytest.mark.soak, pytest.mark.peer("qemu-img")]

SEED = int(os.environ.get("QOBRA_STRESS_SEED", "0"))
SLOTS = [208 + 48 * number for number in range(8)]
NUMBERS = [104, 108, 164, *(slot + field for slot in SLOTS for field in (0, 4, 40, 44))]
"""Where a header has numbers of four bytes: of the disk, the key, rounds and the slots."""
VALUES = [0, 1, 2, 7, 8, 32, 64, 512, 2048, 4000, 0xAC71F3, 0xDEAD]
TEXTS = [8, 40, 72]
WORDS = [
    b"aes",
    b"serpent",
    b"xts-plain64",
    b"cbc-essiv:sha256",
    b"ecb",
    b"xts-essiv:sha256",
    b"sha1",
    b"rot13",
    b"-",
    b"",
]
OPTIONS = "driver=qcow2,encrypt.key-secret=s,file.filename=bad"
SECRET = ["--object", "secret,id=s,data=abc"]


def _damaged(good: bytes, chosen: random.Random) -> Iterator[bytes]:
    header = good.index(b"LUKS\xba\xbe")
    while True:
        bad = bytearray(good)
        if chosen.random() < 0.85:
            at = header + chosen.choice(NUMBERS)
            bad[at : at + 4] = chosen.choice([*VALUES, chosen.randrange(1 << 31)]).to_bytes(4, "big")
        else:
            at = header + chosen.choice(TEXTS)
            bad[at : at + 32] = chosen.choice(WORDS).ljust(32, b"\0")
        yield bytes(bad)


def _said(status: int, output: str) -> str:
    """What is wrong, without what it is wrong with."""
    if status == 0:
        return ""
    text = output.strip().removeprefix("qemu-img: ").removeprefix(f"Could not open '{OPTIONS}': ")
    # QEMU tells numbers of 32 bits with their sign, and of the key sizes it refuses the half that each key of XTS has.
    return re.sub(r"(stripes|key size) -?\d+", r"\1", text)


def test_damaged_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], soak_scale: int
) -> None:
    monkeypatch.chdir(tmp_path)
    made = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *SECRET, "-o", made, "good", "1M"], check=True)
    chosen = random.Random(SEED)
    damaged = _damaged((tmp_path / "good").read_bytes(), chosen)
    command = ["info", *SECRET, "--image-opts", OPTIONS]
    for _ in range(50 if soak_scale == 1 else 4 * soak_scale):
        bad = next(damaged)
        (tmp_path / "bad").write_bytes(bad)
        peer = subprocess.run(["qemu-img", *command], capture_output=True, text=True, check=False, timeout=60)
        capfd.readouterr()
        status = main(command, "qemu-img")
        assert _said(status, capfd.readouterr().err) == _said(peer.returncode, peer.stderr)
