"""What a script has made so far, as the server that it is drawn against tells it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

NODE_NAMES = [f"n{number}" for number in range(8)]
JOB_NAMES = ["j0", "j1", "j2", "j3"]
BITMAP_NAMES = ["b0", "b1", "b2"]
EXPORT_NAMES = ["e0", "e1", "e2"]
SNAPSHOT_NAMES = ["s0", "s1", "s2"]
IMAGES = ["base.qcow2", "mid.qcow2", "top.qcow2", "empty.qcow2", "big.qcow2", "full.qcow2"]
"""qcow2 images; ``mid`` is on ``base``, ``top`` on ``mid``; ``full`` has a snapshot ``s0`` and a bitmap ``b0``."""
FLAT = ["a.raw", "b.raw", "odd.raw"]
ENCRYPTED = "secret.qcow2"
"""A qcow2 image whose data are encrypted (luks), with the secret ``sec0``."""
NEW_FILES = ["new0", "new1", "new2"]

Query = Any
"""A function of a command and its arguments that returns what the command does."""


class World:
    """Names by kind; ``nodes`` are those with a name that was given."""

    def __init__(self, chance: random.Random, commands: frozenset[str], devices: Sequence[str] = ()) -> None:
        self.chance = chance
        self.commands = commands
        self.devices = list(devices)
        self.nodes: dict[str, dict[str, Any]] = {}
        self.added: dict[str, dict[str, Any]] = {}
        self.bitmaps: list[tuple[str, str]] = []
        self.jobs: dict[str, str] = {}
        self.paused: set[str] = set()
        """Jobs that rest."""
        self.exports: list[str] = []
        self.tops: list[str] = []
        """Nodes that no other node uses."""
        self.chains: dict[str, list[str]] = {}
        """By each of these, the nodes with a name that it shows or has as backing files, top first."""

    def look(self, query: Query) -> None:
        """Take in how things are."""
        found = query("query-named-block-nodes", {"flat": True}) or []
        self.nodes = {node["node-name"]: node for node in found if not node["node-name"].startswith("#")}
        self.bitmaps = [
            (name, bitmap["name"])
            for name, node in self.nodes.items()
            for bitmap in node.get("dirty-bitmaps", [])
            if "name" in bitmap
        ]
        self.jobs = {job["id"]: job["status"] for job in query("query-jobs", None) or []}
        self.paused = {job["device"] for job in query("query-block-jobs", None) or [] if job["paused"]}
        graph = query("x-debug-query-block-graph", None) or {"nodes": [], "edges": []}
        names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
        used = {names.get(edge["child"]) for edge in graph["edges"] if edge["parent"] in names}
        self.tops = [name for name in self.nodes if name not in used]
        below = {
            names[edge["parent"]]: names[edge["child"]]
            for edge in graph["edges"]
            if edge["parent"] in names and edge["name"] == "backing"
        }
        self.chains = {}
        for top in self.tops:
            chain = [top]
            while (image := below.get(chain[-1])) is not None:
                chain.append(image)
            if len(chain) > 1:
                self.chains[top] = [name for name in chain if name in self.nodes]
        self.exports = [export["id"] for export in query("query-block-exports", None) or []]

    def added_by(self, arguments: dict[str, Any]) -> None:
        """A blockdev-add was carried out: remember its options, for blockdev-reopen."""
        if isinstance(name := arguments.get("node-name"), str):
            self.added[name] = arguments

    def node(self) -> str:
        """A node's name, mostly of one that is there."""
        return self._one_of(self.nodes, NODE_NAMES)

    def top(self) -> str:
        """A node that no other node uses: those above a node that is resized keep their size in QEMU."""
        # One that a copy-before-write filter copies from is not resized here, and images that are cut are damaged.
        tops = [
            name for name in self.tops if self.nodes[name]["drv"] != "copy-before-write" and not self.is_below(name)
        ]
        return self.chance.choice(tops) if tops else "nope"

    def pair(self) -> tuple[str, str] | None:
        """Two nodes of one size that no other node uses, if there are such."""
        pairs = [
            (one, two) for one in self.tops for two in self.tops if one != two and self._size(one) == self._size(two)
        ]
        return self.chance.choice(pairs) if pairs else None

    def is_below(self, name: str) -> bool:
        """Whether the node is the file of an image, and no image itself."""
        node = self.nodes.get(name)
        return node is not None and node["drv"] != "qcow2" and bool(re.search(r"\.qcow2|/new\d", str(node.get("file"))))

    def _size(self, name: str) -> Any:
        return self.nodes[name].get("image", {}).get("virtual-size")

    def chain(self) -> list[str] | None:
        """The names of a node and of its backing files, if any has such."""
        return self.chance.choice(list(self.chains.values())) if self.chains else None

    def free_node(self, but: str = "") -> str:
        """A name for a new node, mostly a free one, and none of those in the text ``but`` unless that has them all."""
        names = [name for name in NODE_NAMES if f'"{name}"' not in but] or NODE_NAMES
        return self._one_of([name for name in names if name not in self.nodes], names)

    def node_of(self, drivers: Sequence[str]) -> str:
        """A node of one of these drivers, mostly."""
        return self._one_of([name for name, node in self.nodes.items() if node["drv"] in drivers], NODE_NAMES)

    def encrypted(self) -> str:
        """A node that shows the encrypted image, mostly."""
        return self._one_of([name for name, node in self.nodes.items() if node["encrypted"]], NODE_NAMES)

    def root(self) -> str:
        """A device or a node: what a job takes as its ``device``."""
        if self.devices and self.chance.random() < 0.4:
            return self.chance.choice(self.devices)
        return self.node()

    def job(self) -> str:
        return self._one_of(self.jobs, JOB_NAMES)

    def going_job(self) -> str:
        """A job that does not rest, if there is one."""
        return self._one_of([name for name in self.jobs if name not in self.paused], ["nope"])

    def free_job(self) -> str:
        return self._one_of([name for name in JOB_NAMES if name not in self.jobs], JOB_NAMES)

    def export(self) -> str:
        return self._one_of(self.exports, EXPORT_NAMES)

    def lost(self) -> dict[str, Any] | None:
        """Options of a node that was there once, if there is such."""
        names = [name for name in self.added if name not in self.nodes]
        return self.added[self.chance.choice(names)] if names else None

    def like(self, name: str) -> str:
        """A node as large as the node ``name``, if that is there."""
        size = self._size(name) if name in self.nodes else None
        return self._one_of([each for each in self.nodes if self._size(each) == size], NODE_NAMES)

    def bitmap(self, *, plain: bool = False) -> tuple[str, str]:
        """A node and the name of a bitmap of its; ``plain``: not of an image's file, whose metadata it would tell."""
        known = [each for each in self.bitmaps if not (plain and self.is_below(each[0]))]
        if known and self.chance.random() < 0.9:
            return self.chance.choice(known)
        return self.node(), self.chance.choice(BITMAP_NAMES)

    def _one_of(self, likely: Any, otherwise: Sequence[str]) -> str:
        names = list(likely)
        if names and self.chance.random() < 0.95:
            return str(self.chance.choice(names))
        return self.chance.choice(otherwise)
