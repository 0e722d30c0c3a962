"""Random command lines of any option, in any combination, for any kind of file; most of them make no sense.

:mod:`qobra.testing.tools.script` makes sequences of which most do something. Here each is one command on a directory
that has one of everything (:func:`prepare`), so it is the refusals that are compared.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from random import Random

from qobra.testing.tools.words import CACHES, SIZES, WRONG_SIZES, WRONG_WORDS, Command

FILES = (
    "r", "s", "q", "o", "o2", "sn", "bm", "enc", "c", "d", "e", "dir", "bad", "t", "df", "dfx", "lazy", "leak",
    "corr", "v2", "ext", "zero", "link", "broken", "nofile", "nodir/x", "", "sp ace", "ünï", "co,mma", "new\nline",
    "a:b",
    "/dev/null", "/dev/zero", "null-co://", "null-aio://", "nbd://localhost:1/x", "nbd+unix:///x?socket=nosock",
    "blkdebug::q",
    'json:{"driver":"null-co","size":1048576}', 'json:{"driver":"qcow2","file.filename":"q"}', "json:{", "file:q",
    "nosuch:q",
)  # fmt: skip
"""What there is, and what there is not."""
DESCRIBED = (
    "driver=qcow2,file.filename=q", "driver=raw,file.filename=r", "file.filename=q", "driver=null-co,size=1M", "q",
    "",
    "driver=qcow2", "driver=nosuch", "driver=raw,file.filename=r,offset=512", "driver=raw,file.filename=r,size=1000",
    "driver=qcow2,encrypt.key-secret=s0,file.filename=enc", "driver=qcow2,file.filename=q,x=1",
    "driver=qcow2,read-only=x,file.filename=q",
    "driver=qcow2,file.filename=q,backing=x", "driver=qcow2,file.filename=o,backing.driver=null-co", "a=b",
)  # fmt: skip
"""What ``--image-opts`` may be given."""

_FORMATS = ("raw", "qcow2", "qcow2", "raw", "file", "nosuch", "", "null-co", "blkdebug", "host_device")
_CREATION = (
    "size=1M", "size=x", "compat=0.10", "compat=1.1", "compat=x", "cluster_size=4k", "cluster_size=3",
    "preallocation=off",
    "preallocation=metadata", "preallocation=full", "preallocation=x", "lazy_refcounts=on", "lazy_refcounts=x",
    "refcount_bits=1",
    "refcount_bits=3", "encryption=on", "encrypt.format=luks", "encrypt.format=x", "encrypt.key-secret=s0",
    "encrypt.iter-time=10",
    "compression_type=zstd", "compression_type=x", "data_file=dd", "data_file_raw=on", "extended_l2=on",
    "backing_file=q",
    "backing_fmt=qcow2", "backing_fmt=x", "nosuch=1", "nosuch", "", ",", "nolazy_refcounts", "lazy_refcounts",
    "nocow=on",
    "extent_size_hint=1M",
)  # fmt: skip
_VALUES = {
    "format": _FORMATS,
    "output": ("human", "json", "json", "xml", ""),
    "cache": (*CACHES, "x", ""),
    "size": (*SIZES, *WRONG_SIZES),
    "number": ("0", "1", "2", "8", "16", "17", "-1", "x", "", "1k", "99999999999"),
    "creation": _CREATION,
    "object": ("secret,id=s0,data=secret", "secret,id=s0", "secret,data=x", "nosuch,id=a", "",
    "secret,id=1a,data=x", "{"),
    "snapshot": ("one", "two", "1", "x", "", "snapshot.id=1", "snapshot.name=one",
    "snapshot.id=1,snapshot.name=two", "snapshot.x=1"),
    "bitmap": ("b0", "b1", "x", "", "n" * 1024),
    "repair": ("leaks", "all", "x", ""),
    "preallocation": ("off", "metadata", "falloc", "full", "x"),
    "aio": ("threads", "native", "io_uring", "x"),
    "word": WRONG_WORDS,
    "pattern": ("0", "1", "255", "256", "-1", "x"),
    "file": FILES,
}  # fmt: skip

_COMMON = "--object=object --image-opts -U -q "
_COMMANDS = {
    "amend": (_COMMON + "-f=format -p -t=cache -o=creation -o=creation --force", ("file",)),
    "bench": (
        "--image-opts -q -U -c=number -d=number -f=format --flush-interval=number -i=aio -n --no-drain -o=size"
        " --pattern=pattern -s=size -S=size -t=cache -w",
        ("file",),
    ),
    "bitmap": (
        "--object=object --image-opts -f=format --merge=bitmap --add --remove --clear --enable --disable -b=file"
        " -F=format -g=size",
        ("file", "bitmap"),
    ),
    "check": (_COMMON + "-f=format --output=output -r=repair -T=cache", ("file",)),
    "commit": (_COMMON + "-f=format -t=cache -b=file -r=size -d -p", ("file",)),
    "compare": (_COMMON + "-f=format -F=format -T=cache -p -s", ("file", "file")),
    "convert": (
        _COMMON
        + "--target-image-opts --target-is-zero --bitmaps --skip-broken-bitmaps -C -c -n -f=format -t=cache -T=cache"
        " -O=format -B=file -F=format -o=creation -o=creation -l=snapshot -S=size -m=number -W --salvage",
        ("file", "target"),
    ),
    "create": ("--object=object -q -f=format -b=file -F=format -u -o=creation -o=creation", ("target", "size")),
    "dd": ("--image-opts -U -f=format -O=format", ("if", "of", "operand")),
    "info": (_COMMON + "-f=format --output=output --backing-chain", ("file",)),
    "map": (_COMMON + "-f=format --start-offset=size --max-length=size --output=output", ("file",)),
    "measure": (_COMMON + "-f=format --output=output -O=format -o=creation --size=size -l=snapshot", ("file",)),
    "snapshot": (_COMMON + "-l -a=snapshot -c=snapshot -d=snapshot", ("file",)),
    "rebase": (_COMMON + "-f=format -t=cache -T=cache -p -u -b=file -F=format", ("file",)),
    "resize": (_COMMON + "-f=format --preallocation=preallocation --shrink", ("file", "change")),
}
"""Each subcommand's options with what their values are, and its operands."""


_DAMAGED = ("q", "o", "sn", "bm", "c", "ext", "lazy", "v2", "df", "zero")
_ON_DAMAGED = (
    "check", "check -r leaks", "check -r all", "check --output=json", "info", "info --output=json", "map",
    "map --output=json", "convert -O raw {} new", "convert -O qcow2 {} new", "convert --salvage -O raw {} new",
    "compare -f raw r {}", "snapshot -l", "snapshot -c three", "snapshot -a one", "snapshot -d two",
    "bitmap --add {} b9", "bitmap --remove {} b0", "bitmap --clear {} b0", "resize {} 2M", "resize --shrink {} 512k",
    "amend -o lazy_refcounts=on", "amend -o compat=1.1", "measure -O qcow2", "commit",
    "rebase -u -b r -F raw", "dd bs=64k if={} of=new",
)  # fmt: skip
"""What is done with an image that was damaged, whose name is {} or comes last."""


def odd_script(seed: int) -> list[Command]:
    """The commands of ``seed``: one of any kind, or some on an image that was damaged before."""
    random = Random(seed)
    if random.random() < 0.6:
        return [odd_command(seed)]
    name = random.choice(_DAMAGED)
    script = [_damage(random, name)]
    for line in random.choices(_ON_DAMAGED, k=random.choice([1, 1, 2, 3])):
        script.append(["qemu-img", *(line if "{}" in line else line + " {}").format(name).split()])
    return [*script, ["qemu-img", "check", name]]


def _damage(random: Random, name: str) -> Command:
    """``damage FILE OFFSET BYTES``: bytes of one of the first clusters, where the tables lie, are overwritten."""
    cluster = random.choice([0, 0, 1, 2, 3, *range(4, 16)])
    offset = cluster * 4096 + random.choice([random.randrange(112), random.randrange(64) * 8, random.randrange(4096)])
    data = random.choice(
        [b"\0", b"\xff", b"\x80", b"\1", bytes(8), b"\xff" * 8, random.randbytes(8), random.randbytes(2)]
    )
    return ["damage", name, str(offset), data.hex()]


def odd_command(seed: int) -> Command:
    """The command line of ``seed``."""
    random = Random(seed)
    name = random.choice(list(_COMMANDS))
    options, operands = _COMMANDS[name]
    words: list[Command] = []
    described = False
    for option in options.split():
        key, _, kind = option.partition("=")
        often = key in ("-f", "-O", "-F") or (key == "-b" and name == "rebase")
        if random.random() > (0.5 if often else 0.12):
            continue
        described = described or key == "--image-opts"
        words.append([key] if not kind else [key, _value(random, kind, described)])
        if random.random() < 0.05:
            words.append(words[-1])
    count = len(operands) + random.choice([0] * 17 + [-1, 1, -2])
    for kind in [*operands, "file"][: max(0, count)]:
        words.append([_operand(random, kind, described)])
    if random.random() < 0.2:
        random.shuffle(words)
    return ["qemu-img", name, *(word for part in words for word in part)]


def _value(random: Random, kind: str, described: bool) -> str:
    if kind == "format":
        return random.choice(_FORMATS[:4] if random.random() < 0.8 else _FORMATS)
    if kind == "size" and random.random() < 0.7:
        return random.choice(SIZES)
    if kind == "file" and described and random.random() < 0.7:
        return random.choice(DESCRIBED)
    return random.choice(_VALUES[kind])


def _operand(random: Random, kind: str, described: bool) -> str:
    if kind in ("if", "of"):
        return f"{kind}={_operand(random, 'file' if kind == 'if' else 'target', described)}"
    if kind == "operand":
        return random.choice(["bs", "count", "skip", "x"]) + "=" + random.choice([*SIZES, "x"])
    if kind == "target":
        return random.choice(["new", "new", "new", "q", "r", "dir", "nodir/x", "", "/dev/full", "null-co://"])
    if kind == "change":
        return random.choice(["", "+", "-"]) + _value(random, "size", described)
    return _value(random, kind, described)


def prepare(place: Path) -> None:
    """One of everything, made by QEMU's tools."""
    place.mkdir(parents=True)

    def img(*words: str) -> None:
        for attempts_left in (2, 1, 0):  # on a busy machine QEMU may fail to find how often to hash a password
            done = subprocess.run(["qemu-img", *words], cwd=place, check=not attempts_left, stdout=subprocess.DEVNULL)
            if not done.returncode:
                break

    def write(name: str, *lines: str) -> None:
        words = [word for line in lines for word in ("-c", f"write -q {line}")]
        subprocess.run(["qemu-io", "-f", "qcow2", *words, name], cwd=place, check=True, stdout=subprocess.DEVNULL)

    def new(name: str, *words: str, size: str = "1M") -> None:
        img("create", "-f", "qcow2", "-o", "cluster_size=4k", *words, name, size)

    (place / "dir").mkdir()
    (place / "r").write_bytes(bytes(65536) + b"r" * 65536 + bytes(917504))
    (place / "s").write_bytes(bytes(range(256)) * 3906 + b"s" * 64)
    (place / "e").touch()
    (place / "t").write_text("text\n")
    (place / "bad").write_bytes(b"QFI\xfb\0\0\0\3" + b"\xff" * 504)
    new("q")
    write("q", "-P 1 0 64k", "-P 2 512k 8k", "-z 128k 32k")
    new("o", "-b", "q", "-F", "qcow2")
    write("o", "-P 3 4k 8k", "-P 4 900k 100k")
    new("o2", "-b", "o", "-F", "qcow2", size="2M")
    new("sn")
    write("sn", "-P 1 0 64k")
    img("snapshot", "-c", "one", "sn")
    write("sn", "-P 9 4k 64k")
    img("snapshot", "-c", "two", "sn")
    new("bm")
    for bitmap in ("b0", "b1"):
        img("bitmap", "--add", "bm", bitmap)
    write("bm", "-P 1 300k 64k")
    secret = ("--object", "secret,id=s0,data=secret")
    new("enc", *secret, "-o", "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10")
    img("convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", "s", "c")
    new("d", "-u", "-b", "nothere", "-F", "qcow2")
    new("df", "-o", "data_file=data,data_file_raw=on")
    new("dfx", "-o", "data_file=nodata")
    (place / "nodata").unlink()
    new("lazy", "-o", "lazy_refcounts=on")
    new("v2", "-o", "compat=0.10")
    new("ext", "-o", "extended_l2=on,cluster_size=16k")
    write("ext", "-P 1 1k 5k")
    new("zero", size="0")
    image = (place / "q").read_bytes()
    for name in ("sp ace", "ünï", "co,mma", "new\nline", "a:b"):
        (place / name).write_bytes(image)
    block = 2 * 4096
    (place / "leak").write_bytes(image[: block + 6] + b"\0\2" + image[block + 8 :])
    (place / "corr").write_bytes(image[: block + 10] + b"\0\0" + image[block + 12 :])
    os.symlink("q", place / "link")
    os.symlink("missing", place / "broken")
