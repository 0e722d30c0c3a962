"""Which iothread nodes belong to, and what is refused because of it."""

from __future__ import annotations

import os
import queue
import threading
from types import SimpleNamespace

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.export.export import Export
from qobra.block.layer import BlockLayer
from qobra.block.reopen import reopen
from qobra.errors import QobraError

ONE, TWO = object(), object()
REFUSED = "^Cannot change iothread of active block backend$"


@pytest.fixture
def layer():
    made = BlockLayer()
    made.find_iothread = {"one": ONE, "two": TWO}.get
    for name in ("a", "b"):
        made.add_node({"driver": "null-co", "node-name": name})
    yield made
    made.close()


def _user(layer, name, iothread):
    """Somebody who works in ``iothread`` and stays there."""
    backend = BlockBackend(layer, perm=0, shared=permissions.ALL)
    backend.insert(layer.find_node(name))
    backend.move(iothread)
    backend.fixed_iothread = True
    return backend


def _iothread(layer, name):
    return layer.find_node(name).iothread


def test_what_is_connected_moves_together_and_a_user_keeps_it(layer):
    layer.add_node({"driver": "raw", "node-name": "top", "file": "a"})
    user = _user(layer, "top", ONE)
    assert _iothread(layer, "a") is ONE and _iothread(layer, "b") is None
    with pytest.raises(QobraError, match=REFUSED):
        layer.set_iothread(layer.find_node("a"), TWO)
    with pytest.raises(QobraError, match=REFUSED):
        _user(layer, "a", None)
    assert _iothread(layer, "top") is ONE
    user.move(TWO)  # it may go elsewhere itself
    assert _iothread(layer, "a") is TWO


def test_nodes_go_home_with_the_last_that_was_kept(layer):
    users = [_user(layer, "a", ONE), _user(layer, "a", ONE)]
    users[0].remove()
    assert _iothread(layer, "a") is ONE
    users[1].remove()
    assert _iothread(layer, "a") is None


@pytest.mark.parametrize(("user", "place"), [(None, TWO), (ONE, ONE), (TWO, TWO)])
def test_new_links_take_the_other_side_along(layer, user, place):
    layer.add_node({"driver": "raw", "node-name": "top", "file": "a"})
    if user is not None:
        _user(layer, "b", user)
    layer.set_iothread(layer.find_node("top"), TWO)
    reopen(layer, [{"driver": "raw", "node-name": "top", "file": "b"}])
    assert _iothread(layer, "top") is _iothread(layer, "b") is place


def test_users_in_two_iothreads_cannot_be_connected(layer):
    layer.add_node({"driver": "raw", "node-name": "top", "file": "a"})
    _user(layer, "top", ONE)
    _user(layer, "b", TWO)
    with pytest.raises(QobraError, match=REFUSED):
        reopen(layer, [{"driver": "raw", "node-name": "top", "file": "b"}])
    assert layer.find_node("top").file is layer.find_node("a") and _iothread(layer, "b") is TWO


def test_a_new_node_is_where_its_children_are(layer):
    _user(layer, "a", ONE)
    layer.add_node({"driver": "raw", "node-name": "top", "file": "a"})
    assert _iothread(layer, "top") is ONE


def test_a_job_connects_its_nodes(layer):
    from qobra.block.job.block_job import BlockJob

    job = object.__new__(BlockJob)
    source, target = (BlockBackend(layer, perm=0, shared=permissions.ALL) for _ in range(2))
    for edge, name in ((source, "a"), (target, "b")):
        edge.job = job
        edge.insert(layer.find_node(name))
    _user(layer, "a", ONE)
    assert _iothread(layer, "b") is ONE
    for edge in (source, target):
        edge.remove()


@pytest.mark.parametrize("fixed", [True, False])
def test_an_export_moves_its_node_if_it_may(layer, tmp_path, fixed):
    layer.exports.start_nbd_server({"type": "unix", "path": str(tmp_path / "s")})
    export = {"type": "nbd", "id": "e", "node-name": "a", "iothread": "two", "fixed-iothread": fixed}
    user = _user(layer, "a", ONE)
    if fixed:
        with pytest.raises(QobraError, match=REFUSED):
            layer.exports.add(export)
        assert not layer.exports.query()
    else:
        layer.exports.add(export)
    user.remove()
    assert _iothread(layer, "a") is None  # the export goes along
    if fixed:
        layer.exports.add(export)
        assert _iothread(layer, "a") is TWO
        with pytest.raises(QobraError, match=REFUSED):
            layer.set_iothread(layer.find_node("a"), None)


def test_an_export_is_served_on_the_processors_of_its_iothread(layer):
    processor = min(os.sched_getaffinity(0))
    ids, done, found = queue.Queue(), threading.Event(), []

    def iothread():
        os.sched_setaffinity(0, {processor})
        ids.put(threading.get_native_id())
        done.wait(20)

    def serve():
        export.enter_thread()
        found.append(os.sched_getaffinity(0))

    export = Export(layer, {"id": "e"}, layer.find_node("a"), False)
    threads = [threading.Thread(target=iothread), threading.Thread(target=serve)]
    threads[0].start()
    layer.set_iothread(layer.find_node("a"), SimpleNamespace(thread_id=ids.get(timeout=20)))
    threads[1].start()
    threads[1].join()
    done.set()
    threads[0].join()
    assert found == [{processor}]
