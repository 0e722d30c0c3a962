"""Which pages are sent, when, and which are left for later."""

from __future__ import annotations

import pytest

from qobra.machine.memory import Ram
from qobra.migration.page_coding import PAGE
from qobra.migration.ram import RUN, RamBlock, RamSender
from qobra.migration.stream import PAGES, ZEROES

PAGES_AT_ONCE = 256
UNIT = 16


class Records:
    """A stream as a list of what kind of pages came, and which."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int, int, int]] = []

    def record(self, kind: int, head: bytes, *_payload: bytes | memoryview) -> None:
        self.found.append((kind, *RUN.unpack(head)))


class Enough(Exception):
    """The guest is to go on elsewhere now."""


def test_what_the_first_pass_had_not_come_to_is_left_for_later_whatever_it_holds() -> None:
    names = {"a": True, "b": True, "c": True, "early": False}
    blocks = [
        RamBlock(name, Ram(name, 2 * PAGES_AT_ONCE * PAGE), shared=False, late=late) for name, late in names.items()
    ]
    sender = RamSender(blocks, lambda _block: False)
    looks = iter(range(4))

    def stop() -> None:
        if next(looks) == 3:  # all of "a" and half of "b" were looked at
            raise Enough

    with pytest.raises(Enough):
        sender.send_pass(Records(), stop)
    for block in blocks[:2]:
        block.ram.view[20 * PAGE] = 1
    stream = Records()
    later = sender.leave_for_later(stream, lambda: None)
    # What was not looked at is zero here, which need not be so on the other side.
    left = [(0, UNIT, UNIT), (1, UNIT, UNIT), (1, PAGES_AT_ONCE, PAGES_AT_ONCE), (2, 0, 2 * PAGES_AT_ONCE)]
    assert list(later.all_runs()) == left
    assert sender.remaining == later.count * PAGE
    assert stream.found == [(ZEROES, 3, 0, PAGES_AT_ONCE), (ZEROES, 3, PAGES_AT_ONCE, PAGES_AT_ONCE)]


def test_what_cannot_come_late_and_was_sent_is_sent_where_it_changed() -> None:
    blocks = [RamBlock("early", Ram("early", PAGES_AT_ONCE * PAGE), shared=False, late=False)]
    sender = RamSender(blocks, lambda _block: False)
    sender.send_pass(Records(), lambda: None)
    blocks[0].ram.view[40 * PAGE] = 1
    stream = Records()
    assert not sender.leave_for_later(stream, lambda: None).count
    assert [run for run in stream.found if run[0] == PAGES] == [(PAGES, 0, 40, 1)]
    assert not sender.remaining
