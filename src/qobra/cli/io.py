"""``qobra-io``: requests to an image by hand, with qemu-io's commands, options and answers.

The commands themselves are in :mod:`qobra.block.io_commands`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from qobra.block.cache_modes import CACHE_MODES
from qobra.block.io_commands._interpreter import Interpreter, Misused
from qobra.block.typed_options import DISCARD_WORDS
from qobra.cli._tool.image_opts import node_options
from qobra.cli._tool.opening import Images, ShareConflict
from qobra.cli._tool.process import run_tool
from qobra.cli._tool.report import Program, ToolError, flush_output
from qobra.errors import QobraError, strerror
from qobra.getopt import UsageError, parse
from qobra.option_list import Pair, option_pairs

HELP = "single requests to an image, with patterns (qemu-io's command line)"

_USAGE = """\
Usage: {name} [OPTIONS]... [-c STRING]... [file]
Requests to a disk image by hand

  --object OBJECTDEF   create an object first, as a 'secret'
  --image-opts         file is a list of options
  -c, --cmd STRING     run a command; may be given again
  -f, --format FMT     format of the image
  -r, --read-only      open it read-only
  -s, --snapshot       write to a temporary file, which is gone afterwards
  -n, --nocache        past the host's cache, short for -t none
  -C, --copy-on-read   copy what is read from the backing file
  -m, --misalign       misalign buffers (accepted; buffers are aligned where they must be)
  -k, --native-aio     short for -i native
  -i, --aio=MODE       how (threads, native, io_uring); native needs a cache mode past the host's cache
  -t, --cache=MODE     cache mode (none, writeback, writethrough, directsync, unsafe)
  -d, --discard=MODE   discard mode (ignore, unmap)
  -T, --trace [enable=]PATTERN[,events=FILE][,file=FILE]
                       print trace events; 'help' lists them
  -U, --force-share    open it even if others write to it
  -h, --help           display this help and exit
  -V, --version        output version information and exit

See '{name} -c help' for information on available commands.
"""

_SHORT = "hVc:d:f:rsnCmki:t:T:U"
_LONG = (
    "help|h", "version|V", "cmd=|c", "format=|f", "read-only|r", "snapshot|s", "nocache|n", "copy-on-read|C",
    "misalign|m", "native-aio|k", "aio=|i", "cache=|t", "discard=|d", "trace=|T", "object=", "image-opts",
    "force-share|U",
)  # fmt: skip

AIO_MODES = ("threads", "native", "io_uring")


def main(argv: list[str] | None = None, name: str | None = None) -> int:
    """Run a command line; returns the exit status."""
    return run_tool(run, "qobra-io", argv, name)


def run(called: str, arguments: list[str]) -> int:
    """Open the file, run the commands of ``-c`` or those on standard input."""
    program = Program(os.path.basename(called))
    shell = Shell(program)

    def main() -> int:
        try:
            operands = parse(arguments, _SHORT, _LONG, raw_texts=True, met=shell.take)[1]
        except UsageError as error:
            flush_output()
            sys.stderr.write(f"{called}: {error}\n")
            return _usage(program)
        return shell.run(operands)

    return program.run(main)


def _usage(program: Program, status: int = 1) -> int:
    print(_USAGE.format(name=program.name), end="")
    return status


class _Settings:
    """How to open an image, from options that the program and its ``open`` have in common."""

    def __init__(self) -> None:
        self.request: dict[str, Any] = {"cache": "writeback", "writable": True, "options": {"discard": "unmap"}}

    def take(self, option: str, value: str) -> None:
        """Take the next option into account. Raises ToolError."""
        request = self.request
        if option == "r":
            request["writable"] = False
        elif option == "n":
            request["cache"] = "none"
        elif option == "t":
            if value not in CACHE_MODES:
                raise ToolError(f"Invalid cache option: {value}")
            request["cache"] = value
        elif option == "d":
            if value not in DISCARD_WORDS:
                raise ToolError(f"Invalid discard option: {value}")
            request["options"]["discard"] = DISCARD_WORDS[value]
        elif option == "i":
            if value not in AIO_MODES:
                raise ToolError(f"Invalid aio option: {value}")
            request["aio"] = value if request.get("aio") != "native" else "native"
        elif option == "k":
            request["aio"] = "native"
        elif option == "U":
            request["force_share"] = True
        elif option == "s":
            request["snapshot"] = True
        elif option == "C":
            request["copy_on_read"] = True


class Shell:
    """One run of the program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._images = Images(program)
        self._objects: list[str] = []
        self._lines: list[str] = []
        self._format: str | None = None
        self._image_opts = False
        self._settings = _Settings()

    def take(self, option: str, value: str) -> None:
        """The next option of the command line. Raises ToolError, which ends the program, also where all is well."""
        if option == "h":
            _usage(self._program)
            raise ToolError("", status=0)
        if option == "V":
            from qobra.cli._tool.report import version_text

            print(version_text(self._program))
            raise ToolError("", status=0)
        if option == "T":
            from qobra.cli._tool.trace import take

            if not take(self._program, value):
                raise ToolError("", status=0)
        elif option == "c":
            self._lines.append(value)
        elif option == "object":
            self._images.define(value)
            self._objects.append(value)
        elif option == "f":
            self._format = value
        elif option == "image-opts":
            self._image_opts = True
        else:
            self._settings.take(option, value)

    def run(self, operands: list[str]) -> int:
        """Returns the exit status."""
        if len(operands) > 1:
            return _usage(self._program)
        if self._format is not None and self._image_opts:
            raise ToolError("--image-opts and -f are mutually exclusive")
        self._images.layer.tell_held = print
        interpreter = self._interpreter = Interpreter(
            None,
            sys.stdout.write,
            self._complain,
            program=self._program.name,
            open_file=self._open_command,
            close_file=self._close,
        )
        status = 0
        try:
            if operands:
                filename, prefix = operands[0], "can't open device {}: "
                request = self._settings.request
                if self._image_opts:
                    prefix = "can't open: "
                    request["described"] = self._described(self._pairs(filename), prefix)
                interpreter.backend = self._open(filename, self._format, request, prefix)
            status = self._run_lines(interpreter, self._lines) if self._lines else self._converse(interpreter)
        finally:
            try:
                self._close()
            except (OSError, QobraError) as error:
                text = strerror(error) if isinstance(error, OSError) else str(error)
                for each in (text, *getattr(error, "__notes__", ())):
                    self._program.error(each)
                status = 1
        return status

    def _run_lines(self, interpreter: Interpreter, lines: list[str]) -> int:
        status = 0
        for line in lines:
            if not self._run_line(interpreter, line):
                status = 1
            if interpreter.quit:
                break
        self._drain(interpreter)
        return status

    def _converse(self, interpreter: Interpreter) -> int:
        status = 0
        prompt = f"{self._program.name}> "
        terminal = sys.stdin.isatty()
        if terminal:
            import readline  # line editing for input()

            del readline
        while not interpreter.quit:
            if terminal:
                try:
                    line = input(prompt)
                except EOFError:
                    break
            else:
                sys.stdout.write(prompt)
                flush_output()
                line = sys.stdin.readline()
                if not line:
                    break
            if not self._run_line(interpreter, line.rstrip("\n")):
                status = 1
        self._drain(interpreter)
        return status

    def _run_line(self, interpreter: Interpreter, line: str) -> bool:
        from qobra.block.io_commands.asynchronous import report_ended

        good = interpreter.run(line)
        report_ended(interpreter)
        flush_output()
        return good

    def _drain(self, interpreter: Interpreter) -> None:
        from qobra.block.io_commands.asynchronous import wait_all

        wait_all(interpreter)

    def _complain(self, text: str) -> None:
        flush_output()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    # -- opening ----------------------------------------------------------------------------------------------

    def _pairs(self, text: str) -> list[Pair]:
        return option_pairs(text, warn=self._program.warning)

    def _described(self, pairs: list[Pair], prefix: str, *, file_follows: bool = False) -> dict[str, Any]:
        """The options of a node, or those for a file name, of the right types. Raises ToolError."""
        try:
            return node_options(pairs, file_follows=file_follows)
        except QobraError as error:
            raise ToolError(prefix + str(error))

    def _open(self, filename: str, fmt: str | None, settings: dict[str, Any], prefix: str) -> Any:
        try:
            return self._images.open(filename, fmt=fmt, **settings)
        except ShareConflict:
            raise ToolError("-U conflicts with image options")
        except ToolError as error:
            text = error.text.removeprefix(f"Could not open '{filename}': ")
            raise ToolError(f"{prefix.format(filename)}{text}")

    def _open_command(self, words: list[str]) -> Any:
        settings, pairs = _Settings(), list[Pair]()

        def met(option: str, value: str) -> None:
            settings.take(option, value)
            if option == "o":
                pairs.extend(self._pairs(value))

        try:
            _options, operands = parse(words[1:], "snCro:ki:t:d:U", raw_texts=True, met=met)
            if len(operands) > 1:
                raise Misused
            if self._interpreter.backend is not None and self._interpreter.backend.node is not None:
                raise ToolError("file open already, try 'help close'")
            prefix = "can't open device {}: " if operands else "can't open: "
            given = self._described(pairs, prefix.format(*operands), file_follows=bool(operands))
            self._new_images()
            request = settings.request
            if not operands:
                return self._open("", None, {**request, "described": given}, prefix)
            if request.get("force_share") and given.get("force-share") is False:
                raise ToolError("-U conflicts with image options")
            request["options"].update(given)
            return self._open(operands[0], None, request, prefix)
        except UsageError as error:
            self._complain(f"{words[0]}: {error}")
            raise Misused
        except ToolError as error:
            raise QobraError(error.text)

    def _new_images(self) -> None:
        self._images = Images(self._program, self._objects)
        self._images.layer.tell_held = print

    def _close(self) -> None:
        self._images.close()


if __name__ == "__main__":
    sys.exit(main())
