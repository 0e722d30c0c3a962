"""dump-guest-memory: the checks, the file, the work in the foreground or in a thread, and how far it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError, strerror
from qobra.machine.dump.compression import available, compressor
from qobra.machine.dump.elf import write_elf
from qobra.machine.dump.kdump import Notes, write_kdump
from qobra.machine.dump.memory import Run, ram_runs
from qobra.machine.dump.notes import cpu_notes

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.machine import Machine

_COMPRESSED = ("kdump-zlib", "kdump-lzo", "kdump-snappy", "win-dmp")


def formats() -> list[str]:
    """The formats that can be written here."""
    return ["elf", *available()]


class Dumper:
    """The dump of one machine: at most one at a time. ``query`` is DumpQueryResult of the reference."""

    def __init__(self, machine: Machine, architecture: str) -> None:
        self._machine = machine
        self._architecture = architecture
        self._status = "none"
        self._total = self._completed = 0

    def query(self) -> dict[str, Any]:
        """How far the dump is."""
        return {"status": self._status, "completed": self._completed, "total": self._total}

    def start(self, args: dict[str, Any]) -> None:
        """Do what the command says; the machine stands still meanwhile. Raises QobraError."""
        self._check(args)
        board = self._machine.board
        assert board is not None
        begin, end = 0, None
        if "begin" in args:
            if not args["length"]:
                raise QobraError("Invalid parameter 'length'")
            begin, end = args["begin"], args["begin"] + args["length"]
        runs = ram_runs(board.memory, begin, end)
        if not runs:
            raise QobraError("dump: no guest memory to dump")
        fd = self._open(args["protocol"])
        self._status, self._completed = "active", 0
        self._total = sum(len(run.view) for run in runs)
        state = self._machine.run_state
        resume = state.running
        state.stop()
        work = self._work(fd, runs, args.get("format", "elf"))
        if not args.get("detach", False):
            error = work()
            self._ended(error, resume)
            if error is not None:
                raise error
            return
        threading.Thread(
            target=lambda: self._machine.control.post(self._ended, work(), resume), name="dump", daemon=True
        ).start()

    def _check(self, args: dict[str, Any]) -> None:
        form = args.get("format", "elf")
        if self._machine.run_state.state == "inmigrate":
            raise QobraError("Dump not allowed during incoming migration.")
        if self._status == "active":
            raise QobraError("There is a dump in process, please wait.")
        if form in _COMPRESSED and (args["paging"] or "begin" in args or "length" in args):
            raise QobraError("kdump-compressed format doesn't support paging or filter")
        if "begin" in args and "length" not in args:
            raise QobraError("Parameter 'length' is missing")
        if "length" in args and "begin" not in args:
            raise QobraError("Parameter 'begin' is missing")
        if form not in formats():
            raise QobraError(f"{form} is not available now")

    def _open(self, protocol: str) -> int:
        kind, colon, rest = protocol.partition(":")
        if kind == "fd" and colon:
            return self._machine.fdsets.take_named(rest)
        if kind != "file" or not colon:
            raise QobraError("Invalid parameter 'protocol'")
        try:
            return os.open(rest, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise QobraError(f"Could not open '{rest}': {strerror(error)}", errno=error.errno)

    def _work(self, fd: int, runs: list[Run], form: str) -> Callable[[], QobraError | None]:
        board = self._machine.board
        assert board is not None
        notes = cpu_notes(board.cpus, self._architecture)
        kernel_note = _kernel_note(board)

        def write(data: bytes | memoryview) -> None:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]

        def progress(length: int) -> None:
            self._completed += length

        def work() -> QobraError | None:
            try:
                if form == "elf":
                    write_elf(write, runs, notes + kernel_note, self._architecture, progress)
                else:
                    all_notes = Notes(notes, kernel_note)
                    write_kdump(write, runs, all_notes, self._architecture, len(board.cpus), progress, compressor(form))
            except OSError as error:
                return QobraError(f"dump: failed to save memory: {strerror(error)}", errno=error.errno)
            finally:
                os.close(fd)
            return None

        return work

    def _ended(self, error: QobraError | None, resume: bool) -> None:
        self._status = "failed" if error is not None else "completed"
        data: dict[str, Any] = {"result": self.query()}
        if error is not None:
            data["error"] = str(error)
        self._machine.events.emit("DUMP_COMPLETED", data)
        if resume:
            self._machine.run_state.start()


def _kernel_note(board: Board) -> bytes:
    from qobra.machine.board import find_devices

    found: Any = next(find_devices(board, "vmcoreinfo"), None)
    return bytes(found.note()) if found is not None else b""
