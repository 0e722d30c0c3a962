"""``qobra-nbd``: serve an image over NBD, list what a server has, with qemu-nbd's command line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from qobra.block.cache_modes import CACHE_MODES
from qobra.block.typed_options import DISCARD_WORDS
from qobra.cli._tool.opening import Images
from qobra.cli._tool.process import end_in_order, run_tool
from qobra.cli._tool.report import Program, ToolError, flush_output
from qobra.errors import QobraError
from qobra.getopt import UsageError, parse
from qobra.units import INT32_MAX, INT64_MAX, integer, not_a_size

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.cli._img._snapshot_param import SnapshotParam
    from qobra.cli._nbd.background import Background
    from qobra.cli._nbd.serve import Server

HELP = "serve an image over NBD (qemu-nbd's command line)"

_USAGE = """\
Usage: {name} [OPTIONS] FILE
  or:  {name} -L [OPTIONS]
Serve a disk image over NBD

  -h, --help                display this help and exit
  -V, --version             output version information and exit

Connection:
  -p, --port=PORT           port to listen on (10809)
  -b, --bind=IFACE          address to bind to (0.0.0.0)
  -k, --socket=PATH         unix socket to listen on instead
      --selinux-label=LABEL SELinux context of that socket
  -e, --shared=NUM          how many clients may be connected (1); 0 for any number
  -t, --persistent          go on when the last client has left
  -v, --verbose             accepted
  -x, --export-name=NAME    name of the export (empty)
  -D, --description=TEXT    description of the export

What is served:
  -o, --offset=OFFSET       begin at this byte of the image
  -A, --allocation-depth    tell from which image of the chain data comes
  -B, --bitmap=NAME         tell what a persistent dirty bitmap has

General:
  -L, --list                list the exports of another server
  --object TYPE,id=ID,...   create an object first, as a 'secret'
  --tls-creds=ID            credentials object for TLS
  --tls-hostname=NAME       name to check a server's certificate against, with -L
  --tls-authz=ID            authorization object for clients
  -T, --trace [enable=]PATTERN[,events=FILE][,file=FILE]
                            print trace events; 'help' lists them
  --fork                    go to the background once the server is running
  --pid-file=PATH           write the process id there

The kernel's client:
  -c, --connect=DEV         let the kernel use the image as the block device DEV
  -d, --disconnect          disconnect the device FILE

Image:
  -f, --format=FORMAT       format (raw, qcow2, ...)
  -r, --read-only           serve it read-only
  -s, --snapshot            write to a temporary file instead
  -l, --load-snapshot=SNAP  serve an internal snapshot, by id or name or as
                            'snapshot.id=ID,snapshot.name=NAME'
  -n, --nocache             past the host's cache
      --cache=MODE          cache mode (none, writeback, writethrough, directsync, unsafe)
      --aio=MODE            how (threads, native, io_uring); native needs a cache mode past the host's cache
      --discard=MODE        discard mode (ignore, unmap)
      --detect-zeroes=MODE  whether zeroes are found and written as such (off, on, unmap)
      --image-opts          FILE is a list of options
"""

_SHORT = "hVb:o:p:rsnc:dvk:e:f:tl:x:T:D:AB:L"
_LONG = (
    "help|h", "version|V", "bind=|b", "port=|p", "socket=|k", "offset=|o", "read-only|r", "allocation-depth|A",
    "bitmap=|B", "connect=|c", "disconnect|d", "list|L", "snapshot|s", "load-snapshot=|l", "nocache|n", "cache=",
    "aio=", "discard=", "detect-zeroes=", "shared=|e", "format=|f", "persistent|t", "verbose|v", "object=",
    "export-name=|x", "description=|D", "tls-creds=", "tls-hostname=", "tls-authz=", "image-opts", "trace=|T", "fork",
    "pid-file=", "selinux-label=",
)  # fmt: skip

DEFAULT_PORT = "10809"
DEFAULT_BIND = "0.0.0.0"
MAX_STRING = 4096
AIO_MODES = ("threads", "native", "io_uring")

_ONCE = {"cache": "-n and --cache", "aio": "--aio", "discard": "--discard"}
_NUMBERS = {"o": ("offset", INT64_MAX), "e": ("shared device number", INT32_MAX)}
_STRINGS = {"x": "name", "D": "description"}
_OF_ONE_DEVICE = ("x", "D", "c", "d", "f", "l", "B", "A", "n", "cache", "aio", "discard")
"""Options that say something of one export or device, which a list has none of."""


def main(argv: list[str] | None = None, name: str | None = None) -> int:
    """Run a command line; returns the exit status."""
    return run_tool(run, "qobra-nbd", argv, name)


def run(called: str, arguments: list[str]) -> int:
    """Serve, list or connect, as ``arguments`` say."""
    program = Program(os.path.basename(called))
    return program.run(lambda: _run(program, called, arguments))


def _run(program: Program, called: str, arguments: list[str]) -> int:
    task = Task(program, called)
    try:
        options, operands = parse(arguments, _SHORT, _LONG, raw_texts=True, met=task.look)
    except UsageError as error:
        flush_output()
        sys.stderr.write(f"{called}: {error}\n")
        return program.fail(ToolError(f"Try `{called} --help' for more information."))
    return task.run(options, operands)


def _check_detect_zeroes(mode: str, discard: str) -> None:
    if mode not in ("off", "on", "unmap"):
        raise ToolError(f"Failed to parse detect_zeroes mode: invalid parameter value: {mode}")
    if mode == "unmap" and discard != "unmap":
        raise ToolError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")


class Task:
    """One run of the program: options are shown to :meth:`look` one by one, then it is :meth:`run`."""

    def __init__(self, program: Program, called: str) -> None:
        self._program = program
        self._called = called
        self._options: list[tuple[str, str]] = []
        self._given: dict[str, str] = {}
        self._operands: list[str] = []
        self._images = Images(program)
        self._activated: dict[str, Any] | None = None
        self._snapshot: SnapshotParam | None = None

    def run(self, options: list[tuple[str, str]], operands: list[str]) -> int:
        """Returns the exit status."""
        self._options, self._operands = options, operands
        self._check()
        given = self._given
        if os.getenv("LISTEN_FDS") is not None:
            from qobra.cli._nbd.activation import passed_address

            self._activated = passed_address(self._program, given)
        if "L" in given:
            return self._list()
        if len(self._operands) != 1:
            raise ToolError(f"Invalid number of arguments\nTry `{self._called} --help' for more information.")
        if "d" in given:
            from qobra.cli._nbd.kernel import disconnect

            disconnect(self._operands[0])
            print(f"{self._operands[0]} disconnected")
            return 0
        return self._serve(self._operands[0])

    def look(self, option: str, value: str) -> None:
        """Take an option. Raises ToolError, in QEMU's words or without any where there is no more to do."""
        given = self._given
        group = "cache" if option == "n" else option
        if group in _ONCE and (option in given or ("n" if option == "cache" else group) in given):
            raise ToolError(f"{_ONCE[group]} can only be specified once")
        if option == "h":
            print(_USAGE.format(name=self._called), end="")
            raise ToolError("", status=0)
        if option == "V":
            from qobra import __version__
            from qobra.cli._tool.report import QEMU_VERSION

            print(f"{self._program.name} {QEMU_VERSION} (Qobra {__version__})")
            raise ToolError("", status=0)
        if option == "cache" and value not in CACHE_MODES:
            raise ToolError(f"Invalid cache mode `{value}'")
        if option == "aio" and value not in AIO_MODES:
            raise ToolError(f"Invalid aio mode '{value}'")
        if option == "discard" and value not in DISCARD_WORDS:
            raise ToolError(f"Invalid discard mode `{value}'")
        if option == "detect-zeroes":
            _check_detect_zeroes(value, DISCARD_WORDS[given.get("discard", "ignore")])
        elif option in _NUMBERS:
            self._number(option, value)
        elif option == "k" and not value.startswith("/"):
            raise ToolError("socket path must be absolute")
        elif option in _STRINGS and len(os.fsencode(value)) > MAX_STRING:
            raise ToolError(f"export {_STRINGS[option]} '{value}' too long")
        elif option == "T":
            from qobra.cli._tool.trace import take

            if not take(self._program, value):
                raise ToolError("", status=0)
        elif option == "object":
            self._images.define(value)
        elif option == "l":
            from qobra.cli._img._snapshot_param import SnapshotParam

            self._snapshot = self._snapshot or SnapshotParam(self._program, quote="`")
            self._snapshot.take(value)
        given[option] = value

    def _check(self) -> None:
        """Refuse what cannot go together. Raises ToolError in QEMU's words."""
        given = self._given
        if "tls-creds" not in given:
            for option in ("tls-hostname", "tls-authz"):
                if option in given:
                    raise ToolError(f"--{option} is not permitted without --tls-creds")
        if "L" in given:
            if self._operands:
                raise ToolError("List mode is incompatible with a file name")
            if any(option in given for option in _OF_ONE_DEVICE) or self._offset:
                raise ToolError("List mode is incompatible with per-device settings")
            if "fork" in given:
                raise ToolError("List mode is incompatible with forking")
        if "f" in given and "image-opts" in given:
            raise ToolError("--image-opts and -f are mutually exclusive")
        if "tls-creds" in given:
            self._check_tls()
        if "selinux-label" in given and "k" not in given:
            raise ToolError("--selinux-label is not permitted without --socket")

    def _check_tls(self) -> None:
        given = self._given
        if "c" in given:
            raise ToolError("TLS is not supported with a host device")
        if "tls-authz" in given and "L" in given:
            raise ToolError("TLS authorization is incompatible with export list")
        if "tls-hostname" in given and "L" not in given:
            raise ToolError("TLS hostname is only supported with export list")

    @property
    def _offset(self) -> int:
        return self._number("o", self._given.get("o", "0"))

    def _number(self, option: str, text: str) -> int:
        what, maximum = _NUMBERS[option]
        value = integer(text)
        minimum = -INT64_MAX if option == "o" else 0
        if value is None or not minimum <= value <= maximum:
            raise ToolError(f"Invalid {what} '{text}'")
        return value

    @property
    def _address(self) -> dict[str, Any]:
        given = self._given
        if "k" in given:
            return {"type": "unix", "path": given["k"]}
        return {"type": "inet", "host": given.get("b", DEFAULT_BIND), "port": given.get("p", DEFAULT_PORT)}

    def _list(self) -> int:
        from qobra.cli._nbd.listing import print_list

        context, hostname = None, self._given.get("tls-hostname")
        if "tls-creds" in self._given:
            from qobra.block.nbd_tls import check_hostname
            from qobra.crypto.tls import find_creds

            try:
                context = find_creds(
                    self._images.layer.find_object, self._given["tls-creds"], "client"
                ).client_context()
            except QobraError as error:
                raise ToolError(f"Failed to get TLS creds: {error}")
            check_hostname(context, hostname, self._address)
        print_list(self._address, context, hostname)
        return 0

    def _serve(self, filename: str) -> int:
        given = self._given
        background = None
        if "fork" in given or ("c" in given and "v" not in given):
            from qobra.cli._nbd.background import fork

            background = fork()
            # What was made before has its threads in the parent.
            self._images = Images(self._program, [value for option, value in self._options if option == "object"])
        with self._images:
            return self._serve_image(filename, background)

    def _serve_image(self, filename: str, background: Background | None) -> int:
        from qobra.cli._nbd.serve import bind

        given = self._given
        server = bind(
            self._images.layer,
            {} if "c" in given else self._activated or self._address,
            label=given.get("selinux-label"),
            shared=self._number("e", given.get("e", "1")),
            tls_creds=given.get("tls-creds"),
            tls_authz=given.get("tls-authz"),
        )
        try:
            self._serve_on(server, filename, background)
        finally:
            self._images.layer.exports.stop_nbd_server()
        return 0

    def _serve_on(self, server: Server, filename: str, background: Background | None) -> None:
        from qobra.cli._nbd.serve import end_by_signals, start, wait, write_pid_file

        given = self._given
        end_in_order()  # an image that is open, with its bitmaps in use, is closed on the way out
        backend = self._open(filename)
        end_by_signals(server)
        start(
            server,
            backend,
            writable="r" not in given and "l" not in given,
            name=given.get("x", ""),
            description=given.get("D", ""),
            bitmaps=[value for option, value in reversed(self._options) if option == "B"],
            allocation_depth="A" in given,
        )
        if "c" in given:
            from qobra.cli._nbd.kernel import connect

            connect(server, given["c"], given.get("x", ""))
            print(f"NBD device {given['c']} is now connected to {filename}")
            flush_output()
        if "pid-file" in given:
            write_pid_file(given["pid-file"])
        if background is not None:
            background.running()
        wait(server, persistent="t" in given)
        self._images.layer.exports.stop_nbd_server()
        backend.remove()

    def _open(self, filename: str) -> BlockBackend:
        given = self._given
        read_only = "r" in given or "l" in given
        options: dict[str, Any] = {}
        if "discard" in given:
            options["discard"] = DISCARD_WORDS[given["discard"]]
        if "detect-zeroes" in given:
            options["detect-zeroes"] = given["detect-zeroes"]
        try:
            backend = self._images.open(
                filename,
                fmt=given.get("f"),
                image_opts="image-opts" in given,
                writable=not read_only,
                cache="none" if "n" in given else given.get("cache", "writeback"),
                snapshot="s" in given,
                aio=given.get("aio", "threads"),
                options=options,
            )
        except ToolError as error:
            text = error.text.removeprefix(f"Could not open '{filename}': ")
            raise ToolError(f"Failed to blk_new_open '{filename}': {text}")
        if self._snapshot is not None:
            self._snapshot.load(backend.inserted())
        if self._offset:
            self._shift(backend, self._offset)
        return backend

    def _shift(self, backend: BlockBackend, offset: int) -> None:
        """Let the export begin at ``offset`` of the image."""
        if offset < 0:
            raise ToolError(str(not_a_size("offset")))  # it is an option of a node, which takes a size
        layer = self._images.layer
        node = backend.inserted()
        layer.open(
            {"driver": "raw", "file": node.node_name, "offset": offset, "read-only": node.read_only}, root=backend
        )


if __name__ == "__main__":
    sys.exit(main())
