"""What Qobra writes, qemu-img finds clean and identical to a model; and what qemu-img writes, Qobra reads."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qobra.block.format.qcow2 import layout
from qobra.errors import QobraError
from qobra.testing.images import ImageLab

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

SECTOR = 512
MAX_SECTORS = 6000

sectors = st.integers(0, MAX_SECTORS - 1)
lengths = st.one_of(st.integers(1, 16), st.integers(1, 700))


def _run(*words):
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def _must(*words):
    done = _run(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


class Images(RuleBasedStateMachine):
    """Random requests to an image of random shape. Every so often, and at the end, the peer looks at it."""

    @initialize(
        seed=st.integers(0, 1 << 32),
        bits=st.sampled_from([9, 10, 12, 14, 16, 16, 18, 21]),
        order=st.integers(0, 6),
        version=st.sampled_from(["v2", "v3", "v3", "v3"]),
        features=st.sets(st.sampled_from(["lazy", "zstd", "extended", "backing", "data", "raw data", "prealloc"])),
        size=st.integers(1, MAX_SECTORS),
    )
    def make(self, seed, bits, order, version, features, size):
        self.directory = tempfile.TemporaryDirectory()
        self.lab = ImageLab(self.directory.name)
        self.random = random.Random(seed)
        self.external = False
        self.backed = False
        self.snapshots = {}
        options = {"size": size * SECTOR, "cluster_size": 1 << bits, "version": version}
        self.model = bytearray(size * SECTOR)
        if version == "v3":
            options["refcount_bits"] = 1 << order
            options["lazy_refcounts"] = "lazy" in features
            options["compression_type"] = "zstd" if "zstd" in features else "zlib"
            options["extended_l2"] = "extended" in features and bits >= 14
            if features & {"data", "raw data"}:
                options["data_file"] = "data"
                options["data_file_raw"] = "raw data" in features
                self.external = True
        if "backing" in features and "raw data" not in features:
            base = self.random.randbytes(self.random.randrange(1, MAX_SECTORS) * SECTOR)
            with open(self.lab.path("base"), "wb") as file:
                file.write(base)
            options.update(backing_file="base", backing_fmt="raw")
            self.model[:] = base[: len(self.model)].ljust(len(self.model), b"\0")
            self.backed = True
        elif "prealloc" in features:
            options["preallocation"] = self.random.choice(["metadata", "falloc", "full"])
        self.version = version
        self.cluster = 1 << bits
        self.lab.create("a", **options)
        self._open()

    def _open(self):
        self.disk = self.lab.open(
            "a",
            discard="unmap",
            l2_cache_size=self.random.choice([2048, 1 << 20]),
            l2_cache_entry_size=self.random.choice([512, self.cluster]),
            refcount_cache_size=self.random.choice([512, 1 << 20]),
        )

    def _range(self, sector, length):
        offset = sector * SECTOR % len(self.model)
        return offset, min(length * SECTOR, len(self.model) - offset)

    @rule(sector=sectors, length=lengths)
    def write(self, sector, length):
        offset, length = self._range(sector, length)
        data = self.random.randbytes(length)
        self.disk.write(offset, data)
        self.model[offset : offset + length] = data

    @rule(sector=sectors, length=lengths, unmap=st.booleans())
    def zero(self, sector, length, unmap):
        offset, length = self._range(sector, length)
        self.disk.backend.write_zeroes(offset, length, may_unmap=unmap)
        self.model[offset : offset + length] = bytes(length)

    @rule(sector=sectors, length=lengths)
    def discard(self, sector, length):
        offset, length = self._range(sector, length)
        self.disk.backend.discard(offset, length)
        found = self.disk.read(offset, length)
        if not (self.backed and self.version == "v2"):
            for at in range(0, length, SECTOR):
                sector_data = found[at : at + SECTOR]
                assert sector_data in (self.model[offset + at : offset + at + SECTOR], bytes(SECTOR))
        self.model[offset : offset + length] = found

    @rule(sector=sectors, clusters=st.integers(1, 3))
    def write_compressed(self, sector, clusters):
        offset = sector * SECTOR % len(self.model) // self.cluster * self.cluster
        length = min(clusters * self.cluster, len(self.model) - offset)
        data = (self.random.randbytes(length // 8 + 1) * 9)[:length]
        try:
            self.disk.node.write_compressed(offset, data)
        except OSError:
            data = self.disk.read(offset, length)  # a later cluster was allocated: some may be written
        except QobraError:
            assert self.external
            return
        self.model[offset : offset + length] = data

    @rule(sector=sectors, length=lengths)
    def read(self, sector, length):
        offset, length = self._range(sector, length)
        assert self.disk.read(offset, length) == self.model[offset : offset + length]

    @precondition(lambda self: not (self.snapshots and self.version == "v2"))
    @rule(size=st.integers(1, MAX_SECTORS), preallocation=st.sampled_from(["off", "off", "metadata", "falloc", "full"]))
    def resize(self, size, preallocation):
        size *= SECTOR
        if size < len(self.model) or self.backed:
            preallocation = "off"
        with self.disk.layer.drained():
            self.disk.node.truncate(size, preallocation=preallocation)
        self.model = self.model[:size] + bytes(max(0, size - len(self.model)))

    @precondition(lambda self: not self.external and len(self.snapshots) < 4)
    @rule()
    def snapshot(self):
        name = f"s{self.random.randrange(1 << 30)}"
        try:
            self.disk.node.snapshot_create(name)
        except QobraError as error:
            assert "overflow" in str(error)
        else:
            self.snapshots[name] = bytes(self.model)

    @precondition(lambda self: self.snapshots)
    @rule(delete=st.booleans())
    def end_snapshot(self, delete):
        name = self.random.choice(sorted(self.snapshots))
        if delete:
            self.disk.node.snapshot_delete(None, name)
            del self.snapshots[name]
        elif self.version == "v3" or len(self.snapshots[name]) == len(self.model):
            try:
                self.disk.node.snapshot_apply(name)
            except QobraError as error:
                assert "overflow" in str(error)
                self.model = bytearray(self.disk.content())
            else:
                self.model = bytearray(self.snapshots[name])

    @rule()
    def flush(self):
        self.disk.backend.flush()

    @rule()
    def reopen(self):
        self.disk.close()
        self._open()

    @invariant()
    def length(self):
        if hasattr(self, "disk"):
            assert self.disk.node.length == len(self.model)

    def teardown(self):
        if not hasattr(self, "disk"):
            return
        try:
            assert self.disk.content() == self.model
            self.disk.close()
            image = self.lab.path("a")
            _must("qemu-img", "check", image)
            with open(self.lab.path("model"), "wb") as file:
                file.write(self.model)
            assert "identical" in _must("qemu-img", "compare", image, self.lab.path("model"))
            for name, content in self.snapshots.items():
                out = self.lab.path("out")
                _must("qemu-img", "convert", "-l", f"snapshot.name={name}", "-O", "raw", image, out)
                with open(out, "rb") as file:
                    found = file.read()
                shared = min(len(found), len(content))
                assert found[:shared] == content[:shared]
        finally:
            self.directory.cleanup()


Images.TestCase.settings = settings(stateful_step_count=30)
TestImages = pytest.mark.soak(Images.TestCase)


MADE = [
    ["cluster_size=512"],
    ["cluster_size=2M"],
    ["compat=0.10"],
    ["extended_l2=on,cluster_size=16k"],
    ["refcount_bits=1"],
    ["preallocation=metadata"],
    ["compression_type=zstd"],
    ["data_file=@data,data_file_raw=on"],
]


@pytest.mark.parametrize("options", MADE, ids=lambda options: options[0])
def test_images_that_qemu_made_read_the_same(tmp_path, options):
    lab = ImageLab(tmp_path)
    chosen = random.Random(3)
    image = lab.path("a")
    _must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options[0].replace("@", f"{tmp_path}/"), image, "4M")
    requests = []
    for number in range(1, 40):
        offset, length = chosen.randrange(6000) * 512, chosen.choice([512, 4096, 70144])
        verb = chosen.choice([f"write -P {number}", f"write -P {number}", "write -z", "write -z -u", "discard"])
        requests += ["-c", f"{verb} {offset} {length}"]
    if not any(word in options[0] for word in ("data_file", "preallocation", "2M")):
        requests += ["-c", "write -c -P 200 3584k 128k"]
    _must("qemu-io", "-d", "unmap", *requests, image)
    _must("qemu-img", "convert", "-O", "raw", image, lab.path("raw"))
    with open(lab.path("raw"), "rb") as file:
        want = file.read()
    with lab.open("a", read_only=True) as disk:
        assert disk.content() == want
        ours = disk.node.check()
    theirs = json.loads(_must("qemu-img", "check", "--output=json", image))
    assert ours == {key: value for key, value in theirs.items() if key not in ("filename", "format")}
    with lab.open("a") as disk:
        disk.write(1000, b"and on" * 50)
    _must("qemu-img", "check", image)


def test_check_of_damaged_images_agrees(tmp_path, soak_scale):
    lab = ImageLab(tmp_path)
    chosen = random.Random(5)
    for _ in range(8 * soak_scale):
        cluster = chosen.choice([512, 4096, 65536])
        image = lab.create(
            "a", size=16 << 20, cluster_size=cluster, extended_l2=cluster > 4096 and chosen.random() < 0.5
        )
        with lab.open("a", discard="unmap") as disk:
            for number in range(40):
                disk.write(chosen.randrange(30000) * 512, bytes((number + 1,)) * chosen.choice([512, 4096, 65536]))
                if number in (20, 30) and chosen.random() < 0.4:
                    disk.node.snapshot_create(str(number))
        with open(image, "r+b") as file:
            size = os.path.getsize(image)
            for _ in range(chosen.randrange(4)):
                at = chosen.randrange(cluster, min(size, 20 * cluster))
                file.seek(at)
                old = file.read(1)[0]
                file.seek(at)
                file.write(bytes((old ^ 1 << chosen.randrange(8),)))
        try:
            with lab.open("a", read_only=True, _check=True) as disk:
                ours = disk.node.check()
                tables = [entry & layout.OFFSET_MASK for entry in disk.node.image.tables.l1 if entry]
        except QobraError:
            assert _run("qemu-img", "check", image).returncode == 1
            continue
        if any(not 0 < table < size for table in tables):
            continue  # QEMU takes the header, or memory that it read nothing into, for the table
        theirs = json.loads(_run("qemu-img", "check", "--output=json", image).stdout)
        assert ours == {key: value for key, value in theirs.items() if key not in ("filename", "format")}
        with lab.open("a", _check=True) as disk:
            disk.node.check(fix_leaks=True, fix_errors=True)
        assert _run("qemu-img", "check", image).returncode in (0, 2)


def test_info_says_what_qemu_says(tmp_path):
    lab = ImageLab(tmp_path)
    for options in ({}, {"version": "v2"}, {"extended_l2": True}, {"data_file": "d"}, {"lazy_refcounts": True}):
        image = lab.create("a", size=1 << 20, **options)
        theirs = json.loads(_must("qemu-img", "info", "--output=json", image))
        with lab.open("a", read_only=True) as disk:
            ours = disk.node.info()
        assert ours["format-specific"] == theirs["format-specific"]
        assert ours["cluster-size"] == theirs["cluster-size"] and ours["dirty-flag"] == theirs["dirty-flag"]


MEASURED = [
    "cluster_size=512",
    "cluster_size=2M,extended_l2=on",
    "refcount_bits=64",
    "preallocation=full",
    "compat=0.10",
]


@pytest.mark.parametrize("text", MEASURED)
def test_measure_agrees(text):
    from qobra.block.format.qcow2 import Qcow2Node

    words = dict(word.split("=") for word in text.split(","))
    options = {"size": 3_000_000_000 // 512 * 512}
    if "cluster_size" in words:
        options["cluster-size"] = {"512": 512, "2M": 2 << 20}[words["cluster_size"]]
    options["extended-l2"] = "extended_l2" in words
    options["refcount-bits"] = int(words.get("refcount_bits", 16))
    options["preallocation"] = words.get("preallocation", "off")
    options["version"] = "v2" if "compat" in words else "v3"
    theirs = _must("qemu-img", "measure", "-O", "qcow2", "-o", text, "--size", str(options["size"]), "--output=json")
    assert Qcow2Node.measure(options) == json.loads(theirs)


def test_bitmaps_go_to_and_fro(tmp_path):
    from qobra.block.bitmap import DirtyBitmap

    lab = ImageLab(tmp_path)
    image = lab.create("a", size=64 << 20)
    with lab.open("a") as disk:
        DirtyBitmap(disk.node, "ours", 65536, persistent=True)
        disk.write(1 << 20, b"x" * 70000)
    _must("qemu-img", "bitmap", "--add", "-g", "4096", image, "theirs")
    _must("qemu-img", "bitmap", "--merge", "ours", image, "theirs")
    _must("qemu-img", "bitmap", "--disable", image, "ours")
    _must("qemu-img", "check", image)
    with lab.open("a") as disk:
        ours, theirs = disk.node.bitmaps["ours"], disk.node.bitmaps["theirs"]
        assert list(theirs.dirty_ranges()) == list(ours.dirty_ranges()) == [(1 << 20, 131072)]
        assert theirs.enabled and not ours.enabled
        disk.write(0, b"y")
    _must("qemu-img", "check", image)
    flags = json.loads(_must("qemu-img", "info", "--output=json", image))["format-specific"]["data"]["bitmaps"]
    assert {each["name"]: each["flags"] for each in flags} == {"ours": [], "theirs": ["auto"]}


_WRITER = """
import random, sys
from qobra.testing.images import ImageLab
lab = ImageLab(sys.argv[1])
chosen = random.Random(int(sys.argv[2]))
sectors = int(sys.argv[4])
disk = lab.open("a", discard="unmap")

def write(offset, data):
    # As loops without the GIL do, which allocate by themselves where they may.
    table = disk.backend.table()
    if sys.argv[3] == "nodes" or table.places is None or not table.places.write(offset, data):
        table.fill(offset, len(data))
        disk.write(offset, data)

print("ready", flush=True)
for number in range(1, 1 << 20):
    offset, length = chosen.randrange(sectors) * 512, chosen.choice([512, 4096, 66048])
    action = chosen.random()
    if action < 0.7:
        write(offset, bytes((number % 255 + 1,)) * length)
    elif action < 0.9:
        disk.backend.write_zeroes(offset, length, may_unmap=True)
    else:
        disk.backend.discard(offset, length)
    if number % 16 == 0:
        write(sectors * 512 + (1 << 20), number.to_bytes(512, "big"))
        disk.backend.flush()
        print(number, flush=True)
"""


@pytest.mark.parametrize("way", ["nodes", "loops"])
def test_kill_at_any_moment(tmp_path, soak_scale, way):
    """After kill -9: no damage, and the number that was flushed last, or a later one, is there."""
    lab = ImageLab(tmp_path)
    chosen = random.Random(11)
    for round in range(4 * soak_scale):
        cluster_size = chosen.choice([512, 4096, 65536])
        # Large enough that there is something left to allocate for long.
        sectors = 4000 * (16 if way == "loops" and cluster_size > 512 else 1)
        lab.create("a", size=sectors * 512 + (6 << 20), cluster_size=cluster_size)
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), str(round), way, str(sectors)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout.readline() == "ready\n"
            for _ in range(chosen.randrange(1, 40)):
                last = int(child.stdout.readline())
        finally:
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split()
            child.wait()
        last = int(rest[-1]) if rest else last
        check = _run("qemu-img", "check", "--output=json", lab.path("a"))
        assert "corruptions" not in json.loads(check.stdout), check.stdout + check.stderr
        with lab.open("a", read_only=True) as disk:
            assert int.from_bytes(disk.read(sectors * 512 + (1 << 20), 512), "big") >= last
        _must("qemu-img", "check", "-q", "-r", "leaks", lab.path("a"))
        os.unlink(lab.path("a"))


@pytest.mark.parametrize("form", ["luks", "luks,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv", "aes"])
def test_encrypted_images_go_to_and_fro(tmp_path, form):
    from qobra.crypto.object.secret import Secret

    secret = Secret.__new__(Secret)
    secret.raw = b"open sesame"
    lab = ImageLab(tmp_path, lambda _id, _type: secret)
    image = lab.path("a")
    fmt = form.split(",")[0]
    given = ("--object", "secret,id=s,data=open sesame")
    options = f"encrypt.format={form},encrypt.key-secret=s"
    if fmt == "luks":
        options += ",encrypt.iter-time=10,encrypt.ivgen-hash-alg=sha256"
    _must("qemu-img", "create", "-q", "-f", "qcow2", *given, "-o", options, image, "4M")
    opened = f"driver=qcow2,file.filename={image},encrypt.format={fmt},encrypt.key-secret=s"
    _must("qemu-io", *given, "-c", "write -P 7 1000k 100k", "--image-opts", opened)
    with lab.open("a", encrypt={"format": fmt, "key-secret": "s"}) as disk:
        assert disk.read(1000 << 10, 100 << 10) == b"\7" * (100 << 10)
        disk.write(5000, b"\x09" * 100_000)
    out = _must("qemu-io", *given, "-c", "read -P 9 5000 100000", "-c", "read -P 7 1M 10k", "--image-opts", opened)
    assert "Pattern verification failed" not in out
    if fmt == "luks":
        created = {"format": "luks", "key-secret": "s", "iter-time": 10}
        lab.create("b", size=1 << 20, encrypt=created)
        with lab.open("b", encrypt={"format": fmt, "key-secret": "s"}) as disk:
            disk.write(0, b"\x0b" * 4096)
        opened = opened.replace(image, lab.path("b"))
        out = _must("qemu-io", *given, "-c", "read -P 11 0 4k", "--image-opts", opened)
        assert "Pattern verification failed" not in out
        _must("qemu-img", "check", *given, "--image-opts", opened)
