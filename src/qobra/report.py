"""What a running program has to tell its user outside of any reply: one line on standard error, under its name."""

from __future__ import annotations

import os
import sys

show_time = False
"""Whether lines begin with the time (``-msg timestamp=on``)."""
guest_name = ""
"""What lines begin with to tell the machine's from those of others (``-msg guest-name=on``)."""


def program() -> str:
    """The name under which this program was started."""
    return os.path.basename(sys.argv[0]) or "qobra"


def open_closed_streams() -> None:
    """Put ``/dev/null`` in the place of each standard stream that is closed.

    Otherwise an image or a connection would be opened as file 1 or 2, and be written to by whatever prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)  # takes the number
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))


def visible(text: str, but: str = "") -> str:
    """``text`` for a line of a terminal: what controls either, and may come from outside, is spelled out.

    ``but`` are characters to keep.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in but else _spelled(char) for char in text)


def _spelled(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"  # an octet that is no UTF-8
    return repr(char)[1:-1]


def print_error(text: object) -> None:
    """Print a line on standard error. Where it goes may be full or gone, which is no reason for the work to fail.

    A terminal is not told what to do by names that are in it.
    """
    try:
        if sys.stderr.isatty():
            text = visible(str(text), "\n\t")
        # One call, so that lines of several threads do not end up in one another.
        print(f"{text}\n", end="", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def print_text(text: str) -> int:
    """Print what was asked for on standard output, at once. The exit status: 1 if it has not arrived.

    Why is said, unless its reader has gone. That is no reason for a daemon to end, or for a command to fail.
    """
    try:
        print(text, end="", flush=True)
    except OSError as error:
        # What the stream has kept would be tried again, and complained of, at the end of the program.
        sys.stdout = open(1, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, closefd=False)
        if not isinstance(error, BrokenPipeError):
            report_error(f"standard output: {os.strerror(error.errno or 0)}")
        return 1
    return 0


def report_line(text: object) -> None:
    """Print a line on standard error, with what is to precede each, after what was printed on standard output."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        pass  # nobody reads it any more
    print_error(f"{_time()}{guest_name}{text}")


def report_error(text: object) -> None:
    """Print ``PROGRAM: text`` on standard error, and so the notes of an exception."""
    for each in (text, *getattr(text, "__notes__", ())):
        report_line(f"{program()}: {each}")


def report_warning(text: object) -> None:
    """Print ``PROGRAM: warning: text`` on standard error."""
    report_error(f"warning: {text}")


def report_progress(percent: int) -> None:
    """Print on standard output how far something is, over what was said of it before; the line ends with 100."""
    try:
        print(f"Completed {percent} %", end="\n" if percent == 100 else "\r", flush=True)
    except (OSError, ValueError):
        pass  # nobody reads it any more


def _time() -> str:
    if not show_time:
        return ""
    import time

    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now // 1000 % 10**6:06}Z "
