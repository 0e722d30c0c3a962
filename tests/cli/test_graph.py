"""`qobra graph`."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from qobra.cli import main as program
from qobra.cli.subcommand._drawing import svg
from qobra.cli.subcommand.graph import Graph
from qobra.testing import QobraServer


@pytest.fixture
def served(qobra_server: QobraServer) -> QobraServer:
    qobra_server.execute("blockdev-add", driver="null-co", node_name="file", size=1 << 20, read_only=True)
    qobra_server.execute("blockdev-add", driver="raw", node_name="disk", file="file", read_only=True)
    qobra_server.execute("blockdev-add", driver="raw", node_name="twin", file="file", read_only=True)
    return qobra_server


def test_tree(served: QobraServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["graph", served.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("disk", "twin"):
        at = lines.index(f"{name} (raw, 1 MiB, read-only)")
        assert lines[at + 1] == "└─ file: file (null-co, 1 MiB, read-only)"


def test_drawings(served: QobraServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["graph", served.address, "--dot"]) == 0
    dot = capsys.readouterr().out
    assert dot.startswith("digraph") and dot.count("->") == 2 and '[label="file"]' in dot
    assert program.main(["graph", served.address, "--mermaid"]) == 0
    mermaid = capsys.readouterr().out
    assert mermaid.startswith("flowchart") and mermaid.count("-->") == 2


def test_picture(served: QobraServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["graph", served.address, "--svg"]) == 0
    root = ElementTree.fromstring(capsys.readouterr().out)
    texts = {text.text: text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    users = [texts[f"{name} (raw, 1 MiB, read-only)"] for name in ("disk", "twin")]
    below = texts["file (null-co, 1 MiB, read-only)"]
    assert all(float(above.get("y", 0)) < float(below.get("y", 0)) for above in users)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 2


def test_a_picture_of_a_loop_ends_and_what_is_unknown_is_left_out() -> None:
    root = ElementTree.fromstring(svg({1: "a<b", 2: "c"}, [(1, 2, "x", True), (2, 1, "y", False), (1, 9, "z", False)]))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 2


def test_json(served: QobraServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["graph", served.address, "--json"]) == 0
    graph = json.loads(capsys.readouterr().out)
    names = {vertex["id"]: vertex["label"].split()[0] for vertex in graph["vertices"]}
    links = sorted((names[link["parent"]], names[link["child"]]) for link in graph["links"])
    assert links == [("disk", "file"), ("twin", "file")]


def test_a_shared_branch_is_drawn_once() -> None:
    graph = Graph(
        {1: "top", 2: "left", 3: "shared", 4: "leaf"},
        [(1, 2, "file", True), (1, 3, "backing", False), (2, 3, "file", False), (3, 4, "file", False)],
    )
    assert graph.tree().splitlines() == [
        "top",
        "├─ file= left",
        "│  └─ file: shared",
        "│     └─ file: leaf",
        "└─ backing: shared  (above)",
    ]


def test_quotes_in_labels() -> None:
    graph = Graph({1: 'a "b" \\'}, [])
    assert graph.dot().splitlines()[2] == "  n1 [label=\"a 'b' \\\\\"];"


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["graph", "/nonexistent/qmp"]) == 1
    assert "cannot connect" in capsys.readouterr().err
