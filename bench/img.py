"""The image tools: qobra-img against qemu-img, the same command line for both.

    python bench/img.py [--runs 5] [--size 1G] [--rows convert-raw-qcow2,...] [--json FILE]

Each row is a command on images that are made for it: ``--size`` of data in twice as much disk, in pieces of 1 MiB with
holes between. Runs are interleaved, so that whatever else the machine does hits both alike. For each row the
medians, their ratio (above 1: Qobra is faster), the spread of the ratios of neighbouring runs, the ratio of processor
times, and the goal are printed. The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20


class Row(NamedTuple):
    """``before`` is run, untimed, before each timed ``command``; ``{img}`` is the program."""

    command: str
    goal: float
    before: str = ""


ROWS = {
    "startup-info": Row("{img} info small.q", 0.12),
    "convert-raw-qcow2": Row("{img} convert -f raw -O qcow2 data.raw out", 1.4, "rm -f out"),
    "convert-qcow2-raw": Row("{img} convert -f qcow2 -O raw data.q out", 1.6, "rm -f out"),
    "convert-qcow2-qcow2": Row("{img} convert -f qcow2 -O qcow2 data.q out", 1.4, "rm -f out"),
    "convert-c-zlib": Row("{img} convert -c -f raw -O qcow2 text.raw out", 7.0, "rm -f out"),
    "convert-c-zstd": Row("{img} convert -c -o compression_type=zstd -f raw -O qcow2 text.raw out", 1.5, "rm -f out"),
    "convert-from-zlib": Row("{img} convert -f qcow2 -O raw text.zlib.q out", 1.4, "rm -f out"),
    "convert-from-zstd": Row("{img} convert -f qcow2 -O raw text.zstd.q out", 1.0, "rm -f out"),
    "dd": Row("{img} dd -f qcow2 -O raw bs=1M if=data.q of=out", 1.3, "rm -f out"),
    "compare": Row("{img} compare -f qcow2 -F raw data.q data.raw", 1.3),
    "commit": Row("{img} commit -q -d -f qcow2 over.q", 1.3),
    "rebase": Row("{img} rebase -f qcow2 -b empty.q -F qcow2 top.q", 1.3, "cp over.q top.q"),
    "create-metadata": Row("{img} create -q -f qcow2 -o preallocation=metadata out 64G", 1.0, "rm -f out"),
    "create-falloc": Row("{img} create -q -f qcow2 -o preallocation=falloc out 1G", 1.0, "rm -f out"),
    "huge-info": Row("{img} info huge.q", 0.12),
    "huge-map": Row("{img} map --output=json -f qcow2 huge.q", 2.0),
    "huge-check": Row("{img} check -q -f qcow2 huge.q", 2.0),
    "huge-measure": Row("{img} measure -f qcow2 -O qcow2 huge.q", 2.0),
    "snapshot-c-d": Row("{img} snapshot -c s data.q && {img} snapshot -d s data.q", 1.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", default="1G", help="bytes of data (suffixes M, G)")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if shutil.which("qemu-img") is None:
        sys.exit("qemu-img is not installed")
    size = int(options.size[:-1]) * {"M": MIB, "G": 1 << 30}[options.size[-1]]
    missed = False
    results = {}
    with tempfile.TemporaryDirectory(prefix="bench-img.") as directory:
        ours = make_program(Path(directory))
        make_images(Path(directory), size)
        print(f"{'row':22}{'qemu s':>9}{'qobra s':>9}{'ratio':>7}{'spread':>14}{'cpu ratio':>11}{'goal':>6}")
        for name in options.rows.split(","):
            result = race(ROWS[name], options.runs, directory, ours)
            results[name] = result
            missed |= result["ratio"] < ROWS[name].goal
            print(
                f"{name:22}{result['qemu']:9.3f}{result['qobra']:9.3f}{result['ratio']:7.2f}"
                f"{result['low']:7.2f}-{result['high']:<6.2f}{result['cpu']:11.2f}{ROWS[name].goal:6.2f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 1 if missed else 0


def make_program(directory: Path) -> str:
    """A program as an installer makes it, with its modules compiled."""
    program = directory / "qobra-img"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom qobra.cli.img import main\nsys.exit(main())\n")
    program.chmod(0o755)
    return str(program)


def make_images(directory: Path, size: int) -> None:
    """The images of all rows, by qemu-img, and the page cache warm."""

    def run(command: str) -> None:
        subprocess.run(command, shell=True, cwd=directory, check=True, stdout=subprocess.DEVNULL)

    block = os.urandom(MIB)
    with open(directory / "data.raw", "wb") as stream:
        stream.truncate(2 * size)
        for number in range(size // MIB):
            stream.seek(2 * number * MIB)
            cut = number * 977 % MIB
            stream.write(block[cut:] + block[:cut])
    words = b" ".join(str(number * 2654435761 % 99991).encode() for number in range(400_000))
    with open(directory / "text.raw", "wb") as stream:
        for number in range(max(1, size // 8 // len(words))):
            stream.write(words[number * 13 % 1000 :])
        stream.truncate(-(-stream.tell() // MIB) * MIB)
    run("qemu-img create -q -f qcow2 small.q 1G")
    run("qemu-img convert -f raw -O qcow2 data.raw data.q")
    run("qemu-img convert -c -f raw -O qcow2 text.raw text.zlib.q")
    run("qemu-img convert -c -o compression_type=zstd -f raw -O qcow2 text.raw text.zstd.q")
    run(f"qemu-img create -q -f qcow2 empty.q {2 * size}")
    run("cp data.q base.q; qemu-img create -q -f qcow2 -b base.q -F qcow2 over.q")
    with subprocess.Popen(
        ["qemu-io", str(directory / "over.q")], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as io:
        assert io.stdin is not None
        for number in range(0, 2 * size // MIB, 4):
            io.stdin.write(f"write -q -P 7 {number}M 1M\n".encode())
        io.stdin.close()
    make_huge(directory)


def make_huge(directory: Path) -> None:
    """16 TiB with 200 GiB allocated in fragments: every 82nd cluster, in a file that is nothing but holes."""
    import struct
    from array import array

    bits, tables, step = 16, (16 << 40) >> 29, 82
    cluster = 1 << bits
    l1_clusters = tables * 8 // cluster or 1
    l1_offset = cluster
    l2_offset = l1_offset + l1_clusters * cluster
    data = l2_offset + tables * cluster
    count = tables * 8192 // step + 1
    total = data // cluster + count
    blocks = -(-total // 32768) + 1
    table_clusters = -(-blocks * 8 // cluster)
    table_offset = data + count * cluster
    block_offset = table_offset + table_clusters * cluster
    total = block_offset // cluster + blocks
    with open(directory / "huge.q", "wb") as stream:
        header = struct.pack(
            ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, bits, 16 << 40, 0, tables, l1_offset, table_offset,
            table_clusters, 0, 0, 0, 0, 0, 4, 104,
        )  # fmt: skip
        stream.write(header)
        l1 = array("Q", ((l2_offset + number * cluster) | 1 << 63 for number in range(tables)))
        l1.byteswap()
        stream.seek(l1_offset)
        stream.write(l1.tobytes())
        place, guest = data, 0
        for number in range(tables):
            l2 = array("Q", bytes(cluster))
            while guest < (number + 1) * 8192:
                l2[guest - number * 8192] = place | 1 << 63
                place += cluster
                guest += step
            l2.byteswap()
            stream.seek(l2_offset + number * cluster)
            stream.write(l2.tobytes())
        reftable = array("Q", (block_offset + number * cluster for number in range(blocks)))
        reftable.byteswap()
        stream.seek(table_offset)
        stream.write(reftable.tobytes())
        counts = array("H", bytes(2 * blocks * 32768))
        used = array("H", [1]) * total
        for hole in range(place // cluster, table_offset // cluster):
            used[hole] = 0
        counts[: len(used)] = used
        counts.byteswap()
        stream.seek(block_offset)
        stream.write(counts.tobytes())


def race(row: Row, runs: int, directory: str, ours: str) -> dict[str, float]:
    """Both programs in turn; times in seconds."""
    walls: dict[str, list[float]] = {"qemu": [], "qobra": []}
    cpus: dict[str, list[float]] = {"qemu": [], "qobra": []}
    for _ in range(runs + 1):
        for name, program in (("qemu", "qemu-img"), ("qobra", ours)):
            if row.before:
                subprocess.run(row.before, shell=True, cwd=directory, check=True)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            begin = time.perf_counter()
            subprocess.run(
                row.command.format(img=program), shell=True, cwd=directory, check=True, stdout=subprocess.DEVNULL
            )
            walls[name].append(time.perf_counter() - begin)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpus[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # The first run of each warms the cache and compiles modules.
    ratios = [theirs / mine for theirs, mine in zip(walls["qemu"][1:], walls["qobra"][1:], strict=True)]
    theirs, mine = statistics.median(walls["qemu"][1:]), statistics.median(walls["qobra"][1:])
    return {
        "qemu": theirs,
        "qobra": mine,
        "ratio": theirs / mine,
        "low": min(ratios),
        "high": max(ratios),
        "cpu": statistics.median(cpus["qemu"][1:]) / statistics.median(cpus["qobra"][1:]),
    }


if __name__ == "__main__":
    sys.exit(main())
