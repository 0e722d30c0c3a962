"""``qobra graph ADDRESS``: a server's block graph, as a tree, a picture or for a program.

The nodes and links are those of x-debug-query-block-graph, so any QEMU since 4.0 will do as well.
"""

from __future__ import annotations

import argparse
from typing import Any

from qobra.cli._tool.process import guard_terminal
from qobra.client import CommandNotFound
from qobra.client.sync import Client
from qobra.errors import QobraError
from qobra.report import visible
from qobra.units import size_text

HELP = "draw the block graph of a running server"

DRAWINGS = ("svg", "json", "dot", "mermaid")
"""Methods of :class:`Graph` that are options too."""


def main(argv: list[str]) -> int:
    """Print the graph; returns 0."""
    guard_terminal()
    parser = argparse.ArgumentParser(prog="qobra graph", description=HELP)
    parser.add_argument("address", metavar="ADDRESS", help="where the server's QMP is: unix:PATH, HOST:PORT, ssh://...")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--svg", action="store_true", help="print a picture: qobra graph ADDRESS --svg > graph.svg")
    formats.add_argument("--json", action="store_true", help="print vertices and links as JSON")
    formats.add_argument("--dot", action="store_true", help="print Graphviz' language")
    formats.add_argument("--mermaid", action="store_true", help="print Mermaid, as Markdown viewers draw it")
    options = parser.parse_args(argv)
    with Client.connect(options.address) as client:
        graph = Graph.of(client)
    print(getattr(graph, next((name for name in DRAWINGS if getattr(options, name)), "tree"))())
    return 0


class Graph:
    """Vertices by number with their labels, and the links between them: (parent, child, name, writes)."""

    def __init__(self, labels: dict[int, str], links: list[tuple[int, int, str, bool]]) -> None:
        self.labels = labels
        self.links = links

    @classmethod
    def of(cls, client: Client) -> Graph:
        """The graph that a server has now."""
        try:
            graph = client.x_debug_query_block_graph()
        except CommandNotFound:
            raise QobraError("the server does not have x-debug-query-block-graph") from None
        infos = {info.get("node-name"): info for info in client.query_named_block_nodes(flat=True)}
        labels = {node["id"]: _label(node, infos.get(node["name"])) for node in graph["nodes"]}
        links = [(edge["parent"], edge["child"], edge["name"], "write" in edge["perm"]) for edge in graph["edges"]]
        return cls(labels, links)

    def tree(self) -> str:
        """An outline from the roots down; what was drawn before is only named."""
        children = {child for _, child, _, _ in self.links}
        lines: list[str] = []
        drawn: set[int] = set()
        for vertex, label in self.labels.items():
            if vertex not in children:
                lines.append(label)
                self._branches(vertex, "", lines, drawn)
        return "\n".join(lines)

    def svg(self) -> str:
        """A picture, users above what they use; links that are written through are thick."""
        from qobra.cli.subcommand._drawing import svg

        return svg(self.labels, self.links)

    def json(self) -> str:
        """The vertices with their labels, and the links between them."""
        import json

        vertices = [{"id": vertex, "label": label} for vertex, label in self.labels.items()]
        links = [dict(zip(("parent", "child", "name", "writes"), link, strict=True)) for link in self.links]
        return json.dumps({"vertices": vertices, "links": links}, indent=2)

    def dot(self) -> str:
        """The graph in Graphviz' language; links that are written through are bold."""
        lines = ["digraph blocks {", "  node [shape=box, fontname=sans];"]
        lines += [f"  n{vertex} [label={_quoted(label)}];" for vertex, label in self.labels.items()]
        for parent, child, name, writes in self.links:
            style = ", style=bold" if writes else ""
            lines.append(f"  n{parent} -> n{child} [label={_quoted(name)}{style}];")
        return "\n".join([*lines, "}"])

    def mermaid(self) -> str:
        """The graph as a Mermaid flowchart; links that are written through are thick."""
        lines = ["flowchart TD"]
        lines += [f"  n{vertex}[{_quoted(label)}]" for vertex, label in self.labels.items()]
        for parent, child, name, writes in self.links:
            lines.append(f"  n{parent} {'==>' if writes else '-->'}|{_quoted(name)}| n{child}")
        return "\n".join(lines)

    def _branches(self, vertex: int, indent: str, lines: list[str], drawn: set[int]) -> None:
        drawn.add(vertex)
        links = [link for link in self.links if link[0] == vertex]
        for _, child, name, writes in links:
            last = child == links[-1][1] and name == links[-1][2]
            again = child in drawn
            note = "  (above)" if again and any(link[0] == child for link in self.links) else ""
            lines.append(f"{indent}{'└─' if last else '├─'} {name}{'=' if writes else ':'} {self.labels[child]}{note}")
            if not again:
                self._branches(child, indent + ("   " if last else "│  "), lines, drawn)


def _label(node: Any, info: Any) -> str:
    """``disk (qcow2, 512 MiB, read-only)``; a user of nodes has only its kind and name."""
    if info is None:
        kind = {"block-backend": "backend", "block-job": "job"}.get(node["type"], node["type"])
        return visible(f"{kind} {node['name']}".rstrip())
    facts = [info["drv"], size_text(info["image"]["virtual-size"])]
    if info["ro"]:
        facts.append("read-only")
    return visible(f"{node['name']} ({', '.join(facts)})")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', "'") + '"'
