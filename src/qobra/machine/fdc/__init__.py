"""Floppies: drives, formats of diskettes, and the controller of a PC (Intel 82078 data sheet)."""
