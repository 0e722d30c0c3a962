"""Images as the tools open them: ``-f``, ``--image-opts``, cache modes, ``--object``; one place for the rules."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.cli._tool.report import Program, ToolError, flush_output
from qobra.errors import QobraError, strerror

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

Options = dict[str, Any]

CACHE_MODES = {
    # name: (write through, direct, no flush)
    "none": (False, True, False),
    "off": (False, True, False),
    "writeback": (False, False, False),
    "writethrough": (True, False, False),
    "directsync": (True, True, False),
    "unsafe": (False, False, True),
}


def cache_options(mode: str, error: str) -> tuple[Options, bool]:
    """The ``cache`` option of a mode's name and whether it writes through. Raises ToolError with the text ``error``."""
    if mode not in CACHE_MODES:
        raise ToolError(error)
    through, direct, no_flush = CACHE_MODES[mode]
    return {"direct": direct, "no-flush": no_flush}, through


class Images:
    """What one command has open. Close it, or use it in a ``with``: that is when late write errors show."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._layer: BlockLayer | None = None
        self._objects: list[str] = []

    @property
    def layer(self) -> BlockLayer:
        """The command's own block layer; a machine is made only for the objects that it needs."""
        if self._layer is None:
            if self._objects:
                self._layer = self._machine_layer()
            else:
                from qobra.block.layer import BlockLayer

                self._layer = BlockLayer()
        return self._layer

    def add_object(self, definition: str) -> None:
        """``--object``: to be created before the first image is opened."""
        self._objects.append(definition)

    def create_objects(self) -> None:
        """Create what ``--object`` asked for. Raises ToolError."""
        if self._objects:
            try:
                _ = self.layer
            except QobraError as error:
                raise ToolError(str(error))

    def _machine_layer(self) -> BlockLayer:
        from qobra.machine.machine import Machine
        from qobra.qapi.keyval import parse

        machine = Machine()
        for definition in self._objects:
            if definition.startswith("{"):
                import json

                options = json.loads(definition)
            else:
                options = parse(definition, "qom-type")
            kind = options.pop("qom-type", None)
            if kind is None:
                raise QobraError("Parameter 'qom-type' is missing")
            if "id" not in options:
                raise QobraError("Parameter 'id' is missing")
            if machine.objects.find_type(kind) is None:
                raise QobraError(f"Parameter 'qom-type' does not accept value '{kind}'")
            machine.objects.create(kind, options.pop("id"), options, keyval=not definition.startswith("{"))
        return machine.block

    def open(
        self,
        filename: str,
        *,
        fmt: str | None = None,
        image_opts: bool = False,
        writable: bool = False,
        cache: str = "writeback",
        force_share: bool = False,
        backing: bool = True,
        metadata_only: bool = False,
        resize: bool = False,
        options: Options | None = None,
    ) -> BlockBackend:
        """Open the image that a command line names. Raises ToolError with QEMU's ``Could not open 'NAME': ...``.

        ``cache`` is a mode's name; ``metadata_only`` promises that no data is read. ``options`` are further ones.
        """
        try:
            return self._open(
                filename, fmt, image_opts, writable, cache, force_share, backing, metadata_only, resize, options
            )
        except QobraError as error:
            raise ToolError(f"Could not open '{filename}': {error}")
        except OSError as error:
            raise ToolError(f"Could not open '{filename}': {strerror(error)}")

    def _open(
        self,
        filename: str,
        fmt: str | None,
        image_opts: bool,
        writable: bool,
        cache: str,
        force_share: bool,
        backing: bool,
        metadata_only: bool,
        resize: bool,
        more: Options | None,
    ) -> BlockBackend:
        cache_setting, through = cache_options(cache, f"Invalid cache option: {cache}")
        options: Options = dict(more or {})
        if cache_setting != {"direct": False, "no-flush": False}:
            options["cache"] = cache_setting
        if force_share:
            options["force-share"] = True
        if not backing:
            options["backing"] = None
        perm, shared = 0, permissions.ALL
        if not metadata_only:
            perm = permissions.CONSISTENT_READ | (permissions.WRITE if writable else 0)
        if resize:
            perm |= permissions.RESIZE
        backend = BlockBackend(self.layer, perm=perm, shared=shared)
        backend.writeback = not through
        if image_opts:
            from qobra.cli._tool.image_opts import parse_image_opts

            given = parse_image_opts(filename, self.program)
            # An option in the text is the user's own word; the rest are this command's defaults.
            options = {**options, **given}
            options.setdefault("read-only", not writable)
            if not backing and given.get("backing") is None:
                options["backing"] = None
            self.layer.open(options, root=backend)
        else:
            options["read-only"] = not writable
            if fmt is not None:
                options["driver"] = fmt
            self.layer.open_image(filename, options, root=backend)
        node = backend.inserted()
        if writable and node.probed and node.driver == "raw":
            flush_output()
            sys.stderr.write(
                f"WARNING: Image format was not specified for '{node.filename}' and probing guessed raw.\n"
                "         Automatically detecting the format is dangerous for raw images, write operations on block 0 "
                "will be restricted.\n"
                "         Specify the 'raw' format explicitly to remove the restrictions.\n"
            )
        return backend

    def close(self) -> None:
        """Close everything, flushing it first. Raises QobraError or OSError where that fails."""
        if self._layer is not None:
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


def node_of(backend: BlockBackend) -> BlockNode:
    """The node that was opened."""
    return backend.inserted()
