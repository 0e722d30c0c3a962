from __future__ import annotations

import os
import random
import threading
import zlib
from typing import Any

import pytest

from qobra.block.format.qcow2.compressed import (
    DEFLATE_BITS,
    ZLIB,
    compress,
    compress_clusters,
    pure_deflate,
    quick_deflate,
)
from qobra.native import compiled

_compiled = compiled("deflate")


def deflate(data: bytes, level: int | None) -> bytes | None:
    return compress(data, ZLIB, level)


def pure_form(data: bytes, level: int | None) -> bytes:
    return quick_deflate(data) if level is None else pure_deflate(data, level)


FORMS = [pure_form] if _compiled is None else [pure_form, deflate]
SOURCE = b"".join(open(module, "rb").read() for module in (random.__file__, threading.__file__))
WINDOW = 1 << -DEFLATE_BITS


def inflate(packed: bytes, size: int) -> bytes:
    """A few bytes at a time, so that zlib goes by its window of 4 KiB and refuses what is farther away."""
    stream = zlib.decompressobj(DEFLATE_BITS)
    parts = [stream.decompress(packed, 200)]
    while not stream.eof:
        parts.append(stream.decompress(stream.unconsumed_tail, 200))
    assert not stream.unused_data
    data = b"".join(parts)
    assert len(data) == size
    return data


def text(seed: int, size: int) -> bytes:
    """Words of a small vocabulary, some of them changed."""
    random_ = random.Random(seed)
    words = [random_.randbytes(random_.randrange(1, 12)).hex() for _ in range(300)]
    data = bytearray()
    while len(data) < size:
        data += random_.choice(words).encode() + b" "
        if not random_.randrange(20):
            data += random_.randbytes(3)
    return bytes(data[:size])


def contents(seed: int) -> bytes:
    random_ = random.Random(seed)
    size = random_.choice([512, 4096, 65536, 65536, 200_000, 2 << 20])
    kind = seed % 6
    if kind == 0:
        return text(seed, size)
    if kind == 1:  # repeated from afar, also from just as far as is allowed and a byte more
        piece = random_.randbytes(random_.choice([WINDOW - 1, WINDOW, WINDOW + 1, 5000, 300]))
        return (piece * (size // len(piece) + 1))[:size]
    if kind == 2:
        return bytes([random_.choice(b"01") for _ in range(min(size, 65536))])
    if kind == 3:  # long stretches of different statistics
        parts = [text(seed, 9000), bytes(7000), bytes(range(256)) * 20, random_.randbytes(900), b"ab" * 9000]
        random_.shuffle(parts)
        return b"".join(parts)[:65536]
    if kind == 4:  # as few and as skewed symbols as can be
        return bytes(random_.choices(range(40), [2.0**-number for number in range(40)], k=min(size, 65536)))
    return bytes(size - 1) + b"x"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(24))
def test_what_was_compressed_is_read_within_4_kib(seed: int, form: Any) -> None:
    data = contents(seed)
    for level in (None, 1, 6, 9) if len(data) <= 65536 else (None, 1 + seed % 9):
        packed = form(data, level)
        if packed is None:
            assert len(pure_deflate(data, level or 6)) > len(data) * 0.99
            continue
        assert inflate(packed, len(data)) == data


def mixture(random_: random.Random) -> bytes:
    """Pieces of all kinds, one behind another, also of what came before."""
    size = random_.choice([random_.randrange(1, 64), random_.randrange(1, 5000), 65536, random_.randrange(1, 200_000)])
    data = bytearray()
    while len(data) < size:
        length, back = random_.randrange(1, 9000), random_.randrange(1, 6000)
        kind = random_.randrange(6)
        if kind == 0:
            data += random_.randbytes(length)
        elif kind == 1:
            data += bytes(random_.choices(range(random_.randrange(1, 256)), k=length))
        elif kind == 2:
            data += bytes([random_.randrange(256)]) * length
        elif kind == 3:
            data += random_.randbytes(min(back, length)) * (length // back + 1)
        elif kind == 4:
            start = random_.randrange(len(SOURCE) - 9000)
            data += SOURCE[start : start + length]
        else:
            again = bytearray(data[-back:][:length])
            for place in random_.sample(range(len(again)), len(again) // 40):
                again[place] ^= 1 << random_.randrange(8)
            data += again or b"x"
    return bytes(data[:size])


@pytest.mark.parametrize("form", FORMS)
def test_mixtures(form: Any, soak_scale: int) -> None:
    seed = random.randrange(1 << 32)
    random_ = random.Random(seed)
    for number in range(40 * soak_scale):
        data, level = mixture(random_), random_.choice([None, None, *range(1, 10)])
        packed = form(data, level)
        assert packed is None or inflate(packed, len(data)) == data, (seed, number)


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_made_smaller(form: Any) -> None:
    for size in (1, 2, 3, 4, 5, 100, 65536):
        data = os.urandom(size)
        for level in (None, 6):
            packed = form(data, level)
            assert packed is None or len(packed) >= size


@pytest.mark.parametrize("form", FORMS)
def test_small_inputs(form: Any) -> None:
    for size in range(1, 600):
        data = b"abcabcab" * 75
        for level in (None, 6):
            packed = form(data[:size], level)
            assert packed is None or inflate(packed, size) == data[:size]


@pytest.mark.parametrize("form", FORMS)
def test_level_6_is_as_small_as_zlib(form: Any) -> None:
    listing = "".join(
        f"7f{number * 40503 % 65536:04x}000 r-xp /usr/lib/x86_64/part{number // 5}.so\n" for number in range(1500)
    )
    for data in (SOURCE[:65536], text(1, 65536), listing.encode()[:65536]):
        packed = form(data, 6)
        assert packed is not None and len(packed) <= 1.005 * len(pure_deflate(data, 6))


@pytest.mark.skipif(_compiled is None, reason="not built")
def test_the_quick_way_is_about_as_small_as_zlib() -> None:
    for data in (SOURCE[:65536], text(1, 65536)):
        packed = deflate(data, None)
        assert packed is not None and len(packed) <= 1.03 * len(pure_deflate(data, 6))


@pytest.mark.parametrize("level", [None, 6])
def test_clusters_are_compressed_each_by_itself(level: int | None) -> None:
    noise = random.Random(6).randbytes(4096)
    clusters = [SOURCE[:4096], noise, bytes(4096), SOURCE[4096:8192]]
    packed = compress_clusters(b"".join(clusters), 4096, ZLIB, level)
    assert [each is None for each in packed] == [False, True, False, False]
    assert packed == [compress(each, ZLIB, level) for each in clusters]


@pytest.mark.parametrize("form", FORMS)
def test_matches_are_found_again_after_data_that_has_none(form: Any) -> None:
    noise = random.Random(5).randbytes(32768)
    packed = form(noise + SOURCE[:32768], 6)
    assert packed is not None and inflate(packed, 65536) == noise + SOURCE[:32768]
    assert len(packed) <= len(noise) + 1.02 * len(pure_deflate(SOURCE[:32768], 6))


@pytest.mark.parametrize("form", FORMS)
def test_higher_levels_are_smaller_and_the_same_each_time(form: Any) -> None:
    data = SOURCE[:65536]
    sizes = [len(form(data, level) or b"") for level in (1, 4, 6, 9)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]
    form(text(3, 65536), 9)
    assert form(data, 9) == form(data, 9) and len(form(data, 9)) == sizes[-1]


@pytest.mark.skipif(_compiled is None, reason="not built")
def test_bounds() -> None:
    assert _compiled is not None
    deflater = _compiled.Deflater()
    for data, cluster in ((b"", 1), (b"", 0), (b"abcd", 0), (b"abcd", 3), (b"abcd", 8), (b"abcd", -4)):
        with pytest.raises(ValueError):
            deflater.compress(data, cluster, 1, 1, 1)
    with pytest.raises(TypeError):
        deflater.compress("text", 4, 1, 1, 1)
    for effort in ((1, 0, 0), (1 << 31, 1 << 31, 1 << 31), (0, 0, 0)):
        (packed,) = deflater.compress(b"ab" * 3000, 6000, *effort)
        assert inflate(packed, 6000) == b"ab" * 3000
