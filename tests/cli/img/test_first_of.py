"""Comparing by threads finds the same first difference as comparing piece by piece."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from qobra.cli._img import _differences
from qobra.cli._img._differences import Side, SideError, candidates, first_of
from qobra.native import compiled
from qobra.testing.images import ImageLab

SIZE = 5 << 20


@pytest.fixture(params=[True, False], ids=["compiled", "pure"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not request.param:
        monkeypatch.setattr(_differences, "_native", None)
    elif compiled("matcher") is None:
        pytest.skip("there is no compiled form")
    return iter(())


@pytest.mark.parametrize("seed", range(8))
def test_the_first_difference(tmp_path: Any, seed: int, form: None, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(seed)
    monkeypatch.setattr(_differences, "BATCH", random_.choice([1 << 20, 2 << 20, 64 << 20]))
    content = bytearray(random_.randbytes(SIZE))
    for _ in range(4):
        start = random_.randrange(SIZE)
        content[start : start + 70_000] = bytes(len(content[start : start + 70_000]))
    other = bytearray(content)
    changed = sorted(random_.randrange(SIZE) for _ in range(random_.randrange(4)))
    for at in changed:
        other[at] ^= 1
    lab = ImageLab(tmp_path)
    for name, driver, data in (("one", "qcow2", content), ("two", "raw", other)):
        lab.create(name, driver, size=SIZE)
        with lab.open(name, driver) as disk:
            for start in range(0, SIZE, 65536):
                if any(data[start : start + 65536]):
                    disk.write(start, bytes(data[start : start + 65536]))
    with lab.open("one", read_only=True) as one, lab.open("two", "raw", read_only=True) as two:
        sides = Side(one.node, "one"), Side(two.node, "two")
        found = list(first_of(*sides, candidates(*sides, 0, SIZE)))
    differing = [offset for _end, offset in found if offset >= 0]
    assert differing[:1] == [at & -512 for at in changed[:1]]
    assert [end for end, _offset in found] == sorted(end for end, _offset in found)


def test_what_differs_before_a_map_that_fails_is_found(tmp_path: Any, form: None) -> None:
    lab = ImageLab(tmp_path)
    for name, at in (("one", 0), ("two", 4096)):
        (tmp_path / name).write_bytes(bytes(at) + b"x" * (SIZE - at))
    with lab.open("one", "raw", read_only=True) as one, lab.open("two", "raw", read_only=True) as two:
        sides = Side(one.node, "one"), Side(two.node, "two")

        def broken() -> Iterator[tuple[int, int, Any, Any]]:
            yield from candidates(*sides, 0, 1 << 20)
            raise SideError(sides[0], 1 << 20, OSError(5, "Input/output error"), is_map=True)

        found = first_of(*sides, broken())
        assert next(found)[1] == 0
        with pytest.raises(SideError):
            list(found)


@pytest.mark.skipif(compiled("matcher") is None, reason="there is no compiled form")
def test_the_matcher_tells_the_first_pair_that_cannot_be_read(tmp_path: Any) -> None:
    native: Any = compiled("matcher")
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    with open(path, "rb") as stream:
        fd = stream.fileno()
        good, bad = (fd, 0, fd, 0, 9000), (fd, 0, -1, 0, 10)
        for pairs, suspect in (([good, good], -1), ([good, bad, bad], 1), ([(fd, 0, fd, 1, 5000)], 0), ([], -1)):
            matcher = native.Matcher(pairs)
            matcher.work()
            assert matcher.suspect == suspect
        for wrong in ((fd, -1, fd, 0, 1), (fd, 0, fd, 0, -1)):
            with pytest.raises(ValueError):
                native.Matcher([wrong])
