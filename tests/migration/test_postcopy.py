"""Memory that follows a guest which runs at the destination already, and channels that break meanwhile."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.machine.memory import Ram
from qobra.migration.pacer import Pacer
from qobra.migration.page_set import PageSet
from qobra.migration.postcopy import Postcopy
from qobra.migration.ram import RUN, RamBlock, RamSender
from qobra.migration.return_path import ARRIVED, TAKEN_OVER

PAGE = 4096
DEADLINE_S = 60
MEMORY = 8 << 20


@pytest.mark.parametrize("capabilities", [(), ("compress",), ("xbzrle",), ("multifd",), ("release-ram",)])
def test_the_guest_runs_before_its_memory_is_there(sides: Any, capabilities: tuple[str, ...]) -> None:
    both = sides("postcopy-ram", *capabilities)
    both.start_late()
    assert both.source.run_state.state == "finish-migrate"
    ram = both.destination.board.memory
    places = random.Random(2).sample(range(1 << 20, MEMORY - 64), 20)
    for place in places:
        with both.destination.control:
            assert ram.read(place, 64) == both.content[place - (1 << 20) :][:64]
            ram.write(place, b"\xaa" * 64)
    both.content = bytearray(both.content)  # type: ignore[assignment]
    for place in places:
        both.content[place - (1 << 20) : place - (1 << 20) + 64] = b"\xaa" * 64  # type: ignore[index]
    info = both.source.migration.describe()
    assert info["status"] == "postcopy-active" and info["ram"]["postcopy-requests"] > 0
    assert info["ram"]["remaining"] > 0
    both.let_go()
    both.wait()
    assert both.source.migration.describe()["ram"]["remaining"] == 0
    assert both.events[both.source][-5:] == ["active", "STOP", "MIGRATION_PASS", "postcopy-active", "completed"]
    assert both.events[both.destination] == ["setup", "active", "postcopy-active", "RESUME", "completed"]
    if "release-ram" in capabilities:
        assert not any(both.source.board.memory.read(MEMORY - (1 << 20), 1 << 20))


def test_what_changes_before_the_switch_comes_again(sides: Any) -> None:
    both = sides("postcopy-ram")
    both.call(both.source, "migrate-set-parameters", max_bandwidth=8 << 20, downtime_limit=1)
    both.start()
    both.until(both.source, "active")
    stop = threading.Event()

    def write() -> None:
        chance = random.Random(3)
        while not stop.is_set():
            with both.source.control:
                if both.source.run_state.running:
                    both.source.board.memory.write(chance.randrange(1 << 20, MEMORY - 8), chance.randbytes(8))
            time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.05)
    both.call(both.source, "migrate-start-postcopy")
    both.until(both.source, "completed", "failed")
    stop.set()
    writer.join()
    both.content = both.source.board.memory.read(1 << 20, len(both.content))
    both.wait()


def test_paused_and_recovered_again_and_again(sides: Any) -> None:
    both = sides("postcopy-ram", "postcopy-blocktime")
    source, destination = both.source, both.destination
    for machine in (source, destination):
        with pytest.raises(QobraError, match="only supported during postcopy-active state"):
            both.call(machine, "migrate-pause")
        with pytest.raises(QobraError, match="Migrate recover can only be run when postcopy is paused"):
            both.call(machine, "migrate-recover", uri="unix:/nowhere", oob=True)
    with pytest.raises(QobraError, match="Cannot resume if there is no paused migration"):
        both.call(source, "migrate", uri="unix:/nowhere", resume=True)
    both.start_late()
    found: list[bytes] = []
    for turn in range(3):
        both.call(destination if turn == 1 else source, "migrate-pause", oob=True)
        both.until(source, "postcopy-paused")
        both.until(destination, "postcopy-paused")
        place = 2 << 20 | turn << 16
        waiting = threading.Thread(target=read, args=(destination, place, found))
        waiting.start()
        with pytest.raises(QobraError, match="There's a migration process in progress"):
            both.call(source, "migrate", uri="unix:/nowhere")
        both.call(source, "migrate", uri="unix:/nonexistent/way", resume=True)
        way = both.way()
        # Whoever waits for a page holds the strand.
        both.call(destination, "migrate-recover", uri=both.way(), oob=True)
        both.call(destination, "migrate-recover", uri=way, oob=True)
        both.until(source, "postcopy-paused")
        deadline = time.monotonic() + DEADLINE_S
        while both.status(source) != "postcopy-active" and time.monotonic() < deadline:
            if both.status(source) == "postcopy-paused":
                try:
                    both.call(source, "migrate", uri=way, resume=True)
                except QobraError:
                    pass
            time.sleep(0.01)
        waiting.join(DEADLINE_S)
        assert found[turn] == both.content[place - (1 << 20) :][:16]
    both.let_go()
    both.wait()
    assert both.destination.migration.describe()["postcopy-blocktime"] > 0
    assert len(both.destination.migration.describe()["postcopy-vcpu-blocktime"]) == 1
    assert both.events[source].count("postcopy-recover") == both.events[destination].count("postcopy-recover") == 3


def read(machine: Machine, address: int, found: list[bytes]) -> None:
    with machine.control:
        found.append(bytes(machine.board.memory.read(address, 16)))


def test_bitmaps_follow_memory_and_survive_a_pause(sides: Any) -> None:
    both = sides("postcopy-ram", "dirty-bitmaps")
    for machine in (both.source, both.destination):
        with machine.control:
            machine.block.add_node({"driver": "null-co", "node-name": "n", "size": 1 << 20})
    both.call(both.source, "block-dirty-bitmap-add", node="n", name="b", granularity=4096)
    both.source.block.graph.nodes["n"].bitmaps["b"].set(8192, 4096)
    both.start_late()
    both.destination.block.graph.nodes["n"].bitmaps["b"].mark(65536, 1)
    both.call(both.source, "migrate-pause")
    both.until(both.source, "postcopy-paused")
    both.until(both.destination, "postcopy-paused")
    way = both.way()
    both.call(both.destination, "migrate-recover", uri=way)
    both.let_go()
    both.call(both.source, "migrate", uri=way, resume=True)
    both.wait()
    bitmap = both.destination.block.graph.nodes["n"].bitmaps["b"]
    assert list(bitmap.dirty_ranges()) == [(8192, 4096), (65536, 4096)] and not bitmap.busy


def test_what_cannot_come_late_is_not_held_up_while_the_guest_stands_still(sides: Any) -> None:
    both = sides("postcopy-ram", max_bandwidth=1)
    both.start()
    both.call(both.source, "migrate-start-postcopy")
    both.wait()


@pytest.mark.parametrize("paused", [False, True])
def test_cancelled_when_the_guest_runs_there(sides: Any, paused: bool) -> None:
    both = sides("postcopy-ram")
    both.start_late()
    if paused:
        both.call(both.source, "migrate-pause")
        both.until(both.source, "postcopy-paused")
    both.call(both.source, "migrate_cancel")
    assert both.source.migration.wait(DEADLINE_S)
    assert both.status(both.source) == "cancelled" and both.source.run_state.state == "postmigrate"
    both.until(both.destination, "postcopy-paused")
    assert both.destination.run_state.running


def test_a_machine_that_ends_lets_go_who_waits(sides: Any) -> None:
    both = sides("postcopy-ram")
    both.start_late()
    both.call(both.source, "migrate-pause")
    both.until(both.destination, "postcopy-paused")
    waiting = threading.Thread(target=read, args=(both.destination, 3 << 20, []))
    waiting.start()
    both.destination.migration.close()
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive()


def test_it_takes_both_sides_and_a_way_back(sides: Any, capsys: pytest.CaptureFixture[str]) -> None:
    both = sides("postcopy-ram")
    both.call(both.source, "migrate", uri="exec:cat >/dev/null")
    assert both.source.migration.wait(DEADLINE_S)
    assert both.source.migration.describe()["error-desc"] == "Unable to open return-path for postcopy"
    both.call(
        both.destination, "migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": False}]
    )
    both.start()
    assert both.source.migration.wait(DEADLINE_S) and both.destination.migration.wait(DEADLINE_S)
    assert (both.status(both.source), both.status(both.destination)) == ("failed", "failed")
    assert both.source.run_state.running
    assert "Capability postcopy-ram is off, but received capability is on" in capsys.readouterr().err


def test_while_memory_comes_the_machine_does_not_move_on(sides: Any) -> None:
    both = sides("postcopy-ram")
    both.start_late()
    with pytest.raises(QobraError, match="Guest is waiting for an incoming migration"):
        both.call(both.destination, "migrate", uri="unix:/nowhere")
    both.let_go()
    both.wait()


def test_sets_of_pages_are_as_sets_are() -> None:
    chance = random.Random(4)
    for _ in range(30):
        pages, model = PageSet([40, 17]), set()
        for _ in range(60):
            block = chance.randrange(2)
            size = (40, 17)[block]
            first = chance.randrange(size)
            count = chance.randrange(1, size - first + 1)
            places = {(block, page) for page in range(first, first + count)}
            if chance.random() < 0.5:
                pages.add(block, first, count)
                model |= places
            else:
                pages.remove(block, first, count)
                model -= places
            assert pages.count == len(model) and pages.any(block, first, count) == bool(model & places)
            assert {(b, p) for b, f, c in pages.all_runs() for p in range(f, f + c)} == model
            run = pages.next_run(5)
            assert (run is None) == (not model)
            if run is not None:
                assert (run[0], run[1]) == min(model) and 1 <= run[2] <= 5
                assert {(run[0], page) for page in range(run[1], run[1] + run[2])} <= model


class Told:
    """A channel on which ``message`` comes."""

    def __init__(self, message: bytes) -> None:
        self._rest = message

    def read(self, length: int) -> bytes:
        found, self._rest = self._rest[:length], self._rest[length:]
        return found


@pytest.mark.parametrize(
    ("block", "first", "count", "exists"),
    [(0, 0, 4096, True), (0, 1, 4096, True), (0, 0, 4097, False), (0, 2, 4096, False), (1, 0, 1, False)],
)
def test_a_destination_asks_for_so_much_at_once_and_for_what_there_is(
    block: int, first: int, count: int, exists: bool
) -> None:
    ram = Ram("m", 4097 * 4096)
    sender = RamSender([RamBlock("m", ram, shared=False, late=True)], lambda _block: False)
    postcopy = Postcopy(sender, PageSet([4097]), Pacer(lambda: 0, lambda: 0), release=False)
    channel: Any = Told(bytes((ARRIVED,)) + RUN.pack(block, first, count) + bytes((TAKEN_OVER,)))
    if exists:
        postcopy.finish(channel)
    else:
        with pytest.raises(QobraError, match="asks for what there is not"):
            postcopy.finish(channel)
