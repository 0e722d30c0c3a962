"""``qobra-shell ADDRESS``: a prompt for a QMP server, Qobra's or any QEMU's.

Exit status: 0 if all went well, 1 if a command failed, 2 for bad usage, 3 if there is no connection.
"""

from __future__ import annotations

import os
import sys

from qobra import __version__
from qobra.cli._tool.process import catch_interrupts
from qobra.errors import QobraError

HELP = "a prompt for a QMP server, with completion and help; or a script for it"

_EPILOG = """\
ADDRESS is unix:PATH or a path, HOST:PORT, or ssh://[USER@]HOST/PATH.

A line is NAME key=value ..., NAME {JSON} or {"execute": ...}; dots go down a level: file.driver=file.
The shell's own commands: help, hmp, events, wait JOB, wait-event NAME, exec-oob, exit.
With -c, -f or standard input that is no terminal the lines are a script; the first that fails ends it.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="qobra-shell", description=HELP, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-V", "--version", action="version", version=f"qobra-shell {__version__}")
    parser.add_argument("address", metavar="ADDRESS", help="where the server listens")
    parser.add_argument("-c", "--command", action="append", metavar="LINE", help="run this line (may be repeated)")
    parser.add_argument("-f", "--file", metavar="FILE", help="run the lines of this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--events", action="store_true", help="print events in a script too")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds to wait for the greeting")
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto", help="colour the output")
    options = parser.parse_args(argv)

    lines = options.command
    try:
        if options.file is not None:
            with open(options.file) as stream:
                lines = [*(lines or []), *stream]
        elif lines is None and not sys.stdin.isatty():
            lines = list(sys.stdin)
    except (OSError, UnicodeDecodeError) as error:
        print(f"qobra-shell: {error}", file=sys.stderr)
        return 2
    color = options.color == "always" or (
        options.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    )

    import asyncio

    catch_interrupts()
    try:
        return asyncio.run(
            _run(options.address, lines, options.timeout, options.json, color, options.events or lines is None)
        )
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


async def _run(
    address: str, lines: list[str] | None, timeout: float, as_json: bool, color: bool, show_events: bool
) -> int:
    from qobra.cli._shell.render import Printer
    from qobra.cli._shell.session import Session, run_script
    from qobra.client import Client, ConnectionLost

    printer = Printer(as_json=as_json, color=color)
    try:
        client = await Client.connect(address, timeout=timeout)
    except QobraError as error:
        printer.error("ConnectError", str(error))
        return 3
    async with client:
        session = Session(client, printer, show_events=show_events)
        try:
            await session.start()
            if lines is not None:
                return 0 if await run_script(session, lines) else 1
            from qobra.cli._shell.interactive import run_interactive

            package = client.greeting.get("version", {}).get("package") or ""
            version = ".".join(str(number) for number in client.version)
            printer.text(f"connected to {address}: version {version} {package}".rstrip())
            await run_interactive(session)
            return 0
        except ConnectionLost as error:
            printer.error("ConnectionLost", str(error))
            return 3


if __name__ == "__main__":
    sys.exit(main())
