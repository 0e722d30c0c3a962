"""Guests that mean harm: ``python -m qobra.testing.hostile`` lets one at every device, from seed to seed.

Each is plugged into a board of its own, functions of PCI in turn on the root bus, behind a port and behind a bridge,
and accessed at random in all that it brought along: registers, ports and configuration space, with garbage in the
memory that it reads and in its queues, resets, and time that passes; some are unplugged meanwhile. A round follows
from the device and a seed alone, so that one that went wrong can be played again (``--device D --seed N --count 1``).
``--state FILE`` remembers how far a run came: the next one goes on there.
"""
