"""Images as the tools open them: ``-f``, ``--image-opts``, cache modes, ``--object``; one place for the rules."""

from __future__ import annotations

import sys

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.cache_modes import CACHE_MODES
from qobra.cli._tool.process import Undisturbed, end_in_order
from qobra.cli._tool.report import Program, ToolError, flush_output
from qobra.errors import QobraError, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypedDict, Unpack

    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode
    from qobra.getopt import CommandLine
    from qobra.machine.machine import Machine


STORED_BITMAPS = {"_stored-bitmaps": True}
"""Option of a node whose bitmaps are looked at once or never: they are not read into memory."""


def opening(line: CommandLine) -> Naming:
    """What ``-f``, ``--image-opts`` and ``-U`` say of the images of a command line."""
    return {"fmt": line.optional("f"), "image_opts": line.has("image-opts"), "force_share": line.has("U")}


def cache_options(mode: str, error: str) -> tuple[Options, bool]:
    """The ``cache`` option of a mode's name and whether it writes through. Raises ToolError with the text ``error``."""
    if mode not in CACHE_MODES:
        raise ToolError(error)
    through, direct, no_flush = CACHE_MODES[mode]
    return {"direct": direct, "no-flush": no_flush}, through


if TYPE_CHECKING:
    Options = dict[str, Any]

    class Naming(TypedDict, total=False):
        """What a command line says of its images."""

        fmt: str | None
        """The format, or None to tell it from the first bytes."""
        image_opts: bool
        """The name is a list of options."""
        force_share: bool

    class Request(Naming, total=False):
        """How to open an image."""

        described: Options
        """All that the user says of the node, in place of a name."""
        writable: bool
        cache: str
        """A mode's name."""
        backing: bool
        """False: without the backing file."""
        metadata_only: bool
        """No data is going to be read."""
        resize: bool
        unshared: bool
        """Nobody else may write to it or resize it meanwhile, not even where the format would let them."""
        snapshot: bool
        """Write to a temporary file instead."""
        copy_on_read: bool
        aio: str
        """How I/O to files is to be done: ``native`` needs a cache mode that goes past the host's cache."""
        options: Options | None
        """Further options of the node."""


def command_line(
    program: Program,
    arguments: Sequence[str],
    short: str,
    long: Sequence[str] = (),
    met: Callable[[str, str], None] | None = None,
) -> tuple[CommandLine, Images]:
    """The command line of a subcommand, and its images, with the objects that ``--object`` made.

    ``met`` looks at the other options. Both happens in the order of the line, whose first mistake is told.
    """
    from qobra.getopt import parse_command

    images = Images(program)
    images.end_in_order = True

    def look(option: str, value: str) -> None:
        if option == "object":
            images.define(value)
        elif met is not None:
            met(option, value)

    return parse_command(arguments, short, ("object=", *long), look), images


class ShareConflict(ToolError):
    """``-U`` was given, and options that say the contrary."""


def _create_object(machine: Machine, definition: str) -> None:
    from qobra.cli._options import tree

    options, keyval = tree(definition, "qom-type")
    kind = options.pop("qom-type", None)
    if kind is None:
        raise QobraError("Parameter 'qom-type' is missing")
    if machine.objects.find_type(kind) is None:
        raise QobraError(f"Parameter 'qom-type' does not accept value '{kind}'")
    if "id" not in options:
        raise QobraError("Parameter 'id' is missing")
    machine.objects.create(kind, options.pop("id"), options, keyval=keyval)


class Images:
    """What one command has open. Close it, or use it in a ``with``: that is when late write errors show."""

    def __init__(self, program: Program, objects: Sequence[str] = ()) -> None:
        """``objects`` are what ``--object`` defined. Raises ToolError where one cannot be."""
        self.program = program
        self._layer: BlockLayer | None = None
        self._machine: Machine | None = None
        self.end_in_order = False
        """A signal that ends the program has what is open for writing closed, with its bitmaps."""
        for definition in objects:
            self.define(definition)

    def define(self, definition: str) -> None:
        """Make an object, in a machine that is there for objects only. Raises ToolError."""
        from qobra.machine.machine import Machine
        from qobra.object.help import asks_help, object_help

        if self._machine is None:
            self._machine = Machine()
            self._layer = self._machine.block
            self._layer.warn = _warn
        if not definition.startswith("{") and asks_help(definition):
            print(object_help(self._machine.objects, definition), end="")
            raise ToolError("", status=0)
        try:
            _create_object(self._machine, definition)
        except QobraError as error:
            raise ToolError(str(error))

    @property
    def layer(self) -> BlockLayer:
        """The command's own block layer."""
        if self._layer is None:
            from qobra.block.layer import BlockLayer

            self._layer = BlockLayer()
            self._layer.warn = _warn
        return self._layer

    def open(self, filename: str, **request: Unpack[Request]) -> BlockBackend:
        """Open the image that a command line names. Raises ToolError with QEMU's ``Could not open 'NAME': ...``."""
        try:
            return self._open(filename, request)
        except QobraError as error:
            raise ToolError(f"Could not open '{filename}': {error}")
        except OSError as error:
            raise ToolError(f"Could not open '{filename}': {strerror(error)}")

    def _open(self, filename: str, request: Request) -> BlockBackend:
        mode = request.get("cache", "writeback")
        cache, through = cache_options(mode, f"Invalid cache option: {mode}")
        writable = request.get("writable", False)
        if writable and self.end_in_order:
            end_in_order()
        metadata_only = request.get("metadata_only", False)
        fmt = request.get("fmt")
        image_opts = request.get("image_opts", False)
        if image_opts and fmt is not None:
            raise ToolError("--image-opts and --format are mutually exclusive")
        if image_opts:
            from qobra.cli._tool.image_opts import parse_image_opts

            request["described"] = parse_image_opts(filename, self.program)
        options: Options = dict(request.get("options") or {})
        if cache["direct"] or cache["no-flush"]:
            options["cache"] = cache
        if request.get("force_share"):
            options["force-share"] = True
        if not request.get("backing", True):
            options["_no-backing"] = True
        if metadata_only:
            options["_no-io"] = True
        if request.get("copy_on_read"):
            options["_copy-on-read"] = True
        perm = 0 if metadata_only else permissions.CONSISTENT_READ | (permissions.WRITE if writable else 0)
        if request.get("resize"):
            perm |= permissions.RESIZE
        shared = permissions.ALL
        if request.get("unshared"):
            shared &= ~(permissions.WRITE | permissions.RESIZE)
        backend = BlockBackend(self.layer, perm=perm, shared=shared)
        backend.writeback = not through
        if request.get("snapshot"):
            from qobra.block.temporary import open_over

            open_over(self.layer, self._top(filename, request, {**options, "read-only": not writable}), root=backend)
            return backend
        options.setdefault("read-only", not writable)
        if request.get("copy_on_read"):
            below = self._top(filename, request, options)
            passed = {"discard": options["discard"]} if "discard" in options else {}
            options = {"driver": "copy-on-read", "read-only": False, "file": below, **passed}
            self.layer.open(options, root=backend).implicit = True
        elif "described" in request:
            self.layer.open(self._top(filename, request, options), root=backend)
        else:
            if fmt is not None:
                options["driver"] = fmt
            self.layer.open_image(filename, options, root=backend)
        node = backend.inserted()
        if request.get("aio") == "native":
            _check_native(node)
        return backend

    def _top(self, filename: str, request: Request, options: Options) -> Options:
        """All options of the node that the command line means."""
        given = request.get("described")
        if given is not None:
            if options.get("force-share") and given.get("force-share") is False:
                raise ShareConflict("--force-share/-U conflicts with image options")
            # What the text says is the user's own word; the rest are this command's defaults.
            return {**options, **given}
        fmt = request.get("fmt")
        return self.layer.opener.image_options(filename, options if fmt is None else {**options, "driver": fmt})

    def abandon(self) -> None:
        """Close everything; what images have yet to write of their metadata is dropped with them."""
        for node in self.layer.graph.nodes.values():
            node.abandoned = True
        try:
            self.close()
        except (OSError, QobraError):
            pass  # it is not going to be used

    def close(self) -> None:
        """Close everything, flushing it first. Raises QobraError or OSError where that fails.

        Who presses Ctrl-C meanwhile finds it closed as a whole, with its bitmaps: what is left to do takes no time.
        """
        if self._layer is not None:
            with Undisturbed():
                layer, self._layer = self._layer, None
                layer.close()

    def __enter__(self) -> Images:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except (QobraError, OSError):
            pass  # the first error is the one to tell


def _warn(text: str) -> None:
    flush_output()
    sys.stderr.write(text + "\n")


def _check_native(node: BlockNode) -> None:
    """Raise QobraError where a file under ``node`` is not opened past the host's cache."""
    pending = [node]
    while pending:
        each = pending.pop()
        if each.is_leaf and each.fd >= 0 and not each.cache_direct:
            raise QobraError("aio=native was specified, but it requires cache.direct=on, which was not specified.")
        pending.extend(each.children.values())


def node_of(backend: BlockBackend) -> BlockNode:
    """The node that was opened."""
    return backend.inserted()
