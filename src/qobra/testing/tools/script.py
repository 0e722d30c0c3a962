"""Random command lines of qemu-img, qemu-io and qemu-nbd: what a user could type, and mistakes that a user could make.

:func:`script` makes a sequence from a seed. It is made without running anything, so that the same sequence can be given
to any two programs; :mod:`.differential` does that. Names come from a small pool, so that commands meet the images
which earlier ones made; the maker remembers roughly what they are, to be right more often than wrong.
"""

from __future__ import annotations

from random import Random

from qobra.testing.tools.io_script import IoMaker
from qobra.testing.tools.nbd_script import NbdMaker
from qobra.testing.tools.words import CLUSTERS, Command, Image, cluster_of, number_of


class Maker(IoMaker, NbdMaker):
    """Makes the commands of one sequence."""

    def command(self) -> Command:
        """The next command."""
        makers = (
            (14, self.create), (30, self.io), (6, self.info), (5, self.check), (6, self.map), (4, self.measure),
            (10, self.convert), (5, self.resize), (5, self.rebase), (4, self.commit), (8, self.snapshot),
            (8, self.bitmap), (5, self.amend), (6, self.compare), (4, self.dd), (1, self.bench),
            (3, self.serve),
        )  # fmt: skip
        make = self.random.choices([make for _, make in makers], [weight for weight, _ in makers])[0]
        return self.blurred(make())

    def qcow2_options(self) -> list[str]:
        choice = self.random.choice
        options = []
        if self.chance(0.25):
            options.append("compat=" + choice(["0.10", "1.1", "v2", "v3", "0.10", "1.1", "v4"]))
        if self.chance(0.5):
            cluster = str(choice(CLUSTERS)) if not self.chance(0.08) else choice(["256", "4M", "1000", "64k", "0", "x"])
            options.append("cluster_size=" + cluster)
        if self.chance(0.2):
            options.append("preallocation=" + choice(["off", "metadata", "falloc", "full", "nosuch"]))
        if self.chance(0.15):
            options.append("lazy_refcounts=" + self.onoff())
        if self.chance(0.2):
            options.append("refcount_bits=" + choice(["1", "2", "4", "8", "16", "32", "64", "3", "128", "0", "x"]))
        if self.chance(0.15):
            options.append("extended_l2=" + self.onoff())
        if self.chance(0.15):
            options.append("compression_type=" + choice(["zlib", "zstd", "zlib", "zstd", "nosuch"]))
        if self.chance(0.07):
            options.append("data_file=" + choice(["data", "data", "nodir/data", ""]))
            if self.chance(0.5):
                options.append("data_file_raw=" + self.onoff())
        elif self.chance(0.02):
            options.append("data_file_raw=on")
        if self.chance(0.02):
            options.append(choice(["nosuch=1", "size=2M", "encryption=off", "nosuch", "cluster_size", "=", "help"]))
        self.random.shuffle(options)
        return options

    def raw_options(self) -> list[str]:
        choice = self.random.choice
        options = []
        if self.chance(0.3):
            options.append("preallocation=" + choice(["off", "falloc", "full", "metadata", "nosuch"]))
        if self.chance(0.1):
            options.append("extent_size_hint=" + choice(["0", "4096", "1M", "x"]))
        if self.chance(0.1):
            options.append("nocow=" + self.onoff())
        if self.chance(0.02):
            options.append(choice(["cluster_size=64k", "nosuch=1"]))
        return options

    def option_words(self, options: list[str]) -> Command:
        if not options:
            return []
        if self.chance(0.2):
            return [word for option in options for word in ("-o", option)]
        return ["-o", ",".join(options)]

    def create(self) -> Command:
        fmt = self.random.choices(["qcow2", "raw", "nosuch"], [10, 4, 0.3])[0]
        name = self.new_name()
        command = ["qemu-img", "create"] + self.some([(0.3, ["-q"])])
        if not (fmt == "raw" and self.chance(0.3)):
            command += ["-f", fmt]
        backing = None
        options = self.qcow2_options() if fmt == "qcow2" else self.raw_options()
        if self.chance(0.4):
            backing = self.name()
            if self.chance(0.7):
                command += ["-b", backing] + self.some([(0.85, ["-F", self.image(backing).fmt])])
            else:
                options += ["backing_file=" + backing, "backing_fmt=" + self.image(backing).fmt]
            command += self.some([(0.1, ["-u"])])
        command += self.option_words(options) + [name]
        size = self.size()
        if backing is None or self.chance(0.4):
            command.append(size)
        known = number_of(size)
        if known is None:
            known = self.image(backing).size if backing else 1 << 20
        image = Image(fmt, known, cluster_of(options))
        image.backing = backing
        self.images[name] = image
        return command

    def info(self) -> Command:
        name = self.name()
        return ["qemu-img", "info", *self.fmt_option(name)] + self.some(
            [(0.5, ["--output=json"]), (0.3, ["--backing-chain"]), (0.1, ["-U"]), (0.02, ["--output=xml"])]
        ) + [self.named(name)]  # fmt: skip

    def named(self, name: str) -> str:
        """``name`` as it is, or in another spelling."""
        value = self.random.random()
        if value < 0.9:
            return name
        if value < 0.95:
            return f"./{name}"
        if value < 0.97:
            return f"file:{name}"
        return f'json:{{"driver":"{self.image(name).fmt}","file":{{"driver":"file","filename":"{name}"}}}}'

    def check(self) -> Command:
        name = self.of_format("qcow2")
        return ["qemu-img", "check", *self.fmt_option(name)] + self.some(
            [(0.4, ["--output=json"]), (0.1, ["-q"]), (0.1, ["-r", "leaks"]), (0.1, ["-r", "all"]),
             (0.02, ["-r", "x"]), (0.05, ["-U"])]
        ) + self.cache("-T") + [name]  # fmt: skip

    def map(self) -> Command:
        name = self.name()
        return ["qemu-img", "map", *self.fmt_option(name)] + self.some(
            [(0.6, ["--output=json"]), (0.2, [f"--start-offset={self.place(name)}"]),
             (0.2, [f"--max-length={self.place(name)}"]), (0.05, ["-U"]), (0.02, [f"--start-offset={self.size()}"])]
        ) + [name]  # fmt: skip

    def measure(self) -> Command:
        fmt = self.random.choices(["qcow2", "raw", "nosuch"], [8, 2, 0.2])[0]
        command = ["qemu-img", "measure"] + self.some([(0.4, ["--output=json"])])
        if fmt != "raw" or self.chance(0.5):
            command += ["-O", fmt]
        command += self.option_words(self.qcow2_options() if fmt == "qcow2" else [])
        if self.chance(0.5):
            return command + self.some([(0.97, ["--size", self.size()])])
        name = self.name()
        image = self.image(name)
        command += self.fmt_option(name)
        if image.snapshots and self.chance(0.2):
            command += ["-l", self.random.choice(image.snapshots)]
        return command + [name]

    def convert(self) -> Command:
        source = self.name()
        fmt = self.random.choices(["qcow2", "raw"], [3, 1])[0]
        target = self.new_name()
        image = self.image(source)
        command = ["qemu-img", "convert", *self.fmt_option(source), *self.cache("-t"), *self.cache("-T")]
        command += self.some([(0.95, ["-O", fmt]), (0.05, ["-p"]), (0.05, ["-q"]), (0.1, ["-W"]), (0.1, ["-m", "4"])])
        command += self.some(
            [(0.1, ["-c"]), (0.08, ["-S", self.random.choice(["0", "4k", "64k", "512", "1M", "3", "x"])]),
             (0.06, ["-n"]), (0.04, ["-C"]), (0.04, ["--salvage"]), (0.03, ["--target-is-zero"]),
             (0.08, ["--bitmaps"]), (0.02, ["--skip-broken-bitmaps"]), (0.02, ["-r", "1G"]), (0.03, ["-U"])]
        )  # fmt: skip
        backing = None
        if self.chance(0.1):
            backing = image.backing or self.name()
            command += ["-B", backing] + self.some([(0.9, ["-F", self.image(backing).fmt])])
        if image.snapshots and self.chance(0.3):
            command += ["-l", self.random.choice(image.snapshots)]
        options = self.qcow2_options() if fmt == "qcow2" else self.raw_options()
        if self.chance(0.5):
            command += self.option_words(options)
        sources = [source] + self.some([(0.06, [self.name()])])
        if target not in sources or self.chance(0.1):
            made = Image(fmt, sum(self.image(each).size for each in sources), cluster_of(options))
            made.backing = backing
            self.images[target] = made
        return command + sources + [target]

    def resize(self) -> Command:
        name = self.name()
        sign = self.random.choice(["", "", "+", "-"])
        size = self.size()
        number = number_of(size)
        if number is not None and name in self.images:
            image = self.images[name]
            image.size = max(0, image.size + number if sign == "+" else image.size - number if sign else number)
        return ["qemu-img", "resize", *self.fmt_option(name)] + self.some(
            [(0.5, ["--shrink"]), (0.2, ["-q"]), (0.02, ["--preallocation=x"]),
             (0.2, ["--preallocation=" + self.random.choice(["off", "metadata", "falloc", "full"])])]
        ) + [name] + self.some([(0.97, [sign + size])])  # fmt: skip

    def rebase(self) -> Command:
        name = self.of_format("qcow2")
        backing = self.name()
        command = ["qemu-img", "rebase", *self.fmt_option(name), *self.cache("-t"), *self.cache("-T")]
        command += self.some([(0.25, ["-u"]), (0.1, ["-p"]), (0.1, ["-q"]), (0.05, ["-U"])])
        if self.chance(0.25):
            return command + ["-b", "", name]
        if name in self.images:
            self.images[name].backing = backing
        return command + ["-b", backing] + self.some([(0.9, ["-F", self.image(backing).fmt])]) + [name]

    def commit(self) -> Command:
        name = self.of_format("qcow2")
        image = self.image(name)
        command = ["qemu-img", "commit", *self.fmt_option(name), *self.cache("-t")]
        command += self.some([(0.2, ["-d"]), (0.1, ["-p"]), (0.2, ["-q"]), (0.03, ["-r", "1G"])])
        if self.chance(0.2):
            below = image.backing and self.image(image.backing).backing
            command += ["-b", below or image.backing or self.name()]
        return command + [name]

    def snapshot(self) -> Command:
        name = self.of_format("qcow2")
        image = self.image(name)
        label = self.random.choice(["one", "two", "3", "x y", "1"])
        known = self.random.choice(image.snapshots) if image.snapshots and not self.chance(0.1) else label
        command = ["qemu-img", "snapshot"] + self.some([(0.1, ["-q"]), (0.05, ["-U"]), (0.01, ["-f", "raw"])])
        kind = self.random.choice(["-c", "-c", "-a", "-d", "-l", ""])
        if kind == "-c":
            image.snapshots.append(label)
            command += ["-c", label]
        elif kind in ("-a", "-d"):
            command += [kind, known]
        elif kind:
            command += [kind]
        return command + [name]

    def bitmap(self) -> Command:
        name = self.of_format("qcow2")
        image = self.image(name)
        if not image.size:
            return self.info()  # QEMU loses bitmaps of images of no length
        label = self.random.choice(["b0", "b1", "b2", "", "n" * 1024])
        if not self.chance(0.1):
            label = self.random.choice(["b0", "b1"])
        command = ["qemu-img", "bitmap", *self.fmt_option(name)]
        kind = self.random.choice(["--add", "--add", "--remove", "--clear", "--enable", "--disable", "--merge", ""])
        if kind == "--add":
            image.bitmaps.append(label)
            command += ["--add"] + self.some(
                [(0.3, ["-g", self.random.choice(["512", "4k", "64k", "1M", "3", "256"])])]
            )
            command += self.some([(0.2, ["--disable"]), (0.05, ["--enable"])])
        elif kind == "--merge":
            command += ["--merge", self.random.choice(["b0", "b1"])]
            if self.chance(0.3):
                other = self.of_format("qcow2")
                command += ["-b", other] + self.some([(0.8, ["-F", self.image(other).fmt])])
        elif kind:
            command.append(kind)
        return command + [name] + self.some([(0.97, [label])])

    def amend(self) -> Command:
        name = self.of_format("qcow2")
        choice = self.random.choice
        options = [
            choice(
                ["compat=0.10", "compat=1.1", "compat=v3", "lazy_refcounts=on", "lazy_refcounts=off", "size=2M",
                 "refcount_bits=16", "refcount_bits=8", "refcount_bits=64", "refcount_bits=1", "refcount_bits=3",
                 "cluster_size=65536", "cluster_size=4096", "backing_file=r", "backing_file=", "backing_fmt=raw",
                 "data_file_raw=on", "data_file_raw=off", "data_file=x", "preallocation=full", "nosuch=1",
                 "extended_l2=on", "compression_type=zstd", "size=x", "lazy_refcounts=x", "compat=v2", "help"]
            )
            for _ in range(1 if self.chance(0.8) else 2)
        ]  # fmt: skip
        if any(option.startswith("backing_") for option in options):
            del options[1:]  # where that is refused, QEMU has carried some of the others out
        command = ["qemu-img", "amend", *self.fmt_option(name), *self.cache("-t")]
        command += self.some([(0.1, ["-q"]), (0.05, ["--force"])])
        return command + self.some([(0.97, ["-o", ",".join(options)])]) + [name]

    def compare(self) -> Command:
        one, other = self.name(), self.name()
        command = ["qemu-img", "compare", *self.fmt_option(one), *self.fmt_option(other, "-F"), *self.cache("-T")]
        return command + self.some([(0.3, ["-s"]), (0.1, ["-q"]), (0.05, ["-p"]), (0.05, ["-U"])]) + [one, other]

    def dd(self) -> Command:
        source, target = self.name(), self.new_name()
        words = [f"if={source}", f"of={target}"] + self.some(
            [(0.7, ["bs=" + self.random.choice(["512", "4k", "64k", "1M", "100", "0", "x", "-1", "1000"])]),
             (0.4, ["count=" + self.random.choice(["0", "1", "5", "16", "10000", "x"])]),
             (0.4, ["skip=" + self.random.choice(["0", "1", "5", "16", "100000", "x"])]), (0.03, ["conv=sync"])]
        )  # fmt: skip
        if source == target:
            words.remove(f"of={target}")  # the same file twice is refused by ours
        self.random.shuffle(words)
        fmt = self.random.choice(["raw", "qcow2"])
        if source != target:
            self.images[target] = Image(fmt, self.image(source).size)
        return ["qemu-img", "dd", *self.fmt_option(source)] + self.some([(0.9, ["-O", fmt]), (0.05, ["-U"])]) + words

    def bench(self) -> Command:
        name = self.name()
        return ["qemu-img", "bench", *self.fmt_option(name), "-c", self.random.choice(["1", "3", "10", "0", "x"])] + (
            self.some(
                [(0.5, ["-w"]), (0.3, ["--pattern", self.random.choice(["7", "255", "256", "x"])]),
                 (0.3, ["-s", self.random.choice(["512", "4k", "0", "x"])]), (0.2, ["-S", "8k"]),
                 (0.2, ["-o", "64k"]), (0.1, ["--flush-interval", "2"]), (0.05, ["--no-drain"]), (0.2, ["-d", "1"])]
            )
            + [name]
        )  # fmt: skip


def script(seed: int, length: int | None = None) -> list[Command]:
    """The sequence of commands of ``seed``."""
    random = Random(seed)
    maker = Maker(random)
    return [maker.command() for _ in range(length if length is not None else random.randrange(3, 14))]
