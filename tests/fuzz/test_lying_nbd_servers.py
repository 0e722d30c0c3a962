"""NBD servers that lie, anywhere in a connection, plain and in TLS: the client and the driver end, and say why."""

from __future__ import annotations

import asyncio
import datetime
import os
import random
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qobra import nbd
from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError
from qobra.nbd import aio
from qobra.nbd.tls import client_context
from qobra.testing.nbd_liar import SIZE, Liar

ROUNDS = 60
"""Connections of each kind; under ``make soak`` SCALE times as many."""
SECONDS = 5.0
"""On a busy machine fewer, as many as begin within this time."""
LONGEST = 10.0
"""Seconds that a connection may take: the time-outs are 1 and 3."""
SEED = int(os.environ.get("QOBRA_STRESS_SEED", "0"))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ssl.SSLContext]]:
    """A directory with an authority, and servers' contexts: some that it vouches for, and some that will not do."""
    import trustme

    directory = tmp_path_factory.mktemp("liar")
    authority, another = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca-cert.pem")
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    good = authority.issue_cert("localhost")
    expired = authority.issue_cert("localhost", not_before=now - 2 * day, not_after=now - day)
    contexts = []
    for issued in (good, good, good, good, authority.issue_cert("other"), another.issue_cert("localhost"), expired):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(context)
        contexts.append(context)
    contexts[1].maximum_version = ssl.TLSVersion.TLSv1_2
    return directory, contexts


def place(rng: random.Random, size: int) -> tuple[int, int]:
    """Where in an export, and how much."""
    offset = min(rng.randrange(0, SIZE, 512), size)
    return offset, min(rng.choice((512, 4096, 65536, SIZE)), size - offset)


def use(disk: nbd.Client, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 25)):
        offset, length = place(rng, disk.size)
        match rng.randrange(7):
            case 0:
                assert len(disk.pread(length, offset)) == length
            case 1:
                disk.pwrite(bytes(length), offset)
            case 2:
                disk.zero(length, offset)
            case 3:
                disk.trim(length, offset)
            case 4:
                disk.flush()
            case 5:
                assert sum(each[1] for each in disk.extents(length=min(length, disk.size), offset=0)) <= length
            case _:
                reads = [disk.aio_pread(min(512, length), offset) for _ in range(20)]
                for read in disk.as_completed(reads):
                    read.exception()


def use_library(place: dict[str, str], context: ssl.SSLContext | None, rng: random.Random) -> None:
    if rng.random() < 0.3:
        nbd.list_exports(place, tls=context, tls_hostname="localhost", handshake_timeout=3)
        return
    wanted = rng.choice((["base:allocation"], ["base:allocation"], []))
    options = {"tls": context, "tls_hostname": "localhost", "timeout": 1, "handshake_timeout": 3}
    with nbd.connect(place, "disk", meta_contexts=wanted, structured=rng.random() < 0.8, **options) as disk:
        use(disk, rng)


async def call(disk: aio.AsyncClient, kind: int, offset: int, length: int) -> None:
    match kind:
        case 0:
            assert len(await disk.pread(length, offset)) == length
        case 1:
            await disk.pwrite(bytes(length), offset)
        case 2:
            await disk.block_status(max(1, length), offset)
        case _:
            await disk.flush()


def use_asyncio(address: dict[str, str], context: ssl.SSLContext | None, rng: random.Random) -> None:
    async def main() -> None:
        options = {"tls": context, "tls_hostname": "localhost", "timeout": 1, "handshake_timeout": 3}
        async with await aio.connect(address, "disk", meta_contexts=["base:allocation"], **options) as disk:
            for _ in range(rng.randrange(1, 15)):
                offset, length = place(rng, disk.size)
                await asyncio.gather(*(call(disk, rng.randrange(4), offset, length) for _ in range(rng.choice((1, 5)))))

    asyncio.run(main())


def use_driver(address: dict[str, str], context: ssl.SSLContext | None, rng: random.Random) -> None:
    layer = BlockLayer()
    try:
        node = layer.add_node({"driver": "nbd", "node-name": "n", "server": address, "export": "disk"})
        backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
        backend.insert(node)
        try:
            for _ in range(rng.randrange(1, 15)):
                offset, length = place(rng, node.length)
                offset += rng.choice((0, 1, 100))
                length = max(0, min(length, node.length - offset))
                try:
                    match rng.randrange(5):
                        case 0:
                            assert len(backend.read(offset, length)) == length
                        case 1:
                            backend.write(offset, bytes(length))
                        case 2:
                            backend.write_zeroes(offset, length)
                        case 3:
                            assert sum(each.length for each in node.map(offset, length)) == length
                        case _:
                            backend.flush()
                except OSError:
                    pass  # what the server answered, as a file would
                except QobraError:
                    pass  # the next request connects anew
        finally:
            backend.remove()
    finally:
        layer.close()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("use", [use_library, use_asyncio, use_driver])
def test_lies(
    use: Callable[[dict[str, str], ssl.SSLContext | None, random.Random], None],
    encrypted: bool,
    tls: tuple[Path, list[ssl.SSLContext]],
    tmp_path: Path,
    soak_scale: int,
) -> None:
    if encrypted and use is use_driver:
        pytest.skip("the driver's TLS is the library's")
    end = time.monotonic() + SECONDS * soak_scale
    for seed in range(SEED, SEED + ROUNDS * soak_scale):
        if time.monotonic() > end:
            break
        path = tmp_path / f"{seed}"
        liar = Liar(str(path), seed, tls=tls[1] if encrypted else ())
        before, begun = resident(), time.monotonic()
        try:
            use(
                {"type": "unix", "path": str(path)},
                client_context(str(tls[0])) if encrypted else None,
                random.Random(seed),
            )
        except QobraError as error:
            assert error.desc.isprintable(), (seed, error)
        finally:
            liar.close()
        assert time.monotonic() - begun < LONGEST, (seed, liar.told)
        assert resident() - before < 256 << 20, (seed, liar.told)


def resident() -> int:
    """Bytes of memory that this process takes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
