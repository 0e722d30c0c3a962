"""A machine: the owner of everything that a process with one QEMU would keep in globals."""

from __future__ import annotations

from qobra.clock import Clock, HostClock
from qobra.control import Control
from qobra.errors import QobraError, strerror
from qobra.events import EventBus
from qobra.lean import Event, cached_property
from qobra.report import report_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    import uuid as uuid_module
    from collections.abc import Callable
    from typing import Any

    from qobra.audio.audiodevs import Audiodevs
    from qobra.block.layer import BlockLayer
    from qobra.chardev.chardevs import Chardevs
    from qobra.display.vnc.server import VncServers
    from qobra.machine.board import Board
    from qobra.machine.fdsets import FdSets
    from qobra.machine.run_state import RunState
    from qobra.migration.migration import Migration
    from qobra.net.netdevs import Netdevs
    from qobra.object.tree import ObjectTree
    from qobra.tpm.tpms import Tpms


class Machine:
    """One machine, or one storage daemon: a machine without a board.

    Its parts are made when they are first used, so that a thousand machines in a process cost little.
    ``capabilities`` names what it has beyond storage (``board``); a command that needs one is served only there.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        uuid: uuid_module.UUID | None = None,
        clock: Clock | None = None,
        seed: int | None = None,
        capabilities: frozenset[str] = frozenset(),
    ) -> None:
        self.clock: Clock = clock or HostClock()
        self.control = Control(self.clock)
        self.events = EventBus(self.clock)
        self._seed = seed
        self.name = name
        self.uuid = uuid
        self.capabilities = capabilities
        # True while a program holds the machine back for --preconfig: few commands are served then.
        self.preconfig = False
        # True while the program sets the machine up, and for good if that fails: nobody is answered.
        self.setting_up = False
        self.board: Board | None = None
        # Builds the board while ``preconfig`` holds the machine back; set by the program.
        self.exit_preconfig: Callable[[], None] | None = None
        # Told what the program's user, not a client, is to see; a program prints it.
        self.say: Callable[[str], None] = lambda _text: None
        self.warn: Callable[[str], None] = lambda _text: None
        # Called when the machine asks the program to end.
        self.on_exit: Callable[[], None] | None = None
        self._exit = Event()
        self._closed = False

    @cached_property
    def random(self) -> random.Random:
        """The machine's source of chance, the same again for the same seed."""
        import random

        return random.Random(self._seed)

    @cached_property
    def objects(self) -> ObjectTree:
        """The composition tree, with the user's objects under ``/objects``."""
        from qobra.object.tree import ObjectTree

        tree = ObjectTree(self)
        self.chardevs.show_in(tree)
        return tree

    @cached_property
    def block(self) -> BlockLayer:
        """The block layer: nodes, backends, jobs, exports."""
        from qobra.block.layer import BlockLayer

        layer = BlockLayer(
            control=self.control,
            emit=self.events.emit,
            find_object=self.objects.find,
            random=self.random,
            open_path=lambda path, flags: self.fdsets.open_image(path, flags),
            find_fd=lambda name: self.fdsets.take_named_or_number(name),
        )
        layer.find_iothread = lambda path: self.objects.find_at(path, "iothread")
        layer.check_device = self._check_device
        layer.say = self.say
        layer.warn = self.warn
        return layer

    def _check_device(self, id: str) -> None:
        from qobra.machine.plug import find_device

        find_device(self, id)

    @cached_property
    def chardevs(self) -> Chardevs:
        """The character devices by id."""
        from qobra.chardev.chardevs import Chardevs

        return Chardevs(self)

    @cached_property
    def netdevs(self) -> Netdevs:
        """The network backends by id."""
        from qobra.net.netdevs import Netdevs

        return Netdevs(self)

    @cached_property
    def tpms(self) -> Tpms:
        """The back ends of TPM devices, by id."""
        from qobra.tpm.tpms import Tpms

        return Tpms(self)

    @cached_property
    def audiodevs(self) -> Audiodevs:
        """The audio backends by id."""
        from qobra.audio.audiodevs import Audiodevs

        return Audiodevs(self)

    @cached_property
    def vnc(self) -> VncServers:
        """The VNC servers by id."""
        from qobra.display.vnc.server import VncServers

        return VncServers(self)

    @cached_property
    def fdsets(self) -> FdSets:
        """File descriptors that clients passed: ``/dev/fdset/N`` and named ones."""
        from qobra.machine.fdsets import FdSets

        return FdSets()

    @cached_property
    def run_state(self) -> RunState:
        """What the machine is doing: running, paused, shut down, ..."""
        from qobra.machine.run_state import RunState

        return RunState(self)

    @cached_property
    def migration(self) -> Migration:
        """The migrations, out and in, and what is set about them."""
        from qobra.migration.migration import Migration

        return Migration(self)

    def announce(self, parameters: dict[str, Any]) -> None:
        """Have the network cards make themselves known (AnnounceParameters)."""
        netdevs = self.netdevs
        if netdevs.announcer is None:
            from qobra.machine.nic import cards
            from qobra.net.announce import Announcer

            netdevs.announcer = Announcer(self.control, lambda: [(nic, nic.names()) for nic in cards(self)])
        netdevs.announcer.start(parameters)

    def request_exit(self) -> None:
        """Let :meth:`wait_for_exit` return; the program then closes the machine."""
        self._exit.set()
        if self.on_exit is not None:
            self.on_exit()

    @property
    def is_ending(self) -> bool:
        """Whether someone has asked the machine to end."""
        return self._exit.is_set()

    def wait_for_exit(self, timeout: float | None = None) -> bool:
        """Wait until someone has asked the machine to end; False if ``timeout`` seconds passed first."""
        return self._exit.wait(timeout)

    def close(self) -> None:
        """Shut everything down: exports, jobs, nodes (flushed), character devices, objects, timers."""
        if self._closed:
            return
        self._closed = True
        if "migration" in self.__dict__:
            self.migration.close()
        with self.control:  # what others do, or answer, comes before or after, never beside
            if self.board is not None:
                self.board.power_off()
        # Only what was ever used is there to be closed.
        for part in ("vnc", "block", "netdevs", "tpms", "audiodevs", "chardevs", "fdsets", "objects"):
            if part in self.__dict__:
                try:
                    self.__dict__[part].close()
                except (OSError, QobraError) as error:
                    report_error(strerror(error) if isinstance(error, OSError) else error)
        self.control.close()
