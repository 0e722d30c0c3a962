"""Snapshots, bitmaps and exports beside NBD clients that read and write: no request is lost or misplaced."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qobra.machine.machine import Machine
from qobra.nbd import connect
from qobra.qmp import dispatch
from qobra.testing.waiting import wait_until

MIB = 1 << 20
SIZE = 8 * MIB
CLIENTS = 3


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_changes(tmp_path: Path, peer: Callable[[str], str], seed: int, soak_scale: int) -> None:
    image_tool = peer("qemu-img")
    source = random.Random(seed)
    machine = Machine()

    def call(command: str, **arguments: Any) -> Any:
        with machine.control:
            return dispatch.call(machine, command, {key.replace("_", "-"): value for key, value in arguments.items()})

    def create(name: str) -> dict[str, Any]:
        subprocess.run([image_tool, "create", "-q", "-f", "qcow2", tmp_path / name, str(SIZE)], check=True)
        return {"driver": "qcow2", "node_name": name, "file": {"driver": "file", "filename": str(tmp_path / name)}}

    path = str(tmp_path / "nbd.sock")
    call("blockdev-add", **create("layer0"))
    call("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
    call("block-export-add", type="nbd", id="e", node_name="layer0", name="disk", writable=True)

    stop = threading.Event()
    failures: list[BaseException] = []
    model = bytearray(SIZE)

    def work(number: int) -> None:
        own = random.Random(seed * 100 + number)
        base, share = number * SIZE // CLIENTS, SIZE // CLIENTS
        try:
            with connect(f"nbd+unix:///disk?socket={path}", timeout=60) as client:
                while not stop.is_set():
                    requests = []
                    for _ in range(8):
                        length = own.choice((512, 4096, 65536, 150_000))
                        offset = base + own.randrange(0, share - length)
                        if own.randrange(2):
                            data = own.randbytes(length)
                            client.pwrite(data, offset)
                            model[offset : offset + length] = data
                        else:
                            requests.append((client.aio_pread(length, offset), offset, length))
                            requests[-1][0].result(60)
                            assert requests[-1][0].value == model[offset : offset + length]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    top = "layer0"
    try:
        for turn in range(1, 8 * soak_scale + 1):
            time.sleep(source.random() * 0.03)
            match source.randrange(3):
                case 0 if turn < 100:
                    overlay = create(f"layer{turn}")
                    call("blockdev-add", **{**overlay, "backing": None})
                    call("blockdev-snapshot", node=top, overlay=f"layer{turn}")
                    top = f"layer{turn}"
                case 1:
                    call("block-dirty-bitmap-add", node=top, name=f"bitmap{turn}")
                    time.sleep(source.random() * 0.01)
                    call("block-dirty-bitmap-remove", node=top, name=f"bitmap{turn}")
                case _:
                    call("block-export-add", type="nbd", id="ro", node_name=top, name="ro")
                    with connect(f"nbd+unix:///ro?socket={path}") as reader:
                        reader.pread(MIB, 0)
                    call("block-export-del", id="ro", mode="hard")
                    wait_until(lambda: len(call("query-block-exports")) <= 1)
    finally:
        stop.set()
        for thread in threads:
            thread.join(100)
    assert not failures, failures
    with connect(f"nbd+unix:///disk?socket={path}") as client:
        assert client.pread(SIZE, 0) == model
    machine.close()
    assert subprocess.run([image_tool, "check", "-q", tmp_path / top]).returncode == 0
