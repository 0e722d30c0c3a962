"""Several changes at one instant, all or none: the ``transaction`` command."""
