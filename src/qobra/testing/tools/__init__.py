"""The image tools against QEMU's: random command lines, and what differs."""
