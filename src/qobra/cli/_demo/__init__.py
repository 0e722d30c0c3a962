"""The parts of ``qobra demo``."""
