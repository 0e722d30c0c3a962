"""Copying in order: what goes wrong in the thread that reads ends the copy."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.block.copy.chunk import ChunkCopier
from qobra.block.copy.in_order import copy_in_order
from qobra.testing.images import ImageLab


@pytest.mark.parametrize("unit", [0, 4096])
def test_what_is_copied_is_the_source(tmp_path: Any, unit: int) -> None:
    lab = ImageLab(tmp_path)
    for name in "ab":
        lab.create(name, size=9 << 20)
    with lab.open("a") as source, lab.open("b") as target:
        source.write(0, b"begin" + bytes(70000) + b"middle")
        source.write(3 << 20, b"z" * (2 << 20))
        source.write((9 << 20) - 3, b"end")
        copy_in_order(ChunkCopier(source.node, target.node, detect_zeroes=unit, target_is_zero=bool(unit)))
        assert target.content() == source.content()


def test_a_defect_in_the_reader_is_no_success(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = ImageLab(tmp_path)
    for name in "ab":
        lab.create(name, size=1 << 20)

    def broken(*_arguments: Any) -> Any:
        raise RuntimeError("a defect")

    with lab.open("a") as source, lab.open("b") as target:
        source.write(0, b"x" * 512)
        copier = ChunkCopier(source.node, target.node)
        monkeypatch.setattr(copier, "read_pieces", broken)
        with pytest.raises(RuntimeError, match="a defect"):
            copy_in_order(copier)
