"""The comparison of two servers: what counts as the same, and that it notices what is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qobra.errors import QobraError
from qobra.testing.differential import Own, Run, check_answer, comparable, differences


@pytest.fixture
def servers(tmp_path):
    places = [tmp_path / name for name in "ab"]
    for place in places:
        place.mkdir()
    return [Own(place) for place in places]


def test_a_server_is_like_itself(servers):
    def script(q: Run) -> None:
        with open(q.path("disk"), "wb") as file:
            file.truncate(4096)
        q.add("raw", node_name="r", file=q.file("disk", read_only=True), read_only=True)
        q("query-named-block-nodes")
        q("x-debug-query-block-graph")
        q("blockdev-create", {"job-id": "j", "options": {"driver": "file", "filename": q.path("new"), "size": 512}})
        q.wait("JOB_STATUS_CHANGE", id="j", status="concluded")

    assert differences(script, servers) == []


def test_another_answer_and_other_events_are_noticed(servers):
    def script(q: Run) -> None:
        first = q.path("").rstrip("/").endswith("a")
        q.add("null-co", node_name="n", size=1024 if first else 2048)
        q("query-named-block-nodes")
        q("query-version", differs="nothing")
        if first:
            q("blockdev-create", {"job-id": "j", "options": {"driver": "file", "filename": "/", "size": 1}})
            q.wait("JOB_STATUS_CHANGE", id="j", status="concluded")

    found = differences(script, servers)
    assert [text.split("\n")[0].split(" ")[0] for text in found] == ["4", "step", "step", "events"]
    assert ".return[0].image.virtual-size: 1024" in found[1] and "(known to differ: nothing)" in found[2]


def test_what_is_made_up_is_made_equal():
    names: dict[str, str] = {}
    reply = {"return": [{"node-name": "#block123", "file": "/place/x", "timestamp": 5, "actual-size": 7}]}
    assert comparable(reply, names, "/place") == {"return": [{"node-name": "#auto1", "file": "DIR/x"}]}
    assert comparable({"error": "Parameter 'a' does not accept value 'b'"}, names, "/place") == {
        "error": "Invalid parameter 'b'"
    }


def test_an_answer_has_to_keep_to_the_contract():
    check_answer("query-status", {"status": "running", "running": True, "singlestep": False})
    with pytest.raises(QobraError, match="Parameter 'running' is missing"):
        check_answer("query-status", {"status": "running", "singlestep": False})


def test_descriptors_are_limited_for_all_that_is_started():
    code = (
        "import subprocess; from qobra.testing.differential import limit_descriptors; limit_descriptors(100);"
        "print(subprocess.run(['sh', '-c', 'ulimit -n'], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "100", done.stderr
