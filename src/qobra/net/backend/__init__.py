"""The kinds of network backend, one module each."""
