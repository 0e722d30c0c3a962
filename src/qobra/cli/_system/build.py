"""From options to a machine: back ends first, then the board, its drives and devices, and the start."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from qobra import log
from qobra.chardev.options import is_multiplexed, pairs, parse, parse_short, split, warn_on_stderr
from qobra.cli._options import program, say, structure, tree, warn
from qobra.cli._system import process, usb_devices, values
from qobra.cli._system.board_options import set_up_board
from qobra.cli._system.config import MachineConfig, parse_name
from qobra.cli._system.drives import add_drives, plug_drives, plug_virtio_drives
from qobra.cli._system.given_options import GivenOptions
from qobra.cli._system.nics import Nics
from qobra.cli._system.objects import Definition, definition
from qobra.cli._system.sound import Sound
from qobra.errors import QobraError
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.nic import cards
from qobra.machine.option_groups import convert
from qobra.machine.plug import plug_in
from qobra.machine.smbios.settings import Settings as SmbiosSettings
from qobra.qmp import dispatch
from qobra.qmp.monitor import Monitors
from qobra.report import report_error
from qobra.units import INT32_MAX

if TYPE_CHECKING:
    import uuid as uuid_module

_MAX_CPU_NUMBER = 1 << 16
_MAX_PARALLEL_PORTS = 3


class Builder:
    """Works the options of one program off, stage by stage."""

    def __init__(self, architecture: str, options: list[tuple[str, str]]) -> None:
        self._architecture = architecture
        self._options = GivenOptions(options)
        self.preconfig = self._options.has("preconfig")
        names: dict[str, Any] = {}
        self._smbios = SmbiosSettings()
        self._options.each("name", lambda value: names.update(parse_name(value)))
        self._options.each("msg", lambda value: process.set_messages(convert("msg", split(value)), names.get("guest")))
        self.machine = Machine(
            name=names.get("guest"),
            uuid=self._find_uuid(),
            capabilities=frozenset(("board", architecture)),
        )
        self.machine.say, self.machine.warn = say, warn
        self.machine.preconfig = self.preconfig
        self._monitors = Monitors(self.machine)
        self._config = MachineConfig()
        self._refused_calls: list[int] | None = None
        self._objects: list[Definition] = []
        self._continue = threading.Event()
        self._failure: QobraError | None = None
        commit: dict[str, Any] = {}
        self._options.each("overcommit", lambda value: commit.update(convert("overcommit", split(value))))
        process.set_up(names, lock_memory=commit.get("mem-lock", False))

    def close(self) -> None:
        """Send no more events."""
        self._monitors.close()

    def _find_uuid(self) -> uuid_module.UUID | None:
        # The system's structure in SMBIOS has it too: whichever option comes last says what it is.
        for name, value in self._options.pairs:
            if name == "uuid":
                self._options.work_off(name, value, self._smbios.set_uuid)
            elif name == "smbios":
                self._options.work_off(name, value, self._add_smbios)
        return self._smbios.uuid

    def _add_smbios(self, value: str) -> None:
        if self._architecture != "x86_64":
            raise QobraError("Option not supported for this target")
        self._smbios.add(value)

    # -- before the board

    def build_early(self) -> None:
        """Descriptors, character devices, objects, block nodes, drives, monitors; and what the board will be."""
        for value in self._options.values("D"):
            log.set_file(value)
        for value in self._options.values("d"):
            process.set_log_items(value)
        self._options.each("trace", process.set_trace)
        nodes = self._parsed_blockdevs()
        if self._options.has("loadvm"):
            for other in ("preconfig", "incoming"):
                if self._options.has(other):
                    raise QobraError(f"'{other}' and 'loadvm' options are mutually exclusive")
        if self._options.has("incoming"):
            self.machine.migration.expect()
        self._options.each("sandbox", self._set_sandbox)
        self._options.each("add-fd", self._add_fd)
        self._options.each("machine", self._config.set_machine)
        objects = self.machine.objects
        counted = self._options.has("icount")
        self._options.each("accel", lambda value: self._config.set_accelerator(value, objects, counted=counted))
        if self._options.has("enable-kvm"):
            self._config.set_accelerator("kvm", objects, counted=counted)
        for value in self._options.values("smp"):
            self._config.set_smp(value)
        self._options.each("m", self._config.set_memory)
        for value in self._options.values("cpu"):
            self._config.cpu = value
        for value in self._options.values("mem-path"):
            self._config.mem_path = value
        self._make_board()
        self._config.apply_properties(self.board)
        if self._config.accelerator == "qtest":
            # Asked for, it drives the time: statistics are to be the same each time.
            self.machine.block.account_time = (self.board.guest_time_ns, 1_000_000)
        for value in self._options.values("echr"):
            self.machine.chardevs.escape = values.escape_key(value)
        self._options.each("chardev", self._add_chardev)
        self._options.each("object", lambda value: self._objects.append(definition(self.machine.objects, value)))
        self._create_objects(late=False)
        for value, options in nodes:
            try:
                dispatch.call(self.machine, "blockdev-add", options)
            except QobraError as error:
                raise error.prefixed(f"-blockdev {value}: ")
        self.board.no_defaults = self._options.has("nodefaults")
        snapshot, devices = self._options.has("snapshot"), self._options.device_types()
        add_drives(self.board, self._options.pairs, snapshot=snapshot, devices=devices)
        self._add_monitors()
        self._set_run_state()
        self.board.boot |= self._config.boot
        set_up_board(self.board, self._architecture, self._options)
        self.board.smbios = self._smbios
        self._config.apply(self.board)
        self._options.each("numa", lambda value: dispatch.call(self.machine, "set-numa-node", values.numa(value)))
        self._add_qtest()

    def _set_sandbox(self, value: str) -> None:
        from qobra.cli._system import sandbox

        self._refused_calls = sandbox.parse(value)

    def _make_board(self) -> None:
        try:
            cls = find_board(self._architecture, self._config.board)
        except QobraError as error:
            raise QobraError(error.desc, hint="Use -machine help to list supported machines")
        self.board = attach_board(self.machine, cls)

    def _add_fd(self, value: str) -> None:
        options = convert("add-fd", split(value))
        if not 0 <= options.get("fd", -1) <= INT32_MAX:
            raise QobraError("fd option is required and must be non-negative")
        if options["fd"] <= 2:
            raise QobraError("fd cannot be a standard I/O stream")
        if not values.is_inherited(options["fd"]):
            raise QobraError("fd is not valid or already in use")
        if "set" not in options or options["set"] >> 63:
            raise QobraError("set option is required and must be non-negative")
        try:
            fd = os.dup(options["fd"])
        except OSError as error:
            raise QobraError.from_os("error duplicating fd", error)
        self.machine.fdsets.add(fd, options["set"], options.get("opaque"))

    def _add_chardev(self, value: str) -> None:
        id, backend = parse(value, warn=warn_on_stderr(f"{program()}: -chardev {value}"))
        if is_multiplexed(value):
            self._create_chardev(f"{id}-base", backend, f"-chardev {value}")
            backend = {"type": "mux", "data": {"chardev": f"{id}-base"}}
        self._create_chardev(id, backend, f"-chardev {value}")

    def _create_chardev(self, id: str, backend: dict[str, Any], asked_by: str) -> None:
        device = self.machine.chardevs.create(id, backend, failure="", asked_by=asked_by)
        if terminal := device.return_info().get("pty"):
            say(f"char device redirected to {terminal} (label {id})")  # which nobody can know before

    def _create_objects(self, *, late: bool) -> None:
        for each in self._objects:
            if each.late == late:
                each.create(self.machine.objects)

    def _parsed_blockdevs(self) -> list[tuple[str, dict[str, Any]]]:
        # What cannot be understood is refused before anything is connected or opened.
        nodes: list[tuple[str, dict[str, Any]]] = []
        self._options.each(
            "blockdev", lambda value: nodes.append((value, structure(value, "BlockdevOptions", "driver")))
        )
        return nodes

    def _add_monitors(self) -> None:
        def on(value: str, mode: str, pretty: bool = False) -> None:
            if value == "none" and mode == "readline":
                return
            option = "monitor" if mode == "readline" else "qmp-pretty" if pretty else "qmp"
            try:
                device = self._short_chardev(value, "compat_monitor", f"-{option} {value}")
            except QobraError as error:
                if not error.desc.endswith("is not a valid char driver"):
                    raise
                raise QobraError(f"{error}\n{program()}: -{option} {value}: parse error: {value}")
            self._monitors.add(device, mode=mode, pretty=pretty)

        def add(value: str) -> None:
            options = structure(value, "MonitorOptions", "chardev")
            self._monitors.add_options(options, default_mode="readline")

        self._options.each("mon", add)
        self._options.each("qmp", lambda value: on(value, "control"))
        self._options.each("qmp-pretty", lambda value: on(value, "control", True))
        self._options.each("monitor", lambda value: on(value, "readline"))
        if self._unasked_monitor and not self._unasked_terminal:
            on("stdio" if self._options.has("nographic") else "vc", "readline")

    @property
    def _unasked_monitor(self) -> bool:
        """Whether there is a monitor for people though no option asks for one."""
        return not any(self._options.has(name) for name in ("mon", "qmp", "qmp-pretty", "monitor", "nodefaults"))

    @property
    def _unasked_terminal(self) -> bool:
        """Whether the serial port is on standard input and output by itself."""
        return self._options.has("nographic") and self._has_unasked_port("serial")

    def _has_unasked_port(self, port: str) -> bool:
        given = self._options.has(port) or f"isa-{port}" in self._options.device_types()
        return self.board.has_ports and not given and not self._options.has("nodefaults")

    def _short_chardev(self, value: str, stem: str, asked_by: str) -> str:
        """The id of the device that a short form describes, made if need be; ``asked_by`` is the option."""
        if value.startswith("chardev:"):
            return value[8:]
        if value.startswith("mon:"):
            return self._shared_chardev(value[4:], stem, asked_by)
        number = 0
        while self.machine.chardevs.find(f"{stem}{number}") is not None:
            number += 1
        self._create_chardev(f"{stem}{number}", parse_short(value), asked_by)
        return f"{stem}{number}"

    def _shared_chardev(self, value: str, stem: str, asked_by: str) -> str:
        """A device with a monitor for people on it, that another user can share: ``mon:stdio``."""
        base = self._short_chardev(value, f"{stem}-base", asked_by)
        mux = f"{stem}-mux"
        self.machine.chardevs.create(mux, {"type": "mux", "data": {"chardev": base}}, failure="")
        self._monitors.add(mux, mode="readline")
        return mux

    def _set_run_state(self) -> None:
        state = self.machine.run_state
        state.autostart = not self._options.has("S")
        if self._options.has("no-reboot"):
            state.reboot_action = "shutdown"
        if self._options.has("no-shutdown"):
            state.shutdown_action = "pause"
            state.panic_action = "pause"
        self._options.each(
            "watchdog-action", lambda value: dispatch.call(self.machine, "watchdog-set-action", {"action": value})
        )
        self._options.each("action", self._set_actions)
        for value in self._options.values("incoming"):
            state.incoming = value

    def _set_actions(self, value: str) -> None:
        dispatch.call(self.machine, "set-action", convert("action", split(value)))

    # -- the board

    def build_board(self) -> None:
        """The board with its drives and devices."""
        board = self.board
        board.serial_chardevs = self._port_chardevs("serial")
        board.parallel_chardevs = self._port_chardevs("parallel")
        if len(board.parallel_chardevs) > _MAX_PARALLEL_PORTS:
            raise QobraError(
                f"-parallel {self._options.values('parallel')[_MAX_PARALLEL_PORTS]}: too many parallel ports"
            )
        self._options.each("debugcon", self._create_debug_chardev)
        self._options.each("global", lambda value: board.add_global(*values.global_default(value)))
        self._options.each("netdev", self._add_netdev)
        sound = Sound(self.machine)
        self._options.each("audiodev", sound.add_backend)
        self._options.each("audio", sound.add_card)
        self._options.each("tpmdev", lambda value: self.machine.tpms.create(split(value, "type")))
        nics = Nics(self.machine, board)
        self._options.each("net", nics.add_net)
        self._options.each("nic", nics.add_nic)
        if not any(self._options.has(name) for name in ("netdev", "net", "nic", "nodefaults")):
            nics.add_unasked()
        board.start()
        self._create_objects(late=True)
        plug_drives(board)
        nics.plug()
        sound.plug()
        self._options.each("usbdevice", lambda value: usb_devices.plug(self.machine, value))
        self._options.each("device", self._add_device)
        plug_virtio_drives(board)
        self._options.each("debugcon", self._add_debug_console)
        board.finish()
        self._options.each("vnc", lambda value: self.machine.vnc.open(convert("vnc", split(value, "vnc"))))
        backends = {nic.client_name: nic.backend for nic in cards(self.machine)}
        self.machine.netdevs.warn_of_loose_ends(report_error, backends)
        board.warn_of_globals(report_error)
        if board.dumpdtb:
            self._dump_tree(board.dumpdtb)

    def _dump_tree(self, path: str) -> None:
        """``-machine dumpdtb=``: that was all."""
        tree = self.board.device_tree()
        if tree is None:
            return
        try:
            with open(path, "wb") as stream:
                stream.write(tree)
        except OSError:
            raise QobraError(f"Failed dumping dtb to {path}")
        report_error(f"info: dtb dumped to {path}. Exiting.")
        raise SystemExit(0)

    def _port_chardevs(self, port: str) -> list[str | None]:
        """The character devices of the serial or parallel ports that the board has by itself."""
        values = self._options.values(port)
        if self._has_unasked_port(port):
            if not self._options.has("nographic"):
                values = ["vc"]
            elif port == "parallel":
                values = ["null"]
            else:
                values = ["mon:stdio" if self._unasked_monitor else "stdio"]
        ids: list[str | None] = []
        for value in values:
            failure = f"-{port} {value}: could not connect {port} device to character backend '{value}'"
            try:
                ids.append(None if value == "none" else self._short_chardev(value, port, f"-{port} {value}"))
            except QobraError as error:
                raise QobraError(f"-{port} {value}: {error}\n{program()}: {failure}")
            if ids[-1] is not None and self.machine.chardevs.find(ids[-1]) is None:
                raise QobraError(failure)
        return ids

    def _add_netdev(self, value: str) -> None:
        from qobra.net.netdev import with_lists
        from qobra.qapi.contract import contract

        options, keyval = tree(value, "type")
        if keyval:
            options = with_lists(options, pairs(value, "type"))
        dispatch.call(self.machine, "netdev_add", contract().check("Netdev", options, keyval=keyval))

    def _add_device(self, value: str) -> None:
        if value.startswith("{"):
            from qobra.cli._options import json_object

            plug_in(self.machine, json_object(value), keyval=False)
        else:
            plug_in(self.machine, split(value, "driver"), keyval=True)

    def _create_debug_chardev(self, value: str) -> None:
        try:
            self._create_chardev("debugcon", parse_short(value), f"-debugcon {value}")
        except QobraError as error:
            raise QobraError(f"{error}\n{program()}: -debugcon {value}: invalid character backend '{value}'")

    def _add_debug_console(self, _value: str) -> None:
        plug_in(self.machine, {"driver": "isa-debugcon", "chardev": "debugcon"}, keyval=True)

    def _add_qtest(self) -> None:
        logs = self._options.values("qtest-log")
        for value in self._options.values("qtest"):
            try:
                device = self._short_chardev(value, "qtest", f"-qtest {value}")
            except QobraError as error:
                raise QobraError(f'{error}\n{program()}: Failed to initialize device for qtest: "{value}"')
            options = {"chardev": device} | ({"log": logs[-1]} if logs else {})
            found = self.machine.objects.find_type("qtest")
            assert found is not None
            server = found(self.machine.objects)
            self.board.add_child("qtest", server)
            for name, text in options.items():
                server.set(name, text)
            server.complete()

    # -- the start

    def wait_for_preconfig(self) -> bool:
        """Serve commands until x-exit-preconfig has built the board; whether it has, and the program was not to end.

        Raises QobraError if it could not.
        """
        self.machine.exit_preconfig = self._exit_preconfig
        while not self._continue.wait(0.1):
            if self.machine.wait_for_exit(0):
                return False
        if self._failure is not None:
            raise self._failure
        return True

    def _exit_preconfig(self) -> None:
        self.machine.preconfig = False
        try:
            self.build_board()
        except QobraError as error:
            self._failure = error
            self.machine.setting_up = True
            raise
        finally:
            self._continue.set()

    def start(self) -> None:
        """Let the machine run, unless it is to wait."""
        state = self.machine.run_state
        for tag in self._options.values("loadvm"):
            from qobra.migration import snapshots

            snapshots.load(self.machine, tag)
        if state.autostart and state.state == "prelaunch":
            state.start()
        if state.incoming not in (None, "defer"):
            try:
                self.machine.migration.listen(state.incoming)
            except QobraError as error:
                raise error.prefixed(f"-incoming {state.incoming}: ")

    def drop_privileges(self) -> None:
        """``-chroot``, ``-runas`` and ``-sandbox``."""
        if self._options.has("chroot") or self._options.has("runas"):
            from qobra.cli._system.preload import preload

            preload()
        for directory in self._options.values("chroot"):
            try:
                os.chroot(directory)
                os.chdir("/")
            except OSError as error:
                raise QobraError.from_os("chroot failed", error)
        for user in self._options.values("runas"):
            from qobra.cli._system.runas import become

            become(user)
        if self._refused_calls is not None:
            from qobra.cli._system import sandbox

            sandbox.enter(self._refused_calls)
