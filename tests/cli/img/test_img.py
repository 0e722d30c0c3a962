"""qobra-img without a peer: what it does to files, and what it does when things go wrong."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import qobra
from qobra.block.copy.chunk import CopyFailed
from qobra.cli import img, io, nbd

MIB = 1 << 20


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return img.main(list(arguments), "qobra-img")


def write(path: str, data: bytes, offset: int = 0, fmt: str | None = None) -> None:
    with qobra.open(path, "r+", format=fmt) as image:
        image.pwrite(data, offset)


def contents(path: str, fmt: str | None = None) -> bytes:
    with qobra.open(path, format=fmt) as image:
        return image.read()


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_create_info_convert_compare(fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "-q", "-f", fmt, "a.img", "4M") == 0
    write("a.img", b"x" * 100000, 70000, fmt)
    for target in ("raw", "qcow2"):
        assert run("convert", "-f", fmt, "-O", target, "a.img", "b.img") == 0
        assert contents("b.img", target) == contents("a.img", fmt)
        assert run("compare", "-f", fmt, "-F", target, "a.img", "b.img") == 0
    capsys.readouterr()
    assert run("info", "-f", fmt, "--output=json", "a.img") == 0
    assert json.loads(capsys.readouterr().out)["virtual-size"] == 4 * MIB


def test_convert_makes_holes() -> None:
    Path("a.raw").write_bytes(bytes(MIB) + b"x" * 4096 + bytes(MIB))
    assert run("convert", "-f", "raw", "-O", "raw", "a.raw", "b.raw") == 0
    assert Path("b.raw").read_bytes()[: 2 * MIB + 4096] == Path("a.raw").read_bytes()
    assert os.stat("b.raw").st_blocks * 512 <= 65536
    assert run("convert", "-S", "0", "-f", "raw", "-O", "raw", "a.raw", "c.raw") == 0
    assert os.stat("c.raw").st_blocks * 512 >= 2 * MIB


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_convert_compressed(kind: str) -> None:
    Path("a.raw").write_bytes(b"compressible " * 200000)
    assert run("convert", "-c", "-o", f"compression_type={kind}", "-f", "raw", "-O", "qcow2", "a.raw", "b.q") == 0
    assert run("compare", "-f", "raw", "-F", "qcow2", "a.raw", "b.q") == 0
    assert run("check", "-q", "b.q") == 0
    assert os.stat("b.q").st_size < os.stat("a.raw").st_size // 4
    assert run("convert", "-O", "raw", "b.q", "c.raw") == 0
    assert run("compare", "-f", "raw", "-F", "raw", "a.raw", "c.raw") == 0


def chain() -> None:
    assert run("create", "-q", "-f", "qcow2", "base.q", "4M") == 0
    write("base.q", b"b" * MIB)
    assert run("create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "top.q") == 0
    write("top.q", b"t" * 65536, 65536)


def test_commit_and_rebase_keep_what_a_guest_sees() -> None:
    chain()
    before = contents("top.q")
    assert run("create", "-q", "-f", "qcow2", "other.q", "4M") == 0
    write("other.q", b"b" * 65536)
    assert run("rebase", "-b", "other.q", "-F", "qcow2", "top.q") == 0
    assert contents("top.q") == before
    assert run("rebase", "-b", "", "top.q") == 0
    assert contents("top.q") == before
    assert run("check", "-q", "top.q") == 0
    chain()
    assert run("commit", "-q", "top.q") == 0
    assert contents("base.q") == before
    assert contents("top.q") == before


def test_snapshots_come_back() -> None:
    assert run("create", "-q", "-f", "qcow2", "a.q", "1M") == 0
    write("a.q", b"old")
    assert run("snapshot", "-c", "one", "a.q") == 0
    write("a.q", b"new")
    assert run("convert", "-l", "one", "-O", "raw", "a.q", "old.raw") == 0
    assert contents("old.raw", "raw")[:3] == b"old"
    assert run("snapshot", "-a", "one", "a.q") == 0
    assert contents("a.q")[:3] == b"old"
    assert run("check", "-q", "a.q") == 0


@pytest.mark.parametrize(
    "line, error",
    [
        ("convert -l snapshot.x=1", "Invalid parameter 'snapshot.x'"),
        ("convert -l snapshot.x=1 -m 0 a.q o", "Invalid parameter 'snapshot.x'"),
        ("convert -l snapshot.x=1 -l one a.q o", "Invalid parameter 'snapshot.x'"),
        ("measure -l snapshot.x=1 --size foo", "Invalid parameter 'snapshot.x'"),
        ("measure --output foo -l snapshot.x=1", "--output must be used with human or json as argument."),
    ],
)
def test_what_is_wrong_in_a_line_is_told_where_it_stands(
    line: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*line.split()) == 1
    assert capsys.readouterr().err.splitlines()[0].endswith(error)


def test_options_of_a_snapshot_outrank_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "-q", "-f", "qcow2", "a.q", "1M") == 0
    assert run("snapshot", "-c", "one", "a.q") == 0
    assert run("convert", "-l", "snapshot.id=1", "-l", "none", "a.q", "o") == 0
    assert run("convert", "-l", "snapshot.id=1", "-l", "snapshot.name=none", "a.q", "o") == 1


@pytest.mark.parametrize("name", ["nbd:x", "nbd:", "nbd://h:p/"])
def test_a_name_that_cannot_be_of_a_protocol_that_cannot_create(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "-f", "raw", name, "1M") == 1
    error = capsys.readouterr().err
    assert f"{name}: Protocol driver 'nbd' does not support image creation, and opening the image failed: " in error


def test_the_source_is_never_overwritten() -> None:
    Path("a.raw").write_bytes(b"precious" * 1000)
    os.symlink("a.raw", "link.raw")
    before = Path("a.raw").read_bytes()
    for output in ("a.raw", "link.raw", "./a.raw"):
        assert run("convert", "-f", "raw", "-O", "raw", "a.raw", output) == 1
        assert run("dd", "-f", "raw", "-O", "raw", "if=a.raw", f"of={output}") == 1
    assert Path("a.raw").read_bytes() == before


def test_convert_reads_nothing_that_somebody_writes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.raw").write_bytes(b"x" * 65536)
    with qobra.open("a.raw", "r+", format="raw"):
        assert run("convert", "-f", "raw", "-O", "raw", "a.raw", "b.raw") == 1
        assert 'Failed to get shared "write" lock' in capsys.readouterr().err
        assert run("convert", "-U", "-f", "raw", "-O", "raw", "a.raw", "b.raw") == 0
        assert run("dd", "-f", "raw", "if=a.raw", "of=c.raw") == 0


def test_a_target_that_is_there_may_be_shared_with_whoever_relies_on_its_size() -> None:
    Path("a.raw").write_bytes(b"x" * 65536)
    Path("b.raw").write_bytes(bytes(65536))
    with open("b.raw", "rb") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 203, 1, 0))  # shares no "resize"
        assert run("convert", "-n", "-f", "raw", "-O", "raw", "a.raw", "b.raw") == 0
        assert contents("b.raw", "raw") == b"x" * 65536


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("length", [0, 1000, 65536, 100000])
def test_what_lies_past_the_end_of_the_source_stays_in_a_target_that_is_there(fmt: str, length: int) -> None:
    Path("source").write_bytes(b"s" * length)
    Path("old").write_bytes(b"t" * 3 * 65536)
    assert run("convert", "-f", "raw", "-O", fmt, "old", "target") == 0
    assert run("convert", "-n", "-f", "raw", "-O", fmt, "source", "target") == 0
    whole = -(-length // 512) * 512
    assert contents("target", fmt) == (b"s" * length).ljust(whole, b"\0") + b"t" * (3 * 65536 - whole)


def test_several_sources_have_no_backing_file_in_common(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "other", "target"):
        Path(name).write_bytes(bytes(65536))
    assert run("convert", "-n", "-B", "one", "-F", "raw", "-f", "raw", "-O", "raw", "one", "other", "target") == 1
    assert "makes no sense when concatenating" in capsys.readouterr().err


def test_a_broken_bitmap_is_told_before_a_target_that_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "-q", "-f", "qcow2", "killed", "1M") == 0
    assert run("bitmap", "--add", "killed", "b0") == 0
    write = "from qobra.cli.io import main; main(['-c', 'write 0 4k', '-c', 'abort', 'killed'])"
    assert subprocess.run([sys.executable, "-c", write], stdout=subprocess.DEVNULL, timeout=60).returncode
    assert run("convert", "--bitmaps", "-O", "raw", "killed", "new") == 1
    assert "Cannot copy inconsistent bitmap 'b0'" in capsys.readouterr().err
    assert run("convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "raw", "killed", "new") == 1
    assert "Format driver 'raw' does not support bitmaps" in capsys.readouterr().err


def test_the_first_byte_that_fails_is_told_whoever_meets_it_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(*_arguments: object, on_error: Any, **_options: object) -> None:
        for offset in (MIB, 0, 2 * MIB):
            on_error(CopyFailed(OSError(errno.ENOSPC, "full"), is_read=False), offset, MIB)

    monkeypatch.setattr("qobra.cli._img._copying.copy_ranges", copy)
    Path("a.raw").write_bytes(bytes(4 * MIB))
    assert run("convert", "-c", "-f", "raw", "-O", "qcow2", "a.raw", "b.q") == 1
    assert capsys.readouterr().err == "qobra-img: error while writing at byte 0: No space left on device\n"


def test_a_target_that_fails_does_not_look_whole(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.raw").write_bytes(b"x" * (4 * MIB))
    script = (
        "import resource, signal, sys\n"
        "from qobra.cli.img import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({2 * MIB}, {2 * MIB}))\n"
        "sys.exit(main(['convert', '-f', 'raw', '-O', 'qcow2', 'a.raw', 'b.q'], 'qobra-img'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("qobra-img: error while writing at byte ")
    assert done.stderr.count("\n") == 1
    assert os.stat("b.q").st_size == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_target_does_not_look_whole(number: signal.Signals) -> None:
    with open("a.raw", "wb") as stream:
        stream.truncate(64 * MIB)
        for offset in range(0, 64 * MIB, MIB):
            stream.seek(offset)
            stream.write(b"x" * 65536)
    script = "import sys; from qobra.cli.img import main; sys.argv[0] = 'qobra-img'; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "convert", "-p", "-r", "2M", "-f", "raw", "-O", "raw", "a.raw", "b.raw"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    while b"(" not in process.stdout.read(8):
        pass
    while not os.path.exists("b.raw") or os.stat("b.raw").st_blocks == 0:
        assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (-number, 128 + number)
    assert os.stat("b.raw").st_size == 0


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("falloc", "Could not preallocate new data"), ("full", "Could not resize file")],
)
def test_a_resize_that_finds_no_space_leaves_the_image_consistent(mode: str, reason: str) -> None:
    assert run("create", "-q", "-f", "qcow2", "a.q", "1M") == 0
    script = (
        "import resource, signal, sys\n"
        "from qobra.cli.img import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({2 * MIB}, {2 * MIB}))\n"
        f"sys.exit(main(['resize', '--preallocation={mode}', 'a.q', '+64M'], 'qobra-img'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    expected = f"qobra-img: Failed to resize underlying file: {reason}: {os.strerror(errno.EFBIG)}\n"
    assert (done.returncode, done.stderr) == (1, expected)
    assert run("check", "-q", "a.q") == 0
    assert run("resize", "-q", "--preallocation=full", "a.q", "+2M") == 0
    assert run("check", "-q", "a.q") == 0


@pytest.mark.parametrize("began", [False, True])
def test_an_interrupt_while_the_target_is_made(monkeypatch: pytest.MonkeyPatch, began: bool) -> None:
    """A target that has its length already is cut to nothing; one that is not ours yet is left alone."""
    from qobra.block.creation._image import ImageCreation

    def interrupted(self: Any, layer: Any) -> None:
        if began:
            os.truncate("b.raw", 5)
        raise KeyboardInterrupt

    Path("a.raw").write_bytes(b"x" * MIB)
    Path("b.raw").write_bytes(b"another's")
    monkeypatch.setattr(ImageCreation, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("dd", "if=a.raw", "of=b.raw", "-f", "raw", "-O", "raw")
    assert Path("b.raw").read_bytes() == (b"" if began else b"another's")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "-q", "-f", "raw", "-o", "preallocation=full", "a.raw", "512M"],
        ["convert", "-O", "raw", "-o", "preallocation=full", "null-co://", "a.raw"],
        ["convert", "-O", "qcow2", "-o", "preallocation=full", "null-co://", "a.raw"],
    ],
)
def test_an_interrupted_preallocation_leaves_no_image(number: signal.Signals, arguments: list[str]) -> None:
    script = "import sys; from qobra.cli.img import main; sys.argv[0] = 'qobra-img'; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", script, *arguments])
    while process.poll() is None and not (os.path.exists("a.raw") and os.stat("a.raw").st_blocks):
        pass
    process.send_signal(number)
    if process.wait(60):  # it may have been done already
        assert not os.path.exists("a.raw") or os.stat("a.raw").st_size == 0


@pytest.mark.parametrize("seed", range(30))
def test_hostile_images_get_one_line(seed: int, capfd: pytest.CaptureFixture[str]) -> None:

    random_ = random.Random(seed)
    chain()
    data = bytearray(Path("base.q").read_bytes())
    for _ in range(random_.randrange(1, 6)):
        place = random_.choice([random_.randrange(4, 120), random_.randrange(len(data))])
        data[place] = random_.randrange(256)
    Path("bad.q").write_bytes(data)
    capfd.readouterr()
    for command in (["info", "bad.q"], ["map", "bad.q"], ["check", "bad.q"], ["convert", "-O", "raw", "bad.q", "o"]):
        # Sizes may claim petabytes; files of them are sparse, but the map of one may be long.
        status = run(command[0], "-f", "qcow2", *command[1:])
        error = capfd.readouterr().err
        assert status in (0, 1, 2, 3)
        assert "Traceback" not in error and "internal error" not in error


def test_goes_by_the_name_it_is_called_by(tmp_path: Path) -> None:
    program = tmp_path / "qemu-img"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom qobra.cli.img import main\nsys.exit(main())\n")
    program.chmod(0o755)
    done = subprocess.run([str(program), "info", "missing"], capture_output=True, text=True, timeout=60)
    assert done.stderr == "qemu-img: Could not open 'missing': Could not open 'missing': No such file or directory\n"
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("qemu-img version 7.2")


def test_every_subcommand_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in img.COMMANDS:
        if command == "resize":
            continue  # whose last word is always the size, as in QEMU; there is help for people
        assert run(command, "--help") == 0
        assert capsys.readouterr().out.startswith(f"usage: qobra-img {command}")


def test_bitmaps_are_carried_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "-q", "-f", "qcow2", "a.q", "1M") == 0
    assert run("bitmap", "--add", "-g", "64k", "a.q", "b0") == 0
    write("a.q", b"x", 300000)
    assert run("convert", "--bitmaps", "-O", "qcow2", "a.q", "b.q") == 0
    with qobra.open("b.q") as image:
        assert list(image.node.bitmaps["b0"].dirty_ranges()) == [(262144, 65536)]


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_killed_copy_is_resumed(fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    with open("a.raw", "wb") as stream:
        for number in range(64):
            stream.seek(number * MIB)
            stream.write(bytes([number]) * 300000)
        stream.truncate(64 * MIB)
    script = (
        "import os, sys\n"
        "from qobra.cli._img import _resume\n"
        "from qobra.cli.img import main\n"
        f"_resume.STEP = {4 * MIB}\n"
        "write = _resume.Journal._write\n"
        "def dying(self, done):\n"
        "    write(self, done)\n"
        f"    if done >= {20 * MIB}:\n"
        "        os.kill(os.getpid(), 9)\n"
        "_resume.Journal._write = dying\n"
        f"main(['convert', '--resume', '-f', 'raw', '-O', '{fmt}', 'a.raw', 'b'], 'qobra-img')\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -9
    assert os.path.exists("b.resume")
    assert run("convert", "--resume", "-f", "raw", "-O", fmt, "a.raw", "b") == 0
    assert "going on at byte" in capsys.readouterr().err
    assert not os.path.exists("b.resume")
    assert run("compare", "-f", "raw", "-F", fmt, "a.raw", "b") == 0
    if fmt == "qcow2":
        assert run("check", "-q", "b") == 0


def test_a_slow_copy_is_noted_every_other_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from qobra.cli._img import _resume

    now = [0.0]
    monkeypatch.setattr(_resume.time, "monotonic", lambda: now[0])
    flushed: list[int] = []
    target: Any = SimpleNamespace(flush=lambda: flushed.append(1))
    journal = _resume.Journal("b", {})
    journal.begin()
    for now[0], noted in (1.0, 0), (2.0, 2 * MIB), (3.9, 2 * MIB), (4.0, 4 * MIB):
        journal.add(MIB, target)
        assert json.loads(Path("b.resume").read_bytes())["done"] == noted
    assert len(flushed) == 2


def test_a_journal_of_another_copy_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.raw").write_bytes(b"x" * MIB)
    Path("b.resume").write_text('{"order": {}, "done": 0}')
    assert run("convert", "--resume", "-f", "raw", "-O", "raw", "a.raw", "b") == 1
    assert "another copy" in capsys.readouterr().err
    Path("b.resume").write_text("junk")
    assert run("convert", "--resume", "-f", "raw", "-O", "raw", "a.raw", "b") == 1


def test_compare_reads_through_a_filter_that_has_to_see_it(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.img", "b.img"):
        assert run("create", "-q", "-f", "qcow2", name, "1M") == 0
        write(name, b"x" * 512, 512, "qcow2")
    Path("rules").write_text('[inject-error]\nevent = "read_aio"\n')
    assert run("compare", "blkdebug:rules:a.img", "b.img") == 4
    assert "Error while reading offset 0 of blkdebug:rules:a.img: Input/output error" in capsys.readouterr().err


def test_a_repair_drops_features_that_others_have_to_keep_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "-q", "-f", "qcow2", "a.img", "1M") == 0
    data = bytearray(Path("a.img").read_bytes())
    data[88] |= 0x80
    Path("a.img").write_bytes(data)
    assert run("check", "a.img") == 0
    assert Path("a.img").read_bytes()[88] == 0x80
    assert run("check", "-r", "all", "a.img") == 0
    assert Path("a.img").read_bytes()[88] == 0


def _damaged(offset: int, value: int) -> None:
    assert run("create", "-q", "-f", "qcow2", "a.img", "64M") == 0
    write("a.img", b"x" * 65536, 0, "qcow2")
    data = bytearray(Path("a.img").read_bytes())
    data[offset : offset + 8] = value.to_bytes(8, "big")
    Path("a.img").write_bytes(data)


def test_a_cluster_in_use_that_counts_as_free_calls_for_new_refcount_structures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _damaged(0x20000 + 2 * 4, 0x0001_0000_0000_0000)  # clusters 4 to 7, of which 5 holds the data
    assert run("check", "-r", "all", "a.img") == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "ERROR cluster 5 refcount=0 reference=1",
        "Rebuilding refcount structure",
        "Repairing cluster 1 refcount=1 reference=0",
        "Repairing cluster 2 refcount=1 reference=0",
    ]
    assert "    0 leaked clusters\n    1 corruptions\n" in captured.out
    assert contents("a.img", "qcow2")[:65536] == b"x" * 65536


def test_counts_are_repaired_in_the_order_of_the_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    _damaged(0x20000 + 2 * 3, 0x0002_0001_0001_0005)  # 3 is counted once too often, 6 is not in use
    os.truncate("a.img", 0x70000)
    assert run("check", "-r", "all", "a.img") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Repairing")]
    assert lines == ["Repairing cluster 3 refcount=2 reference=1", "Repairing cluster 6 refcount=5 reference=0"]


def test_an_image_whose_zero_cluster_cannot_be_is_not_made_older(capsys: pytest.CaptureFixture[str]) -> None:
    _damaged(0x40000, 0x8000_0000_0005_2A01)
    assert run("amend", "-f", "qcow2", "-o", "compat=0.10", "a.img") == 1
    error = capsys.readouterr().err
    assert "Cluster allocation offset 0x52a00 unaligned (L2 offset: 0x40000, L2 index: 0)" in error
    assert "Failed to turn zero into data clusters: Input/output error" in error


def test_what_cannot_be_freed_is_told_and_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from qobra.cli import io

    _damaged(0x40000, 0x8000_0000_0005_2A01)
    assert io.main(["-f", "qcow2", "-c", "discard 0 64k", "a.img"]) == 0
    assert "qcow2: Image is corrupt: Cannot free unaligned cluster 0x52a00" in capsys.readouterr().err


def test_a_failure_that_closing_meets_again_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("create", "-q", "-f", "qcow2", "a.q", "1M") == 0
    options = "driver=qcow2,file.driver=blkdebug,file.image.filename=a.q,file.inject-error.event=l2_update"
    Path("r").write_bytes(b"x" * (1 << 20))
    target = ["-n", "--target-image-opts", "-f", "raw", "r", options]
    assert run("convert", *target) == 1
    assert capfd.readouterr().err == "qobra-img: error while writing: Input/output error\n"


def test_converted_bitmaps_keep_their_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    assert img.main(["create", "-q", "-f", "qcow2", source, "1M"]) == 0
    for name in ("one", "two", "three"):
        assert img.main(["bitmap", "--add", source, name]) == 0
    assert img.main(["convert", "-f", "qcow2", "-O", "qcow2", "--bitmaps", source, target]) == 0
    capfd.readouterr()
    assert img.main(["info", "--output=json", target]) == 0
    bitmaps = json.loads(capfd.readouterr().out)["format-specific"]["data"]["bitmaps"]
    assert [each["name"] for each in bitmaps] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("member", "value", "text"),
    [(0, 0x400200, "Snapshot L1 table offset invalid"), (8, 0x1000_0000 << 32, "Snapshot L1 table too large")],
)
def test_a_snapshot_whose_table_cannot_be(
    member: int, value: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("create", "-q", "-f", "qcow2", "a.img", "64M") == 0
    write("a.img", b"x" * 512, 0, "qcow2")
    assert run("snapshot", "-c", "s", "a.img") == 0
    data = bytearray(Path("a.img").read_bytes())
    table = int.from_bytes(data[64:72], "big") + member
    mask = 8 if not member else 4
    data[table : table + mask] = value.to_bytes(8, "big")[:mask]
    Path("a.img").write_bytes(data)
    assert run("convert", "-l", "s", "-O", "raw", "a.img", "b.img") == 1
    assert run("snapshot", "-d", "s", "a.img") == 1
    assert run("snapshot", "-a", "s", "a.img") == 1
    assert run("amend", "-o", "compat=0.10", "a.img") == 1
    error = capsys.readouterr().err
    assert f"Failed to load snapshot: {text}" in error
    assert f"Could not delete snapshot 's': {text}" in error
    assert f"{text}\nqobra-img: Could not apply snapshot 's': Failed to load snapshot: " in error
    assert "Failed to turn zero into data clusters: " in error
    assert contents("a.img", "qcow2")[:512] == b"x" * 512


def test_progress_of_a_conversion_is_of_what_holds_data(capsys: pytest.CaptureFixture[str]) -> None:
    run("create", "-q", "-f", "qcow2", "a.q", "64M")
    for start in (0, 4, 32, 60):
        write("a.q", b"x" * MIB, start * MIB, "qcow2")
    capsys.readouterr()
    assert run("convert", "-p", "-O", "qcow2", "a.q", "b.q") == 0
    shown = capsys.readouterr().out.split("\r")
    assert [each.strip() for each in shown[:-1]] == [f"({n}.00/100%)" for n in (0, 25, 50, 75, 100, 100)]
    assert run("compare", "a.q", "b.q") == 0


def test_progress_of_a_downgrade_is_told_by_l1_entry(capsys: pytest.CaptureFixture[str]) -> None:
    run("create", "-q", "-f", "qcow2", "a.q", "2G")
    run("snapshot", "-c", "s", "a.q")
    capsys.readouterr()
    assert run("amend", "-p", "-o", "compat=0.10", "a.q") == 0
    shown = capsys.readouterr().out.split("\r")
    assert [each.strip() for each in shown[:-1]][:4] == ["(0.00/100%)", "(12.50/100%)", "(25.00/100%)", "(37.50/100%)"]


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_names_that_are_no_text_come_out_as_they_are(environment: dict[str, str]) -> None:
    """Of a snapshot, a bitmap and the image; whatever the locale, and after the image was written to."""
    image = b"\xfe.q"
    run("create", "-q", "-f", "qcow2", os.fsdecode(image), "1M")
    run("snapshot", "-c", "s-name", os.fsdecode(image))
    run("bitmap", "--add", os.fsdecode(image), "b-name")
    whole = Path(os.fsdecode(image)).read_bytes()
    Path(os.fsdecode(image)).write_bytes(whole.replace(b"s-name", b"\xff-name").replace(b"b-name", b"\x80-name"))
    write(os.fsdecode(image), b"x" * 512)
    script = "from qobra.cli import img; img.main(None, 'qobra-img')"
    done = subprocess.run(
        [sys.executable, "-c", script, "info", image],
        capture_output=True,
        env={
            **os.environ,
            "PYTHONIOENCODING": "utf-8:strict",  # as it is in locales that have a language
            "PYTHONUNBUFFERED": "",
            "PYTHONPATH": os.path.dirname(qobra.__path__[0]),
            **environment,
        },
    )
    assert done.stderr == b"" and done.stdout.startswith(b"image: \xfe.q\n")
    assert b" \xff-name " in done.stdout and b"name: \x80-name\n" in done.stdout
    assert run("convert", "--bitmaps", "-O", "qcow2", os.fsdecode(image), "copy.q") == 0
    assert b"\x80-name" in Path("copy.q").read_bytes()


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_errors_come_before_what_is_still_in_the_buffer_of_a_pipe(environment: dict[str, str]) -> None:
    run("create", "-q", "-f", "qcow2", "a.q", "1M")
    run("create", "-q", "-f", "qcow2", "b.q", "0")
    write("a.q", b"x" * 512, 0, "qcow2")
    Path("rules").write_text('[inject-error]\nevent = "read_aio"\nonce = "off"\n')
    script = "from qobra.cli import img; img.main(None, 'qobra-img')"
    done = subprocess.run(
        [sys.executable, "-c", script, "compare", "blkdebug:rules:a.q", "b.q"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "", "PYTHONPATH": os.path.dirname(qobra.__path__[0]), **environment},
    )
    assert done.stdout.splitlines() == [
        "qobra-img: Error while reading offset 0 of blkdebug:rules:a.q: Input/output error",
        "Warning: Image size mismatch!",
    ]
    assert done.returncode == 4


@pytest.mark.parametrize(
    ("redirection", "status", "output", "errors"),
    [
        (">/dev/full", 1, "", "qobra-img: standard output: No space left on device\n"),
        (">&-", 0, "", ""),
        ("2>&- >&- <&-", 0, "", ""),
        ("2>/dev/full", 0, "Formatting 'a', fmt=raw size=512\n", ""),
        ("<&-", 0, "Formatting 'a', fmt=raw size=512\n", ""),
    ],
)
def test_the_work_is_done_whatever_becomes_of_the_output(
    redirection: str, status: int, output: str, errors: str
) -> None:
    program = f"{sys.executable} -c 'import sys; sys.argv[0] = \"qobra-img\"; from qobra.cli.img import main; main()'"
    command = f"{program} create -f raw a 512 {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, output, errors)
    assert os.path.getsize("a") == 512


def test_a_data_file_s_name_starts_from_where_the_program_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir("d")
    assert run("create", "-q", "-f", "qcow2", "-o", "data_file=d/data", "d/a.q", "1M") == 0
    assert os.listdir() == ["d"] and sorted(os.listdir("d")) == ["a.q", "data"]
    write("d/a.q", b"x" * 512, 0, "qcow2")
    assert (here / "d" / "data").read_bytes()[:512] == b"x" * 512
    monkeypatch.chdir(here / "d")
    assert run("convert", "-O", "raw", "a.q", "a.raw") == 1


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("file.cache.writeback=off", "Block protocol 'file' doesn't support the option 'cache.writeback'"),
        (
            "backing.cache.writeback=off",
            "Could not open backing file: Block format 'qcow2' does not support the option 'cache.writeback'",
        ),
    ],
)
def test_writing_back_is_no_matter_of_a_node(option: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("create", "-q", "-f", "qcow2", "b.q", "1M")
    run("create", "-q", "-f", "qcow2", "-b", "b.q", "-F", "qcow2", "a.q")
    name = f"driver=qcow2,file.driver=file,file.filename=a.q,backing.file.filename=b.q,{option}"
    assert run("compare", "--image-opts", name, "driver=null-co,size=1M") == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(("cache", "whole"), [("writeback", False), ("none", True)])
def test_map_of_a_file_that_ends_within_a_sector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: str, whole: bool
) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(b"x" * 1000)
    options = f"driver=raw,file.driver=file,file.filename={path},cache.direct={'on' if cache == 'none' else 'off'}"
    if img.main(["map", "--output=json", "--image-opts", options], "qobra-img"):
        pytest.skip("the file system has no direct I/O")
    found = [(each["start"], each["length"], each["data"]) for each in json.loads(capsys.readouterr().out)]
    assert found == ([(0, 1024, True)] if whole else [(0, 1000, True), (1000, 24, False)])


def test_a_leak_repair_leaves_damaged_counts_alone(capsys: pytest.CaptureFixture[str]) -> None:
    img.main(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a", "1M"])
    io.main(["-c", "write -q 0 4k", "a"])
    with open("a", "r+b") as file:
        file.seek(2 * 4096 + 2 * 5)
        file.write(b"\0\0")  # the data's cluster counts as free
    capsys.readouterr()
    assert img.main(["check", "-r", "leaks", "a"]) == 1
    assert capsys.readouterr().err.endswith(
        "ERROR need to rebuild refcount structures\nqobra-img: Check failed: Input/output error\n"
    )
    assert img.main(["check", "-q", "-r", "all", "a"]) == 0


def test_counts_past_the_end_of_the_file_are_no_leaks(capsys: pytest.CaptureFixture[str]) -> None:
    img.main(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a", "1M"])
    io.main(["-c", "write -q 0 64k", "a"])
    os.truncate("a", 20000)
    capsys.readouterr()
    assert img.main(["check", "--output=json", "a"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["corruptions"] == 16 and "leaks" not in found and found["allocated-clusters"] == 16
    with open("a", "rb") as file:
        before = file.read()
    assert img.main(["check", "-q", "-r", "all", "a"]) == 2
    with open("a", "rb") as file:
        assert file.read() == before  # flags of clusters that are not there stay as they are


@pytest.mark.parametrize("program", [img, io, nbd])
def test_what_objects_there_are(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["info"] if program is img else []
    assert program.main([*command, "--object", "help"]) == 0
    assert "  secret\n" in capsys.readouterr().out
    assert program.main([*command, "--object", "secret,help"]) == 0
    assert "secret options:\n  data=<string>\n" in capsys.readouterr().out


def test_an_internal_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(io.Shell, "run", lambda _self, _operands: 1 // 0)
    assert io.main(["-c", "length", "a"]) == 1
    assert (
        capsys.readouterr().err == "qobra-io: internal error: ZeroDivisionError: integer division or modulo by zero\n"
    )


def test_a_nul_character_in_a_name_is_an_error_as_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert img.main(["info", r'json:{"driver":"file","filename":"a\u0000b"}']) == 1
    assert capsys.readouterr().err.endswith("Could not open 'a\0b': No such file or directory\n")
    secret = r'{"qom-type":"secret","id":"s","file":"a\u0000b"}'
    assert img.main(["info", "--object", secret, "a"]) == 1
    assert capsys.readouterr().err == "qobra-img: A name has a NUL character in it\n"


def test_check_can_be_quiet_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    img.main(["create", "-q", "-f", "qcow2", "a", "1M"])
    assert img.main(["check", "-q", "--output=json", "a"]) == 0
    assert capsys.readouterr().out == ""


def test_a_check_takes_no_longer_for_a_file_that_is_long_with_nothing_in_it() -> None:
    img.main(["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a", "1M"])
    io.main(["-c", "write -q 0 64k", "a"])
    os.truncate("a", 1 << 43)  # 2^34 clusters
    assert img.main(["check", "-q", "a"]) == 0
    with open("a", "r+b") as file:
        file.seek(40)
        file.seek(int.from_bytes(file.read(8), "big"))
        table = int.from_bytes(file.read(8), "big") & ((1 << 56) - 512)
        file.seek(table)
        file.write(((1 << 42) | 1 << 63).to_bytes(8, "big"))
    assert img.main(["check", "-q", "a"]) == 1  # a cluster so far away that nothing can count up to it


def _small_disk(tmp_path: Path, size: int) -> Path:
    """A directory in which files cannot grow beyond ``size`` together."""
    place = tmp_path / "full"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount")
    return place


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    place = _small_disk(tmp_path, 1 << 19)
    yield place
    subprocess.run(["umount", str(place)], check=False)


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "-f", "raw", "-O", "qcow2", "s"],
        ["convert", "-c", "-f", "raw", "-O", "qcow2", "s"],
        ["convert", "-t", "none", "-f", "raw", "-O", "qcow2", "s"],
        ["convert", "-f", "raw", "-O", "raw", "s"],
        ["dd", "-f", "raw", "-O", "qcow2", "if=s"],
    ],
)
def test_a_full_disk_is_told_in_one_line(command: list[str], full: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("s").write_bytes(os.urandom(1 << 21))
    target = full / "a"
    assert img.main([*command, f"of={target}" if command[0] == "dd" else str(target)]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith(": No space left on device")
    assert target.stat().st_size == 0


@pytest.mark.parametrize(
    ("mode", "size", "reason"),
    [("off", "100T", "Failed to grow the L1 table"), ("metadata", "900G", "Allocating clusters failed")],
)
def test_a_resize_tells_what_it_found_no_space_for(
    mode: str, size: str, reason: str, full: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(full / "a")
    assert run("create", "-q", "-f", "qcow2", path, "1M") == 0
    assert run("resize", f"--preallocation={mode}", path, size) == 1
    assert capfd.readouterr().err == f"qobra-img: {reason}: No space left on device\n"
    assert run("check", "-q", path) == 0


def test_what_was_written_before_a_disk_was_full_is_kept(full: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(full / "a")
    img.main(["create", "-q", "-f", "qcow2", path, "4M"])
    assert io.main(["-c", "write -q -P 7 0 64k", "-c", "write -q 1M 1M", path]) == 1
    assert capfd.readouterr() == ("write failed: No space left on device\n", "")
    assert img.main(["check", "-q", path]) == 0
    assert io.main(["-c", "read -q -P 7 0 64k", path]) == 0


def test_a_rebase_that_finds_no_space_leaves_no_leaks(full: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("s").write_bytes(os.urandom(1 << 21))
    path = str(full / "a")
    img.main(["create", "-q", "-f", "qcow2", "-b", str(Path("s").absolute()), "-F", "raw", path])
    assert img.main(["rebase", "-b", "", path]) == 1
    assert capfd.readouterr().err == "qobra-img: Error while writing to COW image: No space left on device\n"
    assert img.main(["check", "-q", path]) == 0


def test_a_snapshot_that_finds_no_space_leaves_the_image_as_it_was(
    full: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(full / "a")
    img.main(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "4M"])
    io.main(["-c", "write -q -P 1 0 100k", path])
    img.main(["snapshot", "-c", "x", path])
    try:
        (full / "fill").write_bytes(bytes(1 << 20))
    except OSError:
        pass
    for action in ("-c", "-a"):
        assert img.main(["snapshot", action, "x", path]) == 1
        assert capfd.readouterr().err.count("\n") == 1
        assert img.main(["check", "-q", path]) == 0
    (full / "fill").unlink()
    assert img.main(["snapshot", "-a", "x", path]) == 0


def test_convert_onto_a_backing_file_hides_what_it_holds_where_the_source_has_none() -> None:
    run("create", "-q", "-f", "qcow2", "base.q", "1M")
    write("base.q", b"b" * 131072)
    run("create", "-q", "-f", "qcow2", "empty.q", "1M")
    assert run("convert", "-B", "base.q", "-F", "qcow2", "-O", "qcow2", "empty.q", "o.q") == 0
    assert run("compare", "empty.q", "o.q") == 0
    run("create", "-q", "-f", "raw", "short.img", "64k")
    run("create", "-q", "-f", "qcow2", "-b", "short.img", "-F", "raw", "top.q", "1M")
    write("short.img", b"b" * 65536)
    assert run("convert", "-B", "base.q", "-F", "qcow2", "-O", "qcow2", "top.q", "p.q") == 0
    with qobra.open("p.q", "r") as image:
        assert image.pread(131072, 0) == b"b" * 65536 + bytes(65536)


def test_convert_makes_a_target_of_the_length_of_the_source(capfd: pytest.CaptureFixture[str]) -> None:
    run("create", "-q", "a.img", "1M")
    for size in ("512", "2M"):
        assert run("convert", "-f", "raw", "-O", "raw", "-o", f"size={size}", "a.img", "o.img") == 0
        assert os.path.getsize("o.img") == 1 << 20
    assert run("convert", "-f", "raw", "-O", "qcow2", "-B", "", "a.img", "p.q") == 1
    assert "Use of backing file requires explicit backing format" in capfd.readouterr().err


def test_measure_counts_the_encryption_header(capfd: pytest.CaptureFixture[str]) -> None:
    options = "encrypt.format=luks,encrypt.key-secret=s"
    assert run("measure", "--object", "secret,id=s,data=x", "-O", "qcow2", "-o", options, "--size", "0") == 0
    assert "required size: 2293760\n" in capfd.readouterr().out
    options += ",encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc"
    assert run("measure", "--object", "secret,id=s,data=x", "-O", "qcow2", "-o", options, "--size", "0") == 0
    assert "required size: 786432\n" in capfd.readouterr().out


def test_info_of_a_damaged_luks_header_names_the_image(capsys: pytest.CaptureFixture[str]) -> None:
    """The image can be opened: the header is looked at when it is told of."""
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1"
    assert run("create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", options, "a.q", "1M") == 0
    data = Path("a.q").read_bytes()
    Path("a.q").write_bytes(data.replace(b"LUKS\xba\xbe", b"LUCK\xba\xbe", 1))
    for name in (["a.q"], ["--image-opts", "driver=qcow2,file.filename=a.q"]):
        assert run("info", *name) == 1
        assert capsys.readouterr().err == f"qobra-img: Could not open '{name[-1]}': Volume is not in LUKS format\n"


def test_key_slots_of_an_image_without_encryption(capfd: pytest.CaptureFixture[str]) -> None:
    run("create", "-q", "-f", "qcow2", "a.q", "1M")
    assert run("amend", "-o", "encrypt.state=inactive,encrypt.keyslot=0", "a.q") == 1
    assert capfd.readouterr().err == "qobra-img: Can't amend encryption options - encryption not present\n"


def test_what_is_compressed_is_whole_clusters_wherever_the_data_begin_and_end() -> None:
    run("create", "-q", "-f", "raw", "a.img", "1M")
    for offset in (70000, 400000, 1048000):
        write("a.img", b"a" * 500, offset, "raw")
    assert run("convert", "-c", "-p", "-f", "raw", "-O", "qcow2", "a.img", "o.q") == 0
    assert run("compare", "-f", "raw", "-F", "qcow2", "a.img", "o.q") == 0
    run("create", "-q", "-f", "qcow2", "base.q", "1M")
    write("base.q", b"b" * (1 << 20))
    run("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base.q", "-F", "qcow2", "top.q")
    for offset in (70000, 400000):
        write("top.q", b"a" * 500, offset)
    assert run("convert", "-c", "-B", "base.q", "-F", "qcow2", "-O", "qcow2", "top.q", "p.q") == 0
    assert run("compare", "top.q", "p.q") == 0


def test_why_a_request_failed_is_said_as_the_c_library_does(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.raw").write_bytes(b"compressible " * 5000)
    assert run("convert", "-c", "-f", "raw", "-O", "qcow2", "a.raw", "b.q") == 0
    with open("b.q", "r+b") as file:
        file.seek(5 * 65536)  # after header, refcounts and tables
        file.write(b"\xff" * 64)
    assert run("dd", "-f", "qcow2", "if=b.q", "of=c.raw") == 1
    assert capsys.readouterr().err == ("qobra-img: error while reading from input image file: Input/output error\n")


_SIGNALLED = """
import os, signal, sys
from qobra.cli import img
from qobra.cli._img import _convert, dd
from qobra.cli._tool.opening import Images

def signalled(holder, name, number):
    run = getattr(holder, name)
    def then(*arguments):
        try:
            return run(*arguments)
        finally:
            os.kill(os.getpid(), number)
    setattr(holder, name, then)

for holder in (_convert, dd):
    signalled(holder, "create_target", signal.SIGTERM)
signalled(Images, "abandon", signal.SIGINT)
img.main()
"""


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (["convert", "-f", "raw", "-O", "qcow2", "a", "b"], {"b": 0}),
        (["dd", "-f", "raw", "-O", "qcow2", "if=a", "of=b"], {"b": 0}),
        (["convert", "--resume", "-f", "raw", "-O", "raw", "a", "b"], {"b": 0, "b.resume": None}),
    ],
)
def test_a_target_that_was_just_made_is_taken_back(command: list[str], left: dict[str, int | None]) -> None:
    """By a signal in the moment between it is made and filled, also if Ctrl-C is pressed while that happens: it
    would be taken for a whole disk of zeroes.
    """
    Path("a").write_bytes(b"x" * 65536)
    done = subprocess.run([sys.executable, "-c", _SIGNALLED, *command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
    found = {path.name: path.stat().st_size for path in Path().glob("b*")}
    assert {name: found[name] if size is not None else None for name, size in left.items()} == left
    assert len(found) == len(left)
    if len(left) == 2:
        assert run(*command) == 0
        assert Path("b").read_bytes() == b"x" * 65536


def test_a_target_that_was_half_made_is_made_anew() -> None:
    """The journal is there before the target."""
    Path("a").write_bytes(b"x" * 65536)
    code = (
        "import os\n"
        "from qobra.cli._img import _convert\n"
        "from qobra.cli.img import main\n"
        "_convert.create_target = lambda *_: os._exit(7)\n"
        "main(['convert', '--resume', '-f', 'raw', '-O', 'qcow2', 'a', 'b'], 'qobra-img')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 7
    assert os.path.exists("b.resume")
    Path("b").write_bytes(b"QFI\xfb")
    assert run("convert", "--resume", "-f", "raw", "-O", "qcow2", "a", "b") == 0
    assert contents("b", "qcow2")[:65536] == b"x" * 65536
    assert not os.path.exists("b.resume")


def test_a_target_that_cannot_be_made_leaves_no_journal(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a").write_bytes(b"x" * 65536)
    os.mkdir("b")
    assert run("convert", "--resume", "-f", "raw", "-O", "raw", "a", "b") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not os.path.exists("b.resume")


_KILLED = """
import os, signal, sys
from qobra.block.format.qcow2.node import Qcow2Node
from qobra.block.layer import BlockLayer
from qobra.cli import img

holder, name = {"change": (Qcow2Node, "change_backing_file"), "close": (BlockLayer, "close")}[sys.argv.pop(1)]
number = int(sys.argv.pop(1))
run = getattr(holder, name)
def then(*arguments):
    if holder is BlockLayer:
        os.kill(os.getpid(), number)
        return run(*arguments)
    run(*arguments)
    os.kill(os.getpid(), number)
setattr(holder, name, then)
img.main()
"""


@pytest.mark.parametrize(
    ("when", "number"),
    [("change", signal.SIGKILL), ("change", signal.SIGTERM), ("close", signal.SIGINT), ("close", signal.SIGTERM)],
)
def test_a_rebase_that_is_ended_loses_nothing(when: str, number: signal.Signals) -> None:
    """The old backing file is given up once what was copied from it is there, not only in memory."""
    assert run("create", "-q", "-f", "qcow2", "base.q", "1M") == 0
    write("base.q", b"b" * MIB)
    assert run("create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "top.q") == 0
    assert run("bitmap", "--add", "top.q", "b0") == 0
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, when, str(int(number)), "rebase", "-b", "", "top.q"], timeout=60
    )
    assert done.returncode == -number
    assert contents("top.q") == b"b" * MIB
    assert run("check", "-q", "top.q") == 0
    if number != signal.SIGKILL:
        with qobra.open("top.q") as image:
            assert image.node.bitmaps["b0"].inconsistent is False


def test_what_nohup_ignores_stays_ignored() -> None:
    code = (
        "import os, signal, sys\n"
        "from qobra.cli import img\n"
        "from qobra.cli._img import _convert\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "create = _convert.create_target\n"
        "def hang_up(*arguments):\n"
        "    create(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "_convert.create_target = hang_up\n"
        "img.main()\n"
    )
    Path("a").write_bytes(b"x" * 65536)
    assert subprocess.run([sys.executable, "-c", code, "convert", "-O", "raw", "a", "b"], timeout=60).returncode == 0
    assert Path("b").read_bytes() == b"x" * 65536
