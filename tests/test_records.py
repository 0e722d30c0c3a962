"""Records are named tuples, with typing left out."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qobra.records import NamedTuple


class _Point(NamedTuple):
    x: int
    y: int = 7

    def total(self) -> int:
        return self.x + self.y


def test_fields_defaults_and_methods():
    point = _Point(1)
    assert point == (1, 7) and point.total() == 8 and point._replace(x=2) == (2, 7)
    assert repr(point) == "_Point(x=1, y=7)"
    with pytest.raises(AttributeError):
        point.x = 3
    with pytest.raises(AttributeError):
        point.z = 3


def test_the_image_tools_start_without_typing():
    code = f"""
import sys
sys.path[:] = {sys.path!r}
import qobra.cli._img.info, qobra.block.format.qcow2
print(*(name for name in ("typing", "re", "asyncio", "logging", "argparse") if name in sys.modules))
"""
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
