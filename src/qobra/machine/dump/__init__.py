"""Dumps of guest memory for debuggers: ELF core files, and kdump's compressed pages."""
