"""The programs. Importing this package is the first thing that each of them does."""

from qobra.cli._start import start_once

start_once()
