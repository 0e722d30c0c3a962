"""Streams and commits of chains that have a filter somewhere, to and from each of their nodes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qobra.testing.differential import Run, against_storage_daemon

IMAGES = ("base", "mid", "top")
STABLE = ("ready", "pending")


def chain(q: Run, filter: str, place: str) -> str:
    """The named chain with a filter ``f`` over ``place``; the name of its topmost node."""
    for number, name in enumerate(IMAGES):
        backing = ["-b", IMAGES[number - 1], "-F", "qcow2"] if number else []
        q.tool("qemu-img", "create", "-q", "-f", "qcow2", *backing, name, *([] if number else ["4M"]))
        q.tool("qemu-io", "-c", f"write -P {number + 1} {number}M 1M", name)
    q("object-add", {"qom-type": "throttle-group", "id": "group"})
    below = None
    for name in IMAGES:
        q.add("qcow2", node_name=name, file=q.file(name), backing=below)
        below = name
        if name == place:
            q.add(filter, node_name="f", file=name, **({"throttle_group": "group"} if filter == "throttle" else {}))
            below = "f"
    assert below is not None
    return below


def job(q: Run, command: str, **arguments: str) -> None:
    """Start a job, look at it once it waits, and cancel it."""
    if q(command, {"job-id": "j", "auto-finalize": False, **arguments}) is None:
        return
    while not all(each["status"] in STABLE for each in q.request("query-jobs", None)["return"]):
        time.sleep(0.01)
    q("query-block-jobs")
    q("x-debug-query-block-graph")
    q("job-cancel", {"id": "j"})
    while q.request("query-jobs", None)["return"]:
        time.sleep(0.01)


@pytest.mark.parametrize("filter", ["throttle", "copy-on-read"])
@pytest.mark.parametrize("place", IMAGES)
def test_jobs_of_a_chain_with_a_filter(tmp_path: Path, filter: str, place: str) -> None:
    def script(q: Run) -> None:
        root = chain(q, filter, place)
        for name in ("base", "f", "mid"):
            job(q, "block-stream", device=root, **{"base-node": name})
        for name in ("mid", "f"):
            job(q, "block-stream", device=root, bottom=name)
        job(q, "block-stream", device=root, base=q.path("mid"))
        job(q, "block-stream", device="mid", **{"base-node": "base"})
        for top, base in (("mid", "base"), ("f", "base"), ("mid", "f"), ("top", "mid"), ("top", "f"), (root, "base")):
            job(q, "block-commit", device=root, **{"top-node": top, "base-node": base})
        job(q, "block-commit", device=root, top=q.path("mid"), base=q.path("base"))

    against_storage_daemon(script)(tmp_path)
