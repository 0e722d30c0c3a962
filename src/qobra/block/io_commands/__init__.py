"""qemu-io's commands: single requests by hand, with patterns, for a program, a script or the monitor.

A :class:`~qobra.block.io_commands._interpreter.Interpreter` runs lines on one backend. The commands are in modules of
their own, by subject.
"""
