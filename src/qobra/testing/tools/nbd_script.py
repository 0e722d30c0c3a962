"""Random command lines of qemu-nbd, each with what a client then does.

They are written ``serve OPTIONS IMAGE -- CLIENT``: qemu-nbd serves the image on the socket ``sock`` in the background,
and the client's command line runs while it does.
"""

from __future__ import annotations

from qobra.testing.tools.words import Command, Words

NAMES = ("", "", "", "x", "a b")


class NbdMaker(Words):
    """Makes command lines of qemu-nbd."""

    def serve(self) -> Command:
        name = self.of_format("qcow2") if self.chance(0.6) else self.name()
        image = self.image(name)
        # QEMU's server exits with 1 where it had to guess that an image is raw.
        fmt = ["-f", image.fmt] if image.fmt == "raw" or self.chance(0.8) else []
        export = self.random.choice(NAMES)
        command = ["serve", *fmt] + self.some(
            [(0.3, ["-r"]), (0.05, ["-s"]), (0.5, ["-x", export]), (0.1, ["-D", "about it"]), (0.1, ["-A"]),
             (0.15, ["-o", self.random.choice(["0", "512", "64k", "1M", "100M", "x", "-1"])]),
             (0.15, ["-B", self.random.choice([*image.bitmaps, "b0"])]),
             (0.1, ["-l", self.random.choice([*image.snapshots, "one"])]),
             (0.1, ["-e", self.random.choice(["0", "1", "5", "x"])]),
             (0.1, ["--discard=" + self.random.choice(["ignore", "unmap", "x"])]),
             (0.05, ["--detect-zeroes=" + self.random.choice(["off", "on", "unmap", "x"])]),
             (0.05, ["--aio=" + self.random.choice(["threads", "x"])])]
        ) + self.cache("--cache")  # fmt: skip
        return [*command, name, "--", *self.client(export if "-x" in command else "")]

    def client(self, export: str) -> Command:
        """What is done with the export."""
        if self.chance(0.05):
            export = "other"
        path = export.replace(" ", "%20")
        uri = f"nbd+unix:///{path}?socket=sock"
        kind = self.random.randrange(6)
        if kind == 0:
            return ["qemu-nbd", "-L", "-k", "sock"]
        if kind == 1:
            return ["qemu-img", "info", *self.some([(0.5, ["--output=json"])]), uri]
        if kind == 2:
            return ["qemu-img", "map", "--output=json", uri]
        if kind == 3:
            return ["qemu-img", "compare", *self.some([(0.5, ["-f", "raw"])]), uri, self.name()]
        if kind == 4:
            return ["qemu-img", "convert", "-f", "raw", "-n", "-O", "raw", self.name(), uri]
        lines = ["read -v 0 32", "write -P 7 0 4k", "write -z 64k 64k", "discard 0 64k", "write -P 9 100k 3k", "flush"]
        chosen = [word for _ in range(self.random.choice([1, 2, 3])) for word in ("-c", self.random.choice(lines))]
        return ["qemu-io", "-f", "raw", *self.some([(0.2, ["-r"])]), *chosen, uri]
