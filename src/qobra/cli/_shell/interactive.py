"""The prompt: completion, inline help, history; events appear above it as they come."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from qobra.cli._shell import manual
from qobra.cli._shell.complete import candidates, given_in
from qobra.cli._shell.session import Leave, Session
from qobra.client import ClientError

# A completion that has to ask a server that is busy is not worth waiting for.
QUERY_TIMEOUT = 0.5

Read = Callable[[], Awaitable[str]]


async def run_interactive(session: Session) -> None:
    """Read lines from the terminal until the user leaves. ConnectionLost when the server does."""
    loop = asyncio.get_running_loop()

    def query(command: str) -> list[dict[str, Any]]:
        asked = asyncio.run_coroutine_threadsafe(session.client.execute(command, timeout=QUERY_TIMEOUT), loop)
        try:
            return list(asked.result(QUERY_TIMEOUT))
        except (ClientError, TimeoutError):
            return []

    try:
        import prompt_toolkit  # noqa: F401

        read, quiet = _prompt(session, query)
    except ModuleNotFoundError:
        read, quiet = _plain_prompt, None
    printing = asyncio.create_task(session.print_events())
    try:
        if quiet is None:
            await _loop(session, read)
        else:
            with quiet:
                await _loop(session, read)
    finally:
        printing.cancel()


async def _loop(session: Session, read: Read) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            line = await read()
        except EOFError:
            return
        except KeyboardInterrupt:
            continue
        running = asyncio.ensure_future(session.run_reporting(line))
        # Ctrl-C gives up waiting for an answer; the server goes on.
        loop.add_signal_handler(signal.SIGINT, running.cancel)
        try:
            await running
        except asyncio.CancelledError:
            session.printer.error("GenericError", "not waited for")
        except Leave:
            return
        finally:
            loop.remove_signal_handler(signal.SIGINT)


async def _plain_prompt() -> str:
    import readline  # noqa: F401  editing and history in input()

    return await asyncio.to_thread(input, "(qmp) ")


def _prompt(session: Session, query: Callable[[str], list[dict[str, Any]]]) -> tuple[Read, Any]:
    """A reader with prompt_toolkit's comforts, and the context in which output appears above the prompt."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, ThreadedCompleter
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.patch_stdout import patch_stdout

    class LineCompleter(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            for found in candidates(document.text_before_cursor, session.schema, query, manual.summary):
                yield Completion(found.text, -found.replaces, display=found.text.rstrip(), display_meta=found.note)

    prompt: PromptSession[str] = PromptSession(
        history=FileHistory(_history_file()),
        completer=ThreadedCompleter(LineCompleter()),
        auto_suggest=AutoSuggestFromHistory(),
        complete_while_typing=False,
        bottom_toolbar=lambda: _toolbar(session, prompt.default_buffer.text),
    )
    return lambda: prompt.prompt_async("(qmp) "), patch_stdout(raw=True)


def _toolbar(session: Session, text: str) -> str:
    """One line of help on what is being typed."""
    words = text.split()
    if not words:
        return "Tab completes, 'help' lists the commands, Ctrl-D leaves"
    command = words[0]
    if command not in session.schema.commands:
        return ""
    key, equals, _value = words[-1].partition("=")
    meaning = manual.about_member(command, key.split("."), given_in(words[1:])) if equals else ""
    return (meaning or manual.summary(command))[:200]


def _history_file() -> str:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    directory = os.path.join(state, "qobra")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        print(f"no history is kept: {directory}: {error.strerror}", file=sys.stderr)
        return os.devnull
    return os.path.join(directory, "shell_history")
