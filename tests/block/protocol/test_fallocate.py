"""fallocate(2), compiled and through ctypes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qobra.block.protocol._allocation import pure_fallocate
from qobra.native import compiled

_compiled = compiled("host")
FORMS = [pure_fallocate] if _compiled is None else [pure_fallocate, _compiled.fallocate]
KEEP_SIZE, PUNCH_HOLE = 1, 2


@pytest.mark.parametrize("fallocate", FORMS)
def test_modes_offsets_and_errors(tmp_path: Path, fallocate: Callable[[int, int, int, int], None]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8192)
    with open(path, "r+b") as stream:
        fd = stream.fileno()
        try:
            fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 4096, 4096)
        except OSError as error:
            pytest.skip(f"no holes here: {error}")
        assert path.read_bytes() == b"x" * 4096 + bytes(4096)
        fallocate(fd, 0, 8192, 4096)
        assert os.fstat(fd).st_size == 12288
        with pytest.raises(OSError) as caught:
            fallocate(fd, 0, -1, 1)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError) as caught:
        fallocate(-1, 0, 0, 1)
    assert caught.value.errno == errno.EBADF
