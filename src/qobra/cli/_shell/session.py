"""What a shell does with a line, whoever types it."""

from __future__ import annotations

import asyncio
from typing import Any

from qobra.cli._shell.line import parse_line, split
from qobra.cli._shell.live import LiveSchema
from qobra.cli._shell.render import Printer
from qobra.client import Client, CommandError, CommandNotFound, ConnectionLost, Event
from qobra.errors import QobraError


class Leave(Exception):
    """The user wants out."""


class Session:
    """A client, the server's schema, and the shell's own commands."""

    def __init__(self, client: Client, printer: Printer, *, show_events: bool) -> None:
        self.client = client
        self.printer = printer
        self.schema = LiveSchema([])
        self.shown: frozenset[str] | None = None if show_events else frozenset()
        self._seen = client.events()
        self._arrivals = client.events()
        self._builtins = {
            "help": self._help,
            "hmp": self._hmp,
            "events": self._events,
            "wait": self._wait,
            "wait-event": self._wait_event,
            "exit": self._exit,
        }

    async def start(self) -> None:
        """Learn what the server has."""
        try:
            self.schema = LiveSchema(await self.client.execute("query-qmp-schema"))
        except CommandNotFound:
            self.schema = LiveSchema(await self._schema_from_names())

    async def run(self, line: str) -> None:
        """Execute one line. Raises QobraError if it does not work out, Leave if it says so."""
        text = line.strip()
        if not text or text.startswith("#"):
            return
        builtin = self._builtins.get(text.split()[0])
        if builtin is not None:
            await builtin(split(text)[1:])
            return
        call = parse_line(text, self.schema)
        try:
            result = await self.client.execute(call.command, call.arguments or None, oob=call.oob)
        except ConnectionLost:
            if call.command != "quit":
                raise
            result = {}
        self.printer.result(result)
        if call.command == "quit":
            raise Leave

    async def run_reporting(self, line: str) -> bool:
        """Like :meth:`run`, but print what is wrong; whether all went well. ConnectionLost and Leave pass."""
        try:
            await self.run(line)
        except CommandError as error:
            self.printer.error(error.error_class, error.desc)
            return False
        except ConnectionLost:
            raise
        except (QobraError, TimeoutError) as error:
            self.printer.error("GenericError", str(error))
            return False
        return True

    async def print_events(self) -> None:
        """Print the events that are to be shown as they come, until the connection ends."""
        async for event in self._arrivals:
            if self.shown is None or event.name in self.shown:
                self.printer.event(event)

    async def _schema_from_names(self) -> list[dict[str, Any]]:
        """The schema of a server too old to have one: Qobra's, of the commands that it names."""
        from qobra.qapi.contract import contract
        from qobra.qapi.introspect import introspect

        names = [entry["name"] for entry in await self.client.execute("query-commands")]
        return introspect(names, contract().events)

    async def _help(self, words: list[str]) -> None:
        from qobra.cli._shell import complete, manual

        member = next((word for word in words[1:] if "=" not in word), "")
        path = member.rstrip(".").split(".") if member else []
        if not words:
            own = [f"  {name:40} {note}" for name, note in complete.BUILTINS.items()]
            self.printer.text("\n".join(["The shell's own:", *own, "The server's:", manual.overview(self.schema)]))
        elif words[0] in complete.BUILTINS:
            self.printer.text(f"{words[0]}: {complete.BUILTINS[words[0]]}")
        elif words[0] not in self.schema.commands:
            raise QobraError(f"the server has no command '{words[0]}'")
        else:
            self.printer.text(manual.page(self.schema, words[0], path, complete.given_in(words[1:])))

    async def _hmp(self, words: list[str]) -> None:
        text = await self.client.execute("human-monitor-command", {"command-line": " ".join(words)})
        self.printer.text(text.rstrip())

    async def _events(self, words: list[str]) -> None:
        if words in (["on"], ["off"]):
            self.shown = None if words == ["on"] else frozenset()
        elif words:
            self.shown = frozenset(words)
        shown = "all" if self.shown is None else ", ".join(sorted(self.shown)) or "none"
        self.printer.text(f"events shown: {shown}")

    async def _wait(self, words: list[str]) -> None:
        if len(words) != 1:
            raise QobraError("usage: wait JOB")
        state = await self.client.jobs[words[0]].wait()
        self.printer.text(f"job {state.id} ({state.type}) is done: {state.progress.current} of {state.progress.total}")

    async def _wait_event(self, words: list[str]) -> None:
        if not words:
            raise QobraError("usage: wait-event NAME [key=value ...]")
        wanted = [word.partition("=")[::2] for word in words[1:]]
        while True:
            event = await self._seen.next()
            if event.name == words[0] and all(_is(event, key, value) for key, value in wanted):
                self.printer.event(event)
                return

    async def _exit(self, words: list[str]) -> None:
        raise Leave


def _is(event: Event, key: str, value: str) -> bool:
    found: Any = event.data
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, bool):
        return value in (("on", "true") if found else ("off", "false"))
    return str(found) == value


async def run_script(session: Session, lines: list[str]) -> bool:
    """Run lines until one fails or says to leave; whether none failed."""
    printing = asyncio.create_task(session.print_events())
    try:
        for line in lines:
            if not await session.run_reporting(line):
                return False
        # Let events that are here already be printed.
        await asyncio.sleep(0)
    except Leave:
        pass
    finally:
        printing.cancel()
    return True
