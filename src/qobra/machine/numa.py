"""NUMA: which CPUs and which memory belong together, and how far the nodes are from each other."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.hmat import Hmat
from qobra.machine.memory_backend import MemoryBackend
from qobra.report import report_warning

if TYPE_CHECKING:
    from qobra.machine.board import Board

MAX_NODES = 128
LOCAL_DISTANCE, REMOTE_DISTANCE = 10, 20


class Node:
    """One node: CPU numbers, and bytes of memory, plain or of a backend."""

    def __init__(self) -> None:
        self.cpus: set[int] = set()
        self.memory: int | None = None
        self.backend: str | None = None
        self.initiator: int | None = None
        """The node that the memory is attached to directly, which has CPUs."""


class Numa:
    """The nodes of a board, from ``-numa`` and set-numa-node. Raises QobraError in QEMU's words."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.nodes: dict[int, Node] = {}
        self.distances: dict[tuple[int, int], int] = {}
        self.hmat = Hmat(self)

    def set(self, options: dict[str, Any]) -> None:
        """Take one NumaOptions."""
        if not self._board.numa_supported:
            raise QobraError("NUMA is not supported by this machine-type")
        kind = options["type"]
        if kind == "node":
            self._set_node(options)
        elif kind == "dist":
            self._set_distance(options["src"], options["dst"], options["val"])
        elif kind == "cpu":
            self._set_cpu(options)
        else:
            self._require_hmat()
            if kind == "hmat-lb":
                self.hmat.set_locality(options)
            else:
                self.hmat.set_cache(options)

    @property
    def has_hmat(self) -> bool:
        """Whether the guest is told how fast its memory is."""
        return bool(self._board.hmat)

    def _require_hmat(self) -> None:
        if not self.has_hmat:
            raise QobraError(
                "ACPI Heterogeneous Memory Attribute Table (HMAT) is disabled, enable it with -machine hmat=on "
                "before using any of hmat specific options"
            )

    def _set_node(self, options: dict[str, Any]) -> None:
        number = options.get("nodeid", len(self.nodes))
        if number >= MAX_NODES:
            raise QobraError(f"Max number of NUMA nodes reached: {number}")
        if number in self.nodes:
            raise QobraError(f"Duplicate NUMA nodeid: {number}")
        node = Node()
        if "initiator" in options:
            self._require_hmat()
            node.initiator = options["initiator"]
            if node.initiator >= MAX_NODES:
                raise QobraError(f"The initiator id {node.initiator} expects an integer between 0 and {MAX_NODES - 1}")
        topology = self._board.topology
        limit = topology.max_cpus if topology is not None else 1
        for cpu in options.get("cpus", ()):
            if cpu >= limit:
                raise QobraError(f"CPU index ({cpu}) should be smaller than maxcpus ({limit})")
            self._check_unassigned(cpu, number)
            node.cpus.add(cpu)
        self._check_own_initiator(number, node)
        if "mem" in options:
            if not self._board.numa_mem_supported:
                raise QobraError(
                    "Parameter -numa node,mem is not supported by this machine type",
                    hint="Use -numa node,memdev instead",
                )
            report_warning("Parameter -numa node,mem is deprecated, use -numa node,memdev instead")
            node.memory = options["mem"]
        if "memdev" in options:
            backend = self._board.tree.find(options["memdev"])
            if not isinstance(backend, MemoryBackend):
                raise QobraError(f"memdev={options['memdev']} is ambiguous")
            node.memory, node.backend = backend.size, options["memdev"]
        kinds = {each.backend is not None for each in (*self.nodes.values(), node) if each.memory is not None}
        if len(kinds) > 1:
            raise QobraError("numa configuration should use either mem= or memdev=,mixing both is not allowed")
        self.nodes[number] = node

    def _check_unassigned(self, cpu: int, number: int) -> None:
        on = self.node_of_cpu(cpu)
        if on not in (None, number):
            raise QobraError(f"CPU is already assigned to node-id: {on}")

    def _check_own_initiator(self, number: int, node: Node) -> None:
        # CPUs and memory of one node are attached to each other.
        if self.has_hmat and node.cpus:
            if node.initiator not in (None, number):
                raise QobraError(f"The initiator of CPU NUMA node {number} should be itself (got {node.initiator})")
            node.initiator = number

    def _set_distance(self, source: int, target: int, distance: int) -> None:
        for number in (source, target):
            if number >= MAX_NODES:
                raise QobraError(f"Invalid node {number}, max possible could be {MAX_NODES}")
            if number not in self.nodes:
                raise QobraError(
                    "Source/Destination NUMA node is missing. Please use '-numa node' option to declare it first."
                )
        if distance < LOCAL_DISTANCE:
            raise QobraError(f"NUMA distance ({distance}) is invalid, it shouldn't be less than {LOCAL_DISTANCE}.")
        if source == target and distance != LOCAL_DISTANCE:
            raise QobraError(f"Local distance of node {source} should be {LOCAL_DISTANCE}.")
        self.distances[source, target] = distance

    def _set_cpu(self, options: dict[str, Any]) -> None:
        if "node-id" not in options:
            raise QobraError("Missing mandatory node-id property")
        number, topology = options["node-id"], self._board.topology
        if number not in self.nodes:
            raise QobraError(
                f"Invalid node-id={number}, NUMA node must be defined with -numa node,nodeid=ID "
                "before it's used with -numa cpu,node-id=ID"
            )
        wanted = {key: value for key, value in options.items() if key not in ("type", "node-id")}
        count = topology.max_cpus if topology is not None else 1
        matching = [
            index
            for index in range(count)
            if topology is not None and wanted.items() <= ({"die-id": 0} | topology.place(index)).items()
        ]
        if not matching:
            raise QobraError("no match found")
        for index in matching:
            self._check_unassigned(index, number)
        node = self.nodes[number]
        node.cpus.update(matching)
        self._check_own_initiator(number, node)

    def check(self) -> None:
        """All options are there: do they fit together, and the machine?"""
        board = self._board
        if not self.nodes and board.node_for_memory_to_come and board.max_ram_size > board.ram_size:
            # Guests take memory that comes later only where they have been told of a node.
            self.nodes[0] = Node()
            self.nodes[0].memory = board.ram_size
        if not self.nodes:
            return
        if sorted(self.nodes) != list(range(len(self.nodes))):
            missing = max(number for number in range(max(self.nodes)) if number not in self.nodes)
            raise QobraError(f"numa: Node ID missing: {missing}")
        total = sum(node.memory or 0 for node in self.nodes.values())
        if total != self._board.ram_size:
            raise QobraError(
                f"total memory for NUMA nodes (0x{total:x}) should equal RAM size (0x{self._board.ram_size:x})"
            )
        if self.distances:
            self._check_distances()
        self._place_other_cpus()
        for number, node in sorted(self.nodes.items()):
            self._check_own_initiator(number, node)
        for number, node in sorted(self.nodes.items()):
            if node.initiator is None:
                continue
            if node.initiator not in self.nodes:
                raise QobraError(f"NUMA node {node.initiator} is missing, use '-numa node' option to declare it first")
            if not self.nodes[node.initiator].cpus:
                raise QobraError(f"The initiator of NUMA node {number} is invalid")

    def _check_distances(self) -> None:
        # One of each pair is enough as long as they are the same both ways.
        given = self.distances
        for source, target in combinations(sorted(self.nodes), 2):
            if (source, target) not in given and (target, source) not in given:
                raise QobraError(
                    f"The distance between node {source} and {target} is missing, "
                    "at least one distance value between each nodes should be provided."
                )
        asymmetrical = any(given.get((b, a), distance) != distance for (a, b), distance in given.items())
        if asymmetrical and any(pair not in given for pair in permutations(self.nodes, 2)):
            raise QobraError(
                "At least one asymmetrical pair of distances is given, "
                "please provide distances for both directions of all node pairs."
            )

    def _place_other_cpus(self) -> None:
        # Those that nobody placed are on the first node, or spread over all if nobody placed any.
        topology = self._board.topology
        spread = not any(node.cpus for node in self.nodes.values())
        for index in range(topology.max_cpus if topology is not None else 0):
            if self.node_of_cpu(index) is None:
                self.nodes[self._board.default_node(index, len(self.nodes)) if spread else 0].cpus.add(index)

    def node_of_cpu(self, index: int) -> int | None:
        """The node of a CPU, if it was put into one."""
        return next((number for number, node in self.nodes.items() if index in node.cpus), None)

    def distance(self, source: int, target: int) -> int:
        """How far ``target`` is from ``source``; what was not said is the same both ways, or remote."""
        if source == target:
            return LOCAL_DISTANCE
        given = self.distances.get((source, target)) or self.distances.get((target, source))
        return given or REMOTE_DISTANCE

    def backends(self) -> list[str]:
        """The memory backends of the nodes, in their order."""
        return [node.backend for _number, node in sorted(self.nodes.items()) if node.backend is not None]
