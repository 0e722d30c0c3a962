"""Data in a file in the place of a buffer."""

from __future__ import annotations

import os

import pytest

from qobra.block.copy import carrier as carrier_module
from qobra.block.copy.carrier import Carrier, PureMover, ReadFailed
from qobra.block.copy.old_blocks import OldBlocks, PureOldBlocks
from qobra.block.in_files import InFiles


@pytest.fixture
def files(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 16)
    target.write_bytes(b"x" * 8192)
    fds = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR)
    yield *fds, target
    for fd in fds:
        os.close(fd)


@pytest.fixture(params=["compiled", "pure"])
def carrier(request, monkeypatch):
    if request.param == "pure":
        monkeypatch.setattr(carrier_module, "Mover", PureMover)
    elif carrier_module.Mover is PureMover:
        pytest.skip("there is no compiled form")
    made = Carrier()
    yield made
    made.close()


@pytest.mark.parametrize("share", [1, 2, 12])
def test_a_slice_is_copied(files, carrier, share):
    source, target, path = files
    carrier.share = share
    data = InFiles([(source, 256, 700), (source, 0, 324)], carrier)
    assert len(data) == 1024
    assert len(data[690:710]) == 20
    data[690:710].copy_to(target, 100)
    expected = (bytes(range(256)) * 16)[256 + 690 : 256 + 700] + bytes(range(10))
    assert path.read_bytes()[99:121] == b"x" + expected + b"x"
    data[5:5].copy_to(target, 100)  # nothing
    assert path.read_bytes()[99:121] == b"x" + expected + b"x"


def test_past_the_end_are_zeroes(files, carrier):
    source, target, path = files
    InFiles([(source, 4000, 1000)], carrier).copy_to(target, 0)
    assert path.read_bytes()[:1001] == (bytes(range(256)) * 16)[4000:] + bytes(904) + b"x"


@pytest.mark.parametrize("form", [OldBlocks, PureOldBlocks])
def test_what_is_known_better_takes_its_place(files, carrier, form):
    source, target, path = files
    old = form(1 << 20, 16, 1 << 20, [(0, 1 << 20)])
    assert old.keep(8192, b"k" * 4096)
    InFiles([(source, 0, 4096)], carrier, old, 6144)[1024:].copy_to(target, 0)
    content = path.read_bytes()
    assert content[:1024] == (bytes(range(256)) * 16)[1024:2048]
    assert content[1024:3072] == b"k" * 2048
    assert content[3072:3073] == b"x"


def test_which_side_failed_is_told(files, carrier, tmp_path):
    source, target, _path = files
    writes_only = os.open(tmp_path / "target", os.O_WRONLY)
    with pytest.raises(ReadFailed):
        InFiles([(writes_only, 0, 10)], carrier).copy_to(target, 0)
    os.close(writes_only)
    with pytest.raises(OSError) as caught:
        InFiles([(target, 0, 10)], carrier).copy_to(source, 0)
    assert not isinstance(caught.value, ReadFailed)
