"""thread-context: threads that users place, and properties that are lists of numbers."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.object.user.thread_context import cpus_of_node


@pytest.fixture
def machine() -> Any:
    machine = simple_machine("x86_64", "none", memory=0)
    yield machine
    machine.close()


def test_a_context_runs_where_it_is_told_to(machine: Any) -> None:
    cpu = min(os.sched_getaffinity(0))
    context = machine.objects.create("thread-context", "tc", {"cpu-affinity": [cpu, cpu]})
    assert context.get("cpu-affinity") == [cpu]
    seen: list[Any] = []
    context.run(lambda: seen.extend((threading.get_native_id(), os.sched_getaffinity(0))))
    assert seen == [context.get("thread-id"), {cpu}]
    for _ in range(2):  # what fails is told, and the thread goes on
        with pytest.raises(MemoryError):
            context.run(lambda: bytearray(1 << 62))
    machine.objects.delete("tc")


def test_memory_is_touched_there(machine: Any) -> None:
    context = machine.objects.create("thread-context", "tc", {})
    calls: list[Any] = []
    run = context.run
    context.run = lambda call: (calls.append(threading.current_thread()), run(call))
    machine.objects.create("memory-backend-ram", "m", {"size": 8192, "prealloc": True, "prealloc-context": "tc"})
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("properties", "text"),
    [
        ({"cpu-affinity": []}, "CPU list is empty"),
        ({"cpu-affinity": [0xFFFF]}, "Setting CPU affinity failed: Invalid argument"),
        ({"cpu-affinity": [0x10000]}, "Parameter 'null' expects uint16_t"),
        ({"cpu-affinity": [0, "x"]}, "Parameter 'cpu-affinity[1]' expects uint64"),
        ({"cpu-affinity": 0}, "Invalid parameter type for 'cpu-affinity', expected: array"),
        ({"node-affinity": [999]}, "The nodes select no CPUs"),
        ({"cpu-affinity": [0], "node-affinity": [0]}, "Mixing CPU and node affinity not supported"),
    ],
)
def test_refusals(machine: Any, properties: dict[str, Any], text: str) -> None:
    if "node-affinity" in properties and not cpus_of_node(0):
        pytest.skip("the host does not tell of its nodes")
    with pytest.raises(QobraError) as caught:
        machine.objects.create("thread-context", "tc", properties)
    assert str(caught.value) == text


def test_lists_of_numbers_as_text(machine: Any) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for texts in ([str(cpu) for cpu in cpus], [f"{cpu}-{cpu}" for cpu in cpus]):
        context = machine.objects.create("thread-context", "tc", {"cpu-affinity": texts}, keyval=True)
        assert context.get("cpu-affinity") == cpus
        machine.objects.delete("tc")
    for text in ("x", "1-0", "-1", "1-"):
        with pytest.raises(QobraError, match="Parameter 'cpu-affinity' expects a uint64 value or range"):
            machine.objects.create("thread-context", "tc", {"cpu-affinity": text}, keyval=True)
