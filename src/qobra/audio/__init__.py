"""Sound: what the guest's cards play to, one module for each kind of ``-audiodev``."""
