import qobra.arrays  # noqa: F401 (before a module imports array)
