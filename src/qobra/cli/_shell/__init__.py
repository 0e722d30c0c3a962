"""The parts of qobra-shell."""
