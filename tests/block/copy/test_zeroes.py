from __future__ import annotations

import random
from typing import Any

import pytest

from qobra.block.copy.zeroes import pure_zero_pieces
from qobra.native import compiled

_compiled = compiled("zeroes")
FORMS = [pure_zero_pieces] if _compiled is None else [pure_zero_pieces, _compiled.zero_pieces]


@pytest.mark.parametrize("zero_pieces", FORMS)
@pytest.mark.parametrize("seed", range(40))
def test_pieces_are_exact(seed: int, zero_pieces: Any) -> None:
    random_ = random.Random(seed)
    for _ in range(50):
        unit = random_.choice([4, 8, 16])
        size = random_.randrange(1, 200)
        phase = random_.randrange(unit)
        buffer = bytearray(size + random_.randrange(20))
        for _ in range(random_.randrange(12)):
            start = random_.randrange(len(buffer))
            buffer[start : start + random_.randrange(1, 20)] = b"x" * min(19, len(buffer) - start)
        position = 0
        last = None
        for start, length, zero in zero_pieces(buffer, size, unit, phase):
            assert start == position and length > 0 and zero != last
            position, last = start + length, zero
            if zero:
                assert not any(buffer[start : start + length])
                continue
            at = start
            while at < start + length:
                end = min(start + length, at + unit - (at + phase) % unit)
                assert any(buffer[at:end])
                at = end
        assert position == size
