"""The subcommands of ``qobra``, one module each."""
