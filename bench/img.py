"""The image tools: qobra-img against qemu-img, the same command line for both.

    python bench/img.py [--runs 5] [--size 1G] [--rows convert-raw-qcow2,...] [--json FILE]
    python bench/img.py --growth [--runs 1]

Each row is a command on images that are made for it, and only for it: ``--size`` of data in twice as much disk, in
pieces of 1 MiB with holes between. Runs are interleaved, each program first in every other one, so that whatever else
the machine does hits both alike, and find the same memory (see ``warm.py``). For each row the medians, their
ratio (above 1: Qobra is faster), the spread of the ratios of neighbouring runs, the ratio of processor times, the goal,
the largest memory of both in MiB, and how much larger a new image is than QEMU's are printed. The exit code is 1 if a
goal is missed. ``--growth`` shows instead how Qobra's times grow with the image, with fragmentation and with the chain
of backing files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from warm import warm_memory

MIB = 1 << 20


HUGE = 16 << 40
STEP = 82
"""16 TiB of which every 82nd cluster is allocated hold 200 GiB."""


class Row(NamedTuple):
    """``before`` is run, untimed, before each timed ``command``; ``{img}`` is the program. ``most`` bounds the runs.

    ``own`` are options that only Qobra gets, in the place of ``{own}``.
    """

    command: str
    goal: float
    before: str = ""
    most: int = 99
    own: str = ""


NEW = "cp small.q top.q"
COPY = "cp --sparse=always {} copy.q; sync copy.q"
"""What cp wrote is not for the program to wait for."""

ROWS = {
    "startup-info": Row("{img} info small.q", 0.12),
    "convert-raw-qcow2": Row("{img} convert -f raw -O qcow2 data.raw out", 1.4, "rm -f out"),
    "convert-qcow2-raw": Row("{img} convert -f qcow2 -O raw data.q out", 1.6, "rm -f out"),
    "convert-qcow2-qcow2": Row("{img} convert -f qcow2 -O qcow2 data.q out", 1.4, "rm -f out"),
    "convert-c-zlib": Row("{img} convert -c -f raw -O qcow2 text.raw out", 7.0, "rm -f out"),
    "convert-c-zlib-6": Row(
        "{img} convert -c {own} -f raw -O qcow2 text.raw out", 3.0, "rm -f out", own="--compression-level 6"
    ),
    "convert-c-zstd": Row("{img} convert -c -o compression_type=zstd -f raw -O qcow2 text.raw out", 1.5, "rm -f out"),
    "convert-from-zlib": Row("{img} convert -f qcow2 -O raw text.zlib.q out", 1.4, "rm -f out"),
    "convert-from-zstd": Row("{img} convert -f qcow2 -O raw text.zstd.q out", 1.4, "rm -f out"),
    "dd": Row("{img} dd -f qcow2 -O raw bs=1M if=data.q of=out", 1.3, "rm -f out"),
    "compare": Row("{img} compare -f qcow2 -F raw data.q data.raw", 1.3),
    "commit": Row("{img} commit -q -d -f qcow2 over.q", 1.3),
    "rebase": Row("{img} rebase -f qcow2 -b empty.q -F qcow2 top.q", 1.3, "cp over.q top.q"),
    "create-metadata": Row("{img} create -q -f qcow2 -o preallocation=metadata out 64G", 1.0, "rm -f out"),
    "create-falloc": Row("{img} create -q -f qcow2 -o preallocation=falloc out 1G", 1.0, "rm -f out"),
    "create-full": Row("{img} create -q -f qcow2 -o preallocation=full out 256M", 1.0, "rm -f out"),
    "create-metadata-large": Row("{img} create -q -f qcow2 -o preallocation=metadata out 256G", 1.0, "rm -f out"),
    "create-falloc-large": Row("{img} create -q -f qcow2 -o preallocation=falloc out 8G", 1.0, "rm -f out"),
    "create-full-large": Row("{img} create -q -f qcow2 -o preallocation=full out 1G", 1.0, "rm -f out"),
    "resize": Row("{img} resize -q -f qcow2 small.q +1G", 1.0),
    "resize-metadata": Row("{img} resize -q -f qcow2 --preallocation=metadata top.q +200G", 1.0, NEW),
    "resize-falloc": Row("{img} resize -q -f qcow2 --preallocation=falloc top.q +8G", 1.0, NEW),
    "resize-full": Row("{img} resize -q -f qcow2 --preallocation=full top.q +512M", 1.0, NEW),
    "snapshot-c": Row("{img} snapshot -c s data.q", 1.0),
    "snapshot-a": Row("{img} snapshot -a s data.q", 1.0),
    "snapshot-d": Row("{img} snapshot -d s data.q", 1.0),
    "snapshot-c-128G": Row("{img} snapshot -c s copy.q", 1.0, COPY.format("128G.q")),
    "snapshot-a-128G": Row("{img} snapshot -a s copy.q", 1.0, COPY.format("128G.taken.q")),
    "snapshot-d-128G": Row("{img} snapshot -d s copy.q", 1.0, COPY.format("128G.taken.q")),
    "snapshot-c-256G": Row("{img} snapshot -c s copy.q", 1.0, COPY.format("256G.q")),
    "snapshot-a-256G": Row("{img} snapshot -a s copy.q", 1.0, COPY.format("256G.taken.q")),
    "snapshot-d-256G": Row("{img} snapshot -d s copy.q", 1.0, COPY.format("256G.taken.q")),
    "snapshot-c-512G": Row("{img} snapshot -c s copy.q", 1.0, COPY.format("512G.q"), 1),
    "snapshot-a-512G": Row("{img} snapshot -a s copy.q", 1.0, COPY.format("512G.taken.q"), 1),
    "snapshot-d-512G": Row("{img} snapshot -d s copy.q", 1.0, COPY.format("512G.taken.q"), 1),
    "huge-info": Row("{img} info huge.q", 0.12),
    "huge-check": Row("{img} check -q -f qcow2 huge.q", 2.0, most=3),
    "huge-map": Row("{img} map --output=json -f qcow2 huge.q", 2.0, most=1),
    "huge-measure": Row("{img} measure -f qcow2 -O qcow2 huge.q", 2.0, most=1),
    "huge-bitmap-merge": Row("{img} bitmap --merge one merged.q two", 2.0, "cp --sparse=always marked.q merged.q", 3),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", default="1G", help="bytes of data (suffixes M, G)")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.rows.split(",")) - set(ROWS):
        parser.error(f"no row '{min(unknown)}'; there are {', '.join(ROWS)}")
    if shutil.which("qemu-img") is None:
        sys.exit("qemu-img is not installed")
    size = int(options.size[:-1]) * {"M": MIB, "G": 1 << 30}[options.size[-1]]
    missed = False
    results = {}
    if options.growth:
        return growth(options.runs)
    with tempfile.TemporaryDirectory(prefix="bench-img.") as directory:
        ours = make_program(Path(directory))
        rows = options.rows.split(",")
        in_child(lambda: make_images(Path(directory), size, [ROWS[name] for name in rows]))
        with warm_memory():
            print(
                f"{'row':20}{'qemu s':>9}{'qobra s':>9}{'ratio':>7}{'spread':>14}{'cpu ratio':>10}{'goal':>6}"
                f"{'MiB':>11}{'size':>8}"
            )
            for name in rows:
                result = race(ROWS[name], min(options.runs, ROWS[name].most), directory, ours)
                results[name] = result
                missed |= result["ratio"] < ROWS[name].goal
                print(
                    f"{name:20}{result['qemu']:9.3f}{result['qobra']:9.3f}{result['ratio']:7.2f}"
                    f"{result['low']:7.2f}-{result['high']:<6.2f}{result['cpu']:10.2f}{ROWS[name].goal:6.2f}"
                    f"{result['qemu MiB']:5.0f}/{result['qobra MiB']:<5.0f}"
                    + (f"{100 * result['size']:+7.1f}%" if "size" in result else ""),
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 1 if missed else 0


def make_program(directory: Path) -> str:
    """A program as ``tools/environment.py`` makes it, with a bundle that fits the sources."""
    program = directory / "qobra-img"
    source = Path(__file__).resolve().parent.parent / "src"
    program.write_text(
        f"#!{sys.executable} -SP\nimport sys\nsys.path.insert(0, {str(source)!r})\n"
        "from qobra.cli.img import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    subprocess.run([sys.executable, "-m", "qobra.cli._bundle"], check=True)
    return str(program)


def in_child(work: Callable[[], None]) -> None:
    """Call ``work`` in a process of its own: the memory of this one counts as that of the programs that it starts."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        sys.exit("the images could not be made")


def make_images(directory: Path, size: int, rows: list[Row]) -> None:
    """The images that ``rows`` name, by qemu-img mostly, in the page cache."""
    words = {word.strip(";") for row in rows for word in f"{row.before} {row.command}".replace("=", " ").split()}
    for name, (needs, _make) in reversed(IMAGES.items()):
        if name in words:
            words.update(needs.split())
    for name, (_needs, make) in IMAGES.items():
        if name in words:
            if isinstance(make, str):
                subprocess.run(
                    make.format(double=2 * size), shell=True, cwd=directory, check=True, stdout=subprocess.DEVNULL
                )
            else:
                make(directory / name, size)


def make_raw(path: Path, size: int) -> None:
    block = os.urandom(MIB)
    with open(path, "wb") as stream:
        stream.truncate(2 * size)
        for number in range(size // MIB):
            stream.seek(2 * number * MIB)
            cut = number * 977 % MIB
            stream.write(block[cut:] + block[:cut])


def make_text(path: Path, size: int) -> None:
    words = b" ".join(str(number * 2654435761 % 99991).encode() for number in range(400_000))
    with open(path, "wb") as stream:
        for number in range(max(1, size // 8 // len(words))):
            stream.write(words[number * 13 % 1000 :])
        stream.truncate(-(-stream.tell() // MIB) * MIB)


def make_overlay(path: Path, size: int) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", path], check=True)
    with subprocess.Popen(["qemu-io", path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as io:
        assert io.stdin is not None
        for number in range(0, 2 * size // MIB, 4):
            io.stdin.write(f"write -q -P 7 {number}M 1M\n".encode())
        io.stdin.close()


def make_spread(size: int) -> Callable[[Path, int], None]:
    """A maker of an image of which every STEP-th cluster is allocated."""
    return lambda path, _size: make_fragmented(path, size, STEP, 1)


def make_marked(path: Path, _size: int) -> None:
    """The huge image with two bitmaps, in which every STEP-th cluster is dirty."""
    subprocess.run(["cp", "--sparse=always", path.parent / "huge.q", path], check=True)
    for number, name in enumerate(("one", "two")):
        subprocess.run(["qemu-img", "bitmap", "--add", "-g", "64K", path, name], check=True)
        mark_fragments(path, name, number)


TAKEN = "cp --sparse=always {0} {1}; qemu-img snapshot -c s {1}"

IMAGES: dict[str, tuple[str, str | Callable[[Path, int], None]]] = {
    "data.raw": ("", make_raw),
    "text.raw": ("", make_text),
    "small.q": ("", "qemu-img create -q -f qcow2 small.q 1G"),
    "data.q": ("data.raw", "qemu-img convert -f raw -O qcow2 data.raw data.q"),
    "text.zlib.q": ("text.raw", "qemu-img convert -c -f raw -O qcow2 text.raw text.zlib.q"),
    "text.zstd.q": ("text.raw", "qemu-img convert -c -o compression_type=zstd -f raw -O qcow2 text.raw text.zstd.q"),
    "empty.q": ("", "qemu-img create -q -f qcow2 empty.q {double}"),
    "base.q": ("data.q", "cp data.q base.q"),
    "over.q": ("base.q", make_overlay),
    "128G.q": ("", make_spread(128 << 30)),
    "256G.q": ("", make_spread(256 << 30)),
    "512G.q": ("", make_spread(512 << 30)),
    "128G.taken.q": ("128G.q", TAKEN.format("128G.q", "128G.taken.q")),
    "256G.taken.q": ("256G.q", TAKEN.format("256G.q", "256G.taken.q")),
    "512G.taken.q": ("512G.q", TAKEN.format("512G.q", "512G.taken.q")),
    "huge.q": ("", make_spread(HUGE)),
    "marked.q": ("huge.q", make_marked),
}
"""The images by their names: those that each is made from, and a command (``{double}``: twice the size) or a maker."""


def mark_fragments(path: Path, name: str, shift: int) -> None:
    """Make every STEP-th cluster dirty in a bitmap of the image, ``shift`` clusters away from those with data."""
    from qobra.testing.images import Disk

    period = sum(1 << number for number in range(shift, 8 * STEP, STEP)).to_bytes(STEP, "little")
    with Disk({"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}) as disk:
        disk.node.bitmaps[name].load(0, period * (HUGE // 65536 // 8 // STEP))


def growth(runs: int) -> int:
    """How the times of Qobra grow with what is allocated, with the fragments that it is in, and with a chain."""
    with tempfile.TemporaryDirectory(prefix="bench-img.") as directory:
        ours = make_program(Path(directory))
        cases = [(size << 30, 1) for size in (256, 512, 1024, 2048, 4096)]
        cases += [(1 << 40, run) for run in (4, 16, 64, 256)]
        commands = [
            f"{{}} {command} -f qcow2 huge.q" for command in ("check -q", "map --output=json", "measure -O qcow2")
        ]
        commands += [f"{{}} snapshot -{action} s huge.q" for action in "cad"]
        print(
            f"{'disk':>8}{'clusters':>10}{'in runs of':>12}{'check s':>9}{'map s':>9}{'measure s':>10}"
            f"{'-c s':>7}{'-a s':>7}{'-d s':>7}{'MiB':>6}"
        )
        for size, run in cases:
            in_child(partial(make_fragmented, Path(directory) / "huge.q", size, STEP * run, run))
            seconds, memory = measured([command.format(ours) for command in commands], directory, runs)
            print(
                f"{size >> 30:4} GiB{size // 65536 // STEP:10}{run:12}{seconds[0]:9.3f}{seconds[1]:9.3f}"
                f"{seconds[2]:10.3f}{seconds[3]:7.2f}{seconds[4]:7.2f}{seconds[5]:7.2f}{memory:6.0f}",
                flush=True,
            )
        print(f"{'chain':>8}{'info s':>10}{'map s':>9}{'convert s':>11}{'MiB':>6}")
        for depth in (1, 2, 4, 8, 16, 32, 64):
            in_child(partial(make_chain, Path(directory), depth))
            commands = [f"{ours} info --backing-chain top.q", f"{ours} map --output=json top.q"]
            seconds, memory = measured([*commands, f"{ours} convert -O raw top.q out"], directory, runs)
            print(f"{depth:8}{seconds[0]:10.3f}{seconds[1]:9.3f}{seconds[2]:11.3f}{memory:6.0f}", flush=True)
    return 0


def measured(commands: list[str], directory: str, runs: int) -> tuple[list[float], float]:
    """The median of the seconds that each command takes, in so many rounds of all, and MiB of memory at most."""
    rounds = [[timed(command, directory) for command in commands] for _ in range(runs)]
    seconds = [statistics.median(each[0] for each in spent) for spent in zip(*rounds, strict=True)]
    return seconds, max(each[2] for spent in rounds for each in spent)


def make_chain(directory: Path, depth: int) -> None:
    """A disk of 1 GiB, ``top.q`` with ``depth`` - 1 files behind it: 256 MiB, in pieces of 64 KiB dealt among them."""
    from qobra.testing.images import Disk

    below = ""
    for level in range(depth):
        name = "top.q" if level == depth - 1 else f"{level}.q"
        back = ["-b", below, "-F", "qcow2"] if below else []
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *back, name, "1G"]
        subprocess.run(command, cwd=directory, check=True)
        file = {"driver": "file", "filename": str(directory / name)}
        with Disk({"driver": "qcow2", "file": file, "backing": None}) as disk:
            for piece in range(level, 4096, depth):
                disk.write(piece * 4 * 65536, bytes((level + 1,)) * 65536)
        below = name


def timed(command: str, directory: str) -> tuple[float, float, float]:
    """Seconds, seconds of processor time and MiB of memory that a command takes."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, shell=True, cwd=directory, stdout=subprocess.DEVNULL)
    _pid, status, usage = os.wait4(process.pid, 0)
    spent = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command}: exit status {process.returncode}")
    return spent, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def make_fragmented(path: Path, size: int, step: int, run: int) -> None:
    """A disk of ``size`` bytes of which ``run`` in every ``step`` clusters are allocated, far from their neighbours.

    The file has no data, only the tables.
    """
    import struct
    from array import array

    bits, tables = 16, size >> 29
    cluster = 1 << bits
    l1_clusters = tables * 8 // cluster or 1
    l1_offset = cluster
    l2_offset = l1_offset + l1_clusters * cluster
    data = l2_offset + tables * cluster
    runs = tables * 8192 // step + 1
    count = runs * run
    total = data // cluster + count
    blocks = -(-total // 32768) + 1
    table_clusters = -(-blocks * 8 // cluster)
    table_offset = data + count * cluster
    block_offset = table_offset + table_clusters * cluster
    total = block_offset // cluster + blocks
    with open(path, "wb") as stream:
        header = struct.pack(
            ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, bits, size, 0, tables, l1_offset, table_offset,
            table_clusters, 0, 0, 0, 0, 0, 4, 104,
        )  # fmt: skip
        stream.write(header)
        l1 = array("Q", ((l2_offset + number * cluster) | 1 << 63 for number in range(tables)))
        l1.byteswap()
        stream.seek(l1_offset)
        stream.write(l1.tobytes())
        for number in range(tables):
            l2 = array("Q", bytes(cluster))
            # The runs that begin in this table or go on in it.
            for which in range(max(0, (number * 8192 - run) // step), min(runs, ((number + 1) * 8192 - 1) // step + 1)):
                place = data + which * 7919 % runs * run * cluster | 1 << 63
                first = which * step - number * 8192
                for at in range(max(0, first), min(8192, first + run)):
                    l2[at] = place + (at - first) * cluster
            l2.byteswap()
            stream.seek(l2_offset + number * cluster)
            stream.write(l2.tobytes())
        reftable = array("Q", (block_offset + number * cluster for number in range(blocks)))
        reftable.byteswap()
        stream.seek(table_offset)
        stream.write(reftable.tobytes())
        counts = array("H", bytes(2 * blocks * 32768))
        counts[:total] = array("H", [1]) * total
        if (runs - 1) * step >= tables * 8192:  # the last run is past the end of the disk
            last = data // cluster + (runs - 1) * 7919 % runs * run
            counts[last : last + run] = array("H", bytes(2 * run))
        counts.byteswap()
        stream.seek(block_offset)
        stream.write(counts.tobytes())


def race(row: Row, runs: int, directory: str, ours: str) -> dict[str, float]:
    """Both programs in turn; times in seconds."""
    walls: dict[str, list[float]] = {"qemu": [], "qobra": []}
    cpus: dict[str, list[float]] = {"qemu": [], "qobra": []}
    memory = {"qemu": 0.0, "qobra": 0.0}
    sizes: dict[str, int] = {}
    target = Path(directory) / "out"
    programs = [("qemu", "qemu-img"), ("qobra", ours)]
    for number in range(runs + 1):
        for name, program in programs[:: 1 if number % 2 else -1]:
            if row.before:
                subprocess.run(row.before, shell=True, cwd=directory, check=True)
            wall, cpu, most = timed(row.command.format(img=program, own=row.own if program == ours else ""), directory)
            walls[name].append(wall)
            cpus[name].append(cpu)
            memory[name] = max(memory[name], most)
            if "out" in row.command.split() and target.exists():
                sizes[name] = target.stat().st_blocks
    # The first run of each warms the cache and compiles modules.
    ratios = [theirs / mine for theirs, mine in zip(walls["qemu"][1:], walls["qobra"][1:], strict=True)]
    theirs, mine = statistics.median(walls["qemu"][1:]), statistics.median(walls["qobra"][1:])
    result = {
        "qemu": theirs,
        "qobra": mine,
        "ratio": theirs / mine,
        "low": min(ratios),
        "high": max(ratios),
        "cpu": statistics.median(cpus["qemu"][1:]) / statistics.median(cpus["qobra"][1:]),
        "qemu MiB": memory["qemu"],
        "qobra MiB": memory["qobra"],
    }
    if sizes:
        result["size"] = sizes["qobra"] / sizes["qemu"] - 1
    return result


if __name__ == "__main__":
    sys.exit(main())
