"""Bits and codes of the ATA command set (ATA/ATAPI-7) that more than one module needs."""

from __future__ import annotations

ERR, DRQ, SEEK, FAULT, READY, BUSY = 0x01, 0x08, 0x10, 0x20, 0x40, 0x80
"""Status register."""

ABORTED, BAD_SECTOR = 0x04, 0x80
"""Error register."""

LBA, SLAVE = 0x40, 0x10
"""Device register."""

NO_INTERRUPT, SOFT_RESET, HIGH_ORDER = 0x02, 0x04, 0x80
"""Device control register."""

DIAGNOSE = 0x90
"""EXECUTE DEVICE DIAGNOSTIC, which both devices of a cable carry out."""

SECTOR = 512
