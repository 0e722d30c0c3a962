"""What random command lines are made of: names, sizes, options, and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

Command = list[str]

NAMES = ("a", "b", "c", "d")
CACHES = ("none", "writeback", "writethrough", "directsync", "unsafe")
CLUSTERS = (512, 1024, 2048, 4096, 16384, 65536, 262144, 2097152)
SIZES = (
    "0", "1", "511", "512", "513", "4096", "65536", "64k", "100k", "1M", "1m", "1.5M", "1048577", "1000000", "3M",
    "4194303", "0x100000", "8M", "7340032", "1.3M",
)  # fmt: skip
WRONG_SIZES = (
    "", "x", "-1", "-64k", "1Z", "8E", "7E", "16E", "99999999999999999999", "1e6", "1.1.1", "k", "64kk", "0x", " 1M",
    "1M ", "+1M", "1.5", "9223372036854775807", "9223372036854775296", "1b", "64K", "1T", "0x1k", "0x1.8", "010",
)  # fmt: skip
WRONG_WORDS = ("", "x", "on", "off", "yes", "-1", "0", "none", "qcow2", "7", "ON", "true", "1k", "3")


class Image:
    """What the maker believes of a file."""

    def __init__(self, fmt: str, size: int, cluster: int = 65536) -> None:
        self.fmt = fmt
        self.size = size
        self.cluster = cluster
        self.backing: str | None = None
        self.snapshots: list[str] = []
        self.bitmaps: list[str] = []


class Words:
    """What the makers of commands have in common: images, and words for them."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.images: dict[str, Image] = {"r": Image("raw", 1 << 20), "s": Image("raw", 1000000)}

    def chance(self, of: float) -> bool:
        return self.random.random() < of

    def name(self) -> str:
        """An image that is there, as a rule."""
        if self.chance(0.04):
            return self.random.choice(["nofile", "", "dir", "nodir/x", "bad"])
        return self.random.choice(list(self.images))

    def of_format(self, fmt: str) -> str:
        """An image of that format where there is one."""
        names = [name for name, image in self.images.items() if image.fmt == fmt]
        return self.random.choice(names) if names and not self.chance(0.08) else self.name()

    def new_name(self) -> str:
        return self.random.choice(NAMES)

    def image(self, name: str) -> Image:
        return self.images.get(name) or Image("raw", 1 << 20)

    def fmt_option(self, name: str, option: str = "-f") -> Command:
        """The format that ``name`` has, none at all, or another one."""
        value = self.random.random()
        if value < 0.3:
            return []
        if value < 0.94:
            return [option, self.image(name).fmt]
        return [option, self.random.choice(["raw", "qcow2", "file", "nosuch", ""])]

    def size(self) -> str:
        return self.random.choice(WRONG_SIZES if self.chance(0.06) else SIZES)

    def cache(self, option: str) -> Command:
        if not self.chance(0.15):
            return []
        return [option, self.random.choice(CACHES) if not self.chance(0.1) else "nosuch"]

    def some(self, options: Sequence[tuple[float, Sequence[str]]]) -> Command:
        """Each of the options with its chance."""
        return [word for chance, words in options if self.chance(chance) for word in words]

    def onoff(self) -> str:
        return self.random.choice(["on", "off"]) if not self.chance(0.08) else self.random.choice(WRONG_WORDS)

    def blurred(self, command: Command) -> Command:
        """Seldom with a mistake: a word too many or too few, an option that does not exist."""
        if not self.chance(0.05):
            return command
        place = self.random.randrange(1, len(command) + 1)
        kind = self.random.randrange(4)
        if kind == 0 and place < len(command):
            return command[:place] + command[place + 1 :]
        if kind == 1:
            return (
                command[:place]
                + [self.random.choice(["-Z", "--nosuch", "--", "-", "--o", "-q", "extra"])]
                + command[place:]
            )
        if kind == 2 and place < len(command):
            return command[:place]
        return command[:place] + command[place - 1 :]

    def place(self, name: str) -> int:
        """An offset inside the image as a rule, at the edge of a cluster often."""
        image = self.image(name)
        top = max(image.size, 1)
        value = self.random.randrange(top)
        unit = self.random.choice([1, 1, 512, image.cluster, image.cluster])
        return value // unit * unit

    def span(self, name: str) -> tuple[int, int]:
        image = self.image(name)
        offset = self.place(name)
        unit = self.random.choice([1, 512, 4096, image.cluster])
        length = unit * self.random.choice([1, 1, 1, 2, 3, 5])
        length = min(length, 1 << 20)
        if not self.chance(0.06):
            length = max(0, min(length, image.size - offset))
        return offset, length


def number_of(text: str) -> int | None:
    """A size as QEMU's tools read it, where it is a plain one."""
    units = {"k": 1 << 10, "M": 1 << 20, "m": 1 << 20}
    unit = units.get(text[-1:], 1)
    digits = text[:-1] if unit > 1 else text
    try:
        return int(digits, 0) * unit
    except ValueError:
        pass
    try:
        return int(float(digits) * unit) if unit > 1 else None
    except ValueError:
        return None


def cluster_of(options: list[str]) -> int:
    for option in options:
        name, _, value = option.partition("=")
        if name == "cluster_size" and value.isdigit() and int(value) in CLUSTERS:
            return int(value)
    return 65536
