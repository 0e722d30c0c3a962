"""``thread-context``: a thread on chosen CPUs of the host, in which others have work done."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from qobra.errors import QobraError
from qobra.object.number_list import NumberList
from qobra.object.property import Int
from qobra.object.qom import Object
from qobra.object.types import registry

_NODE_CPUS = "/sys/devices/system/node/node{}/cpulist"


def _set_cpus(context: ThreadContext, cpus: list[int]) -> None:
    if not cpus:
        raise QobraError("CPU list is empty")
    context.place(cpus, "cpu-affinity")


def _set_nodes(context: ThreadContext, nodes: list[int]) -> None:
    if not nodes:
        raise QobraError("Node list is empty")
    context.check_alone("node-affinity")
    cpus = [cpu for node in nodes for cpu in cpus_of_node(node)]
    if not cpus:
        raise QobraError("The nodes select no CPUs")
    context.place(cpus, "node-affinity")


@registry.register("thread-context")
class ThreadContext(Object):
    """Memory backends have their pages touched there (``prealloc-context``), so that these lie near those CPUs."""

    type_name = "thread-context"
    user_creatable = True

    thread_id = Int(get=lambda self: self.thread_number, writable=False)
    node_affinity = NumberList(set=_set_nodes, readable=False)
    cpu_affinity = NumberList(set=_set_cpus, get=lambda self: sorted(os.sched_getaffinity(self.thread_number)))

    def __init__(self, tree: Any) -> None:
        super().__init__(tree)
        self._affinity: list[int] = []
        self._set_by = ""
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    @property
    def thread_number(self) -> int:
        """The thread's number in the host; that of the process's first thread until it runs."""
        return (self._thread.native_id if self._thread is not None else None) or os.getpid()

    def place(self, cpus: list[int], property_name: str) -> None:
        """Keep the thread on these CPUs. Raises QobraError."""
        self.check_alone(property_name)
        if self._thread is not None:
            _apply(self.thread_number, cpus)
        self._affinity, self._set_by = cpus, property_name

    def check_alone(self, property_name: str) -> None:
        """Raises QobraError where the other property already says where the thread is to be from the start."""
        if self._thread is None and self._set_by not in ("", property_name):
            raise QobraError("Mixing CPU and node affinity not supported")

    def complete(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"TC {self.name}", daemon=True)
        thread.start()
        self._thread = thread
        if self._affinity:
            _apply(self.thread_number, self._affinity)

    def finalize(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.release()
            thread.join()

    def run(self, call: Callable[[], None]) -> None:
        """Run ``call`` in the thread, and wait until it has ended. Raises what it raises."""
        ended = threading.Event()
        failures: list[BaseException] = []

        def carry_out() -> None:
            try:
                call()
            except BaseException as error:
                failures.append(error)
            finally:
                ended.set()

        self._calls.append(carry_out)
        self._wake.release()
        ended.wait()
        if failures:
            raise failures[0]

    def _serve(self) -> None:
        while True:
            self._wake.acquire()
            if not self._calls:
                return
            self._calls.popleft()()


def _apply(thread: int, cpus: list[int]) -> None:
    try:
        os.sched_setaffinity(thread, cpus)
    except (OSError, ValueError, OverflowError) as error:
        raise QobraError.from_os(
            "Setting CPU affinity failed", error if isinstance(error, OSError) else OSError(22, "")
        )


def cpus_of_node(node: int) -> list[int]:
    """The CPUs of a NUMA node of the host; none where there is no such node."""
    try:
        with open(_NODE_CPUS.format(node)) as stream:
            text = stream.read().strip()
    except OSError:
        return []
    cpus: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus
