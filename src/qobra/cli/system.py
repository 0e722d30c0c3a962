"""``qobra-system-x86_64`` and ``qobra-system-riscv64``: a machine from QEMU's options, driven over QMP."""

from __future__ import annotations

import sys

from qobra.cli._ending import Ending, Terminate
from qobra.cli._options import Background, fail, program, write_pidfile
from qobra.errors import QobraError
from qobra.report import print_text, report_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def main_x86_64() -> int:
    """The program ``qobra-system-x86_64``."""
    return main("x86_64", sys.argv[1:])


def main_riscv64() -> int:
    """The program ``qobra-system-riscv64``."""
    return main("riscv64", sys.argv[1:])


def main(architecture: str, arguments: list[str]) -> int:
    """Run a machine until it quits; the exit status."""
    from qobra.cli._system import table
    from qobra.cli._system.early import prepare, refuse_stdio

    try:
        options = table.scan(arguments)
        options = _with_config_files(options)
        text = _help_answer(architecture, options)
        if text is not None:
            return print_text(text)
        options = prepare(options)
        if any(name == "daemonize" for name, _ in options):
            refuse_stdio(options)
    except QobraError as error:
        fail(str(error))
    names = {name for name, _ in options}
    if names & {"h", "version"}:
        from qobra.qmp.version import PACKAGE

        # What launches emulators reads the number at this place of this line, of either answer.
        text = f"QEMU emulator version 5.2.0 ({PACKAGE})\nThe Qobra project, under the Apache licence 2.0\n"
        return print_text(text + table.help_text(program()) if "h" in names else text)
    background = Background() if "daemonize" in names else None
    return _run(architecture, options, background)


def _with_config_files(options: list[tuple[str, str]]) -> list[tuple[str, str]]:
    # The options of a file take the place of -readconfig.
    result: list[tuple[str, str]] = []
    for name, value in options:
        if name == "readconfig":
            from qobra.cli._system.readconfig import read_config

            result.extend(read_config(value))
        else:
            result.append((name, value))
    return result


def _help_answer(architecture: str, options: list[tuple[str, str]]) -> str | None:
    """The answer to options that only ask what there is."""
    from qobra.cli._system import answers

    for name, value in options:
        text = answers.answer(architecture, name, value)
        if text is not None:
            return text
    return None


def _run(architecture: str, options: list[tuple[str, str]], background: Background | None) -> int:
    from qobra.cli._system.build import Builder
    from qobra.machine import memory_failure

    memory_failure.block()
    ending = Ending()
    try:
        builder = Builder(architecture, options)
    except QobraError as error:
        fail(str(error))
    machine = builder.machine
    remove_pidfile: Callable[[], None] | None = None
    status = 0
    try:
        # Nobody is answered before the machine is all there, and runs if it is to.
        with machine.control:
            machine.setting_up = True
            builder.build_early()
            if not builder.preconfig:
                builder.build_board()
            for name, value in options:
                if name == "pidfile":
                    remove_pidfile = write_pidfile(value)
            builder.drop_privileges()
            if not builder.preconfig:
                builder.start()
                ending.serve(machine)
            if background is not None:
                background.ready()
            machine.setting_up = False
        if builder.preconfig:
            built = builder.wait_for_preconfig()
            with machine.control:
                if built:
                    builder.start()
                ending.serve(machine)
        memory_failure.watch(machine)
        if ending.wait():
            raise Terminate
        status = machine.run_state.exit_status
    except Terminate:
        machine.events.emit("SHUTDOWN", {"guest": False, "reason": "host-signal"})
    except QobraError as error:
        ending.close()  # the reason is said, whatever comes now
        status = 1
        report_error(error)
    except SystemExit as exit:
        status = int(exit.code or 0)
    finally:
        ending.close()
        machine.close()
        builder.close()
        if remove_pidfile is not None:
            remove_pidfile()
    return status


if __name__ == "__main__":
    sys.exit(main_x86_64())
