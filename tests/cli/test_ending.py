"""The end of a daemon: no signal is lost, whatever the program does when it comes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from qobra.cli._ending import Ending, Terminate
from qobra.machine.machine import Machine


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
    handlers = [signal.getsignal(number) for number in numbers]
    fd = signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def test_signals_break_off_what_is_set_up() -> None:
    Ending()
    with pytest.raises(Terminate):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_came_before_anyone_waited(number: signal.Signals) -> None:
    machine = Machine()
    ending = Ending()
    ending.serve(machine)
    with machine.control:  # nobody is broken off in here
        os.kill(os.getpid(), number)
    assert ending.wait()
    ending.close()
    machine.close()


@pytest.mark.parametrize("early", [False, True])
def test_the_machine_wants_to_end(early: bool) -> None:
    machine = Machine()
    ending = Ending()
    if early:
        machine.request_exit()
    ending.serve(machine)
    if not early:
        machine.request_exit()
    assert not ending.wait()
    machine.close()
