from __future__ import annotations

import random
from typing import Any

import pytest

from qobra.block.copy.zeroes import pure_read_pieces, pure_zero_pieces
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


READERS = [pure_read_pieces] if _compiled is None else [pure_read_pieces, _compiled.read_pieces]


@pytest.mark.parametrize("read_pieces", READERS)
def test_pieces_are_read_from_a_file_and_past_its_end(tmp_path: Any, read_pieces: Any) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10 + bytes(22) + b"y" * 8)
    buffer = bytearray(b"z" * 64)
    with open(path, "rb") as file:
        assert read_pieces(file.fileno(), buffer, 50, 4, 8, 4) == [
            (0, 12, False),
            (12, 16, True),
            (28, 8, False),
            (36, 14, True),
        ]
        assert buffer == b"x" * 6 + bytes(22) + b"y" * 8 + bytes(14) + b"z" * 14
        assert read_pieces(file.fileno(), buffer, 8, 12, 0) == [(0, 8, False)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_pieces(-1, buffer, 8, 0, 0)


@pytest.mark.skipif(_compiled is None, reason="the compiled form was not built")
def test_the_compiled_reader_stays_inside_of_its_buffer() -> None:
    with pytest.raises(ValueError, match="beyond the buffer"):
        _compiled.read_pieces(0, bytearray(8), 9, 0, 0)
    with pytest.raises(ValueError, match="beyond the buffer"):
        _compiled.zero_pieces(bytearray(8), 9, 4)
    for unit, phase in ((0, 0), (-1, 0), (1 << 62, 0), (4, -1), (4, 1 << 62)):
        with pytest.raises(ValueError, match="cannot be"):
            _compiled.zero_pieces(bytearray(8), 8, unit, phase)
    assert _compiled.zero_pieces(bytearray(8), 0, 4) == []
