"""A QMP session: what one monitor does with one client after another.

It is the front end of a character device, whose thread calls :meth:`Session.receive`; a command runs in that thread, in
the control strand. What a command emits and its reply get their places in the output while the strand is held, so
every client sees an order that really was: a command's own events, its reply, then what happened after.
"""

from __future__ import annotations

import os
import time

from qobra.errors import COMMAND_NOT_FOUND, QobraError
from qobra.json_reader import Reader
from qobra.lean import Event, Lock
from qobra.qmp import dispatch
from qobra.qmp.output import Output
from qobra.qmp.version import version_info
from qobra.qmp.writer import encode, encode_without_loading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.chardev.chardev import Chardev
    from qobra.machine.machine import Machine
    from qobra.qmp.events import EventRouter
    from qobra.qmp.inband import InBandQueue
    from qobra.qmp.pace import Pace

CAPABILITIES = ("oob",)


class Session:
    """One monitor in control mode.

    ``pretty`` indents what is sent, ``greeted`` is set when a client has been greeted. ``peer_fds`` are the file
    descriptors that came with the latest message.
    """

    def __init__(
        self,
        machine: Machine,
        chardev: Chardev,
        router: EventRouter,
        *,
        pretty: bool = False,
        greeted: Event | None = None,
    ) -> None:
        self.machine = machine
        self.chardev = chardev
        self.pretty = pretty
        self.negotiated = False
        self.oob = False
        self.peer_fds: list[int] = []
        self._router = router
        self._greeted = greeted
        self._reader = Reader()
        self._output = Output(chardev)
        self._in_band: InBandQueue | None = None
        self._pace: Pace | None = None
        self._spent_ns = 0
        """What the serving thread had taken of a processor before the latest command."""
        self._lock = Lock()
        self._connected = False

    # -- the chardev's front end

    hotswap = False

    def can_receive(self) -> int:
        return 1 << 20

    def event(self, name: str) -> None:
        if name == "opened":
            self._reader = Reader()
            self._output.open()
            self.negotiated = self.oob = False
            self._connected = True
            greeting = {"QMP": {"version": version_info(), "capabilities": list(CAPABILITIES)}}
            self._output.reply(encode_without_loading(greeting, pretty=self.pretty) + b"\r\n")
            if self._greeted is not None:
                self._greeted.set()
        elif name == "ended":
            self._output.drain()
        elif name == "ending":
            self._output.finish()
        elif name == "closed":
            if self.machine.is_ending:
                return  # the end of a script's input that asked for this; what ends now it is still told
            with self._lock:
                if not self._connected:
                    return
                self._connected = False
            self._router.remove(self)
            self._output.close()
            if self._in_band is not None:
                self._in_band.close()
                self._in_band = None
            self._own_fds([])

    def receive(self, data: bytes) -> None:
        fds = self.chardev.take_fds()
        alone = True
        for item in self._reader.feed(data):
            in_band = self._in_band
            if in_band is None:
                if fds:
                    self._own_fds(fds)
                    fds = []
                if delay := self.delay(alone):
                    time.sleep(delay)
                alone = False
                self.serve(item)
            elif type(item) is dict and "exec-oob" in item and "execute" not in item:
                self.serve(item)
            else:
                in_band.put(item, fds)
                fds = []
            if not self._connected:
                break
        if fds:
            self._own_fds(fds)

    # -- requests

    def delay(self, alone: bool) -> float:
        """Seconds that the next in-band command is to wait, outside the strand, so that guests do not pay for it.

        Called by the thread that serves them. ``alone``: it has waited for this one.
        """
        pace = self._pace
        if pace is None:
            if "block" not in self.machine.__dict__:
                return 0.0  # nothing has asked for the block layer yet
            from qobra.qmp.pace import Pace

            pace = self._pace = Pace(self.machine.block.flight)
            self._spent_ns = time.thread_time_ns()
        spent_ns, before_ns = time.thread_time_ns(), self._spent_ns
        self._spent_ns = spent_ns
        # The thread may be another one than that before.
        delay_ns = pace.delay_ns(time.monotonic_ns(), max(spent_ns - before_ns, 0), alone=alone)
        return 0.0 if self.machine.is_ending else delay_ns / 1e9

    def serve(self, item: Any, client: int | None = None) -> None:
        """Answer one request, or the error that stands for an unreadable one, in the calling thread.

        ``client`` is whose request it is, where that client may have left since and another have come.
        """
        if isinstance(item, QobraError):
            self._output.reply(self._error_line(item, {}), client)
        elif self.oob and type(item) is dict and "exec-oob" in item and "execute" not in item:
            self._output.reply(self._answer(item), client)
        else:
            with self.machine.control:
                if self.machine.setting_up:
                    return
                self._output.reply(self._answer(item), client)
        # Outside the strand: a client that does not read holds up nobody but itself.
        if self.machine.is_ending:
            self._output.drain()
        else:
            self._output.settle()

    def _answer(self, request: Any) -> bytes:
        name = "QMP"
        try:
            name, arguments, oob = dispatch.check_request(request, oob_enabled=self.oob)
            if not self.negotiated:
                if name != "qmp_capabilities":
                    raise QobraError("Expecting capabilities negotiation with 'qmp_capabilities'", COMMAND_NOT_FOUND)
                self._negotiate(arguments)
                result = None
            else:
                result = dispatch.call(self.machine, name, arguments, session=self, oob=oob)
            return self._reply_line(result, request)
        except Exception as error:
            return self._error_line(dispatch.describe(name, error), request)

    def _negotiate(self, arguments: dict[str, Any]) -> None:
        if arguments:
            from qobra.qapi.contract import contract

            arguments = contract().check_arguments("qmp_capabilities", arguments)
        if "oob" in arguments.get("enable", ()):
            from qobra.qmp.inband import InBandQueue

            self.oob = True
            self._in_band = InBandQueue(self, self._output.client)
        self.negotiated = True
        self._router.add(self)

    def fds_arrived(self, fds: list[int]) -> None:
        """A queued request that is about to run came with ``fds``."""
        self._own_fds(fds)

    def take_fd(self) -> int | None:
        """The first of the file descriptors that came with the latest message, for the caller to own."""
        fds = self._exchange_fds([])
        for other in fds[1:]:
            os.close(other)
        return fds[0] if fds else None

    def _own_fds(self, fds: list[int]) -> None:
        for fd in self._exchange_fds(fds):
            os.close(fd)

    def _exchange_fds(self, fds: list[int]) -> list[int]:
        # The end of the connection and a command that still runs may both want them.
        with self._lock:
            former, self.peer_fds = self.peer_fds, fds
            return former

    # -- output

    def send_event(self, line: bytes) -> None:
        """Put an event into the output. Called inside the strand."""
        self._output.event(line)

    def _line(self, value: dict[str, Any]) -> bytes:
        return encode(value, pretty=self.pretty) + b"\r\n"

    def _reply_line(self, result: Any, request: dict[str, Any]) -> bytes:
        value = {} if result is None else result
        if self.pretty:
            from qobra.qmp.writer import plain

            reply = {"return": plain(value)}
            if "id" in request:
                reply["id"] = request["id"]
            return self._line(reply)
        identity = b', "id": ' + encode(request["id"]) if "id" in request else b""
        return b'{"return": ' + encode(value) + identity + b"}\r\n"

    def _error_line(self, error: QobraError, request: Any) -> bytes:
        reply: dict[str, Any] = {}
        if type(request) is dict and "id" in request:
            reply["id"] = request["id"]
        reply["error"] = {"class": error.error_class, "desc": error.desc}
        return self._line(reply)
