"""Random command lines of qemu-io."""

from __future__ import annotations

from collections.abc import Sequence

from qobra.testing.tools.words import WRONG_SIZES, Command, Words, number_of


class IoMaker(Words):
    """Makes command lines of qemu-io."""

    def io(self) -> Command:
        name = self.of_format("qcow2") if self.chance(0.8) else self.name()
        command = ["qemu-io", *self.fmt_option(name)]
        if self.image(name).fmt == "raw" and "-f" not in command:
            command += ["-f", "raw"]  # there is a warning otherwise, with a text of the format's own
        command += self.some(
            [(0.06, ["-r"]), (0.04, ["-s"]), (0.06, ["-C"]), (0.04, ["-n"]), (0.03, ["-U"]),
             (0.04, ["-d", self.random.choice(["ignore", "unmap", "off", "on", "x"])])]
        ) + self.cache("-t")  # fmt: skip
        for _ in range(self.random.choice([1, 1, 2, 3, 5])):
            line = self.line(name)
            # What an asynchronous request has to say comes when it is done, unless it is waited for.
            command += ["-c", line] + (["-c", "aio_flush"] if "aio_" in line else [])
        return command + [name]

    def line(self, name: str) -> str:
        makers = (
            (10, self.line_write), (6, self.line_read), (2, self.line_vector), (3, self.line_async),
            (4, self.line_discard), (1, self.line_truncate), (3, self.line_status), (2, self.line_state),
            (1, self.line_wrong),
        )  # fmt: skip
        make = self.random.choices([make for _, make in makers], [weight for weight, _ in makers])[0]
        words = make(name).split(" ")
        if self.chance(0.02):
            del words[self.random.randrange(len(words))]
        if self.chance(0.02):
            words.insert(
                self.random.randrange(len(words) + 1), self.random.choice(["-Z", "-q", "-P", "x", "--", "512"])
            )
        return " ".join(words)

    def number(self, value: int) -> str:
        if value and value % 1048576 == 0 and self.chance(0.5):
            return f"{value >> 20}M"
        if value and value % 1024 == 0 and self.chance(0.5):
            return f"{value >> 10}k"
        if self.chance(0.02):
            return self.random.choice(WRONG_SIZES[1:-1]).strip() or "x"
        return hex(value) if self.chance(0.05) else str(value)

    def pattern(self) -> str:
        return (
            str(self.random.randrange(1, 256))
            if not self.chance(0.04)
            else self.random.choice(["0", "256", "-1", "x", "0xaa"])
        )

    def where(self, name: str) -> str:
        offset, length = self.span(name)
        return f"{self.number(offset)} {self.number(length)}"

    def flags(self, options: Sequence[tuple[float, str]]) -> str:
        return "".join(f" {text}" for chance, text in options if self.chance(chance))

    def line_write(self, name: str) -> str:
        kind = self.random.random()
        common = [(0.1, "-q"), (0.1, "-f"), (0.03, "-C")]
        if kind < 0.2:
            return (
                "write -z" + self.flags([*common, (0.4, "-u"), (0.03, f"-P {self.pattern()}")]) + f" {self.where(name)}"
            )
        if kind < 0.3:
            cluster = self.image(name).cluster
            offset = self.place(name) // cluster * cluster
            return "write -c" + self.flags([*common, (0.9, f"-P {self.pattern()}")]) + f" {offset} {cluster}"
        extra = [
            *common,
            (0.9, f"-P {self.pattern()}"),
            (0.02, "-u"),
            (0.03, "-b"),
            (0.03, "-n"),
            (0.04, "-s data.bin"),
        ]
        return "write" + self.flags([*extra, (0.02, "-p")]) + f" {self.where(name)}"

    def line_read(self, name: str) -> str:
        offset, length = self.span(name)
        extra = [(0.3, f"-P {self.pattern()}"), (0.1, "-q"), (0.03, "-C"), (0.03, "-b"), (0.02, "-p")]
        if length <= 1024:
            extra.append((0.3, "-v"))
        if self.chance(0.1):
            extra += [(0.8, f"-s {length // 3}"), (0.8, f"-l {length // 2}")]
        return "read" + self.flags(extra) + f" {self.number(offset)} {self.number(length)}"

    def line_vector(self, name: str) -> str:
        offset = self.place(name)
        lengths = " ".join(
            str(self.random.choice([512, 4096, 1024, 65536, 1, 0])) for _ in range(self.random.randrange(1, 5))
        )
        word = self.random.choice(["readv", "writev"])
        extra = [(0.5, f"-P {self.pattern()}"), (0.1, "-q")] + ([(0.1, "-f")] if word == "writev" else [(0.1, "-C")])
        return word + self.flags(extra) + f" {offset} {lengths}"

    def line_async(self, name: str) -> str:
        kind = self.random.randrange(4)
        if kind == 0:
            return "aio_flush"
        if kind == 1:
            return "aio_read -q" + self.flags([(0.4, f"-P {self.pattern()}"), (0.1, "-i")]) + f" {self.where(name)}"
        if kind == 2:
            return "aio_write -q -z" + self.flags([(0.3, "-u"), (0.1, "-f")]) + f" {self.where(name)}"
        return (
            "aio_write -q"
            + self.flags([(0.8, f"-P {self.pattern()}"), (0.1, "-f"), (0.1, "-i")])
            + f" {self.where(name)}"
        )

    def line_discard(self, name: str) -> str:
        return "discard" + self.flags([(0.1, "-q"), (0.03, "-C")]) + f" {self.where(name)}"

    def line_truncate(self, name: str) -> str:
        size = self.size()
        number = number_of(size)
        if number is not None and name in self.images and number < self.images[name].size:
            self.images[name].size = number
        return (
            "truncate"
            + self.flags([(0.2, "-m " + self.random.choice(["off", "falloc", "full", "metadata", "x"]))])
            + f" {size or '0'}"
        )

    def line_status(self, name: str) -> str:
        kind = self.random.randrange(4)
        if kind == 0:
            return f"alloc {self.number(self.place(name))}" + self.flags([(0.6, self.number(self.span(name)[1]))])
        return ("map", "length", f"alloc {self.place(name)} 0")[kind - 1]

    def line_state(self, name: str) -> str:
        return self.random.choice(
            ["flush", "flush", "reopen", "reopen -r", "reopen -w", "reopen -c none", "reopen -o lazy-refcounts=on",
             "reopen -o discard=ignore", "close", "open " + name, "open -r " + name, f"open -o driver=raw {name}",
             "sleep 1", "sleep 0", "help nosuch", "info nosuch", "reopen -o nosuch=1", "reopen -rw", "quit"]
        )  # fmt: skip

    def line_wrong(self, name: str) -> str:
        return self.random.choice(
            ["", "nosuch", "read", "read 0", "write 0", "read x 1", "write -P", "writev 0", "readv", "discard",
             "discard x 1", "truncate", "alloc", "alloc x", "sleep", "sleep x", "aio_read", "aio_write 0",
             "aio_write -z 0 1 2",
             "length x", "write -z -c 0 64k", "write -u 0 512", "break x", "resume x", "remove_break x", "sigraise",
             "write -P 1 -z 0 512", "read -l 5 0 512", "read -P 1 -l 600 0 512", "write -s nofile 0 512", "flush x",
             "read 0 3G", "write 0 3G", "read -P 1 -s 600 0 512", "write -n 0 512", "discard 0 3G", "write -z 0 3G"]
        )  # fmt: skip
