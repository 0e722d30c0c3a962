"""Backends of character devices: one module each, found by the name in the contract's ChardevBackend."""
