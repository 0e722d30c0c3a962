from collections.abc import Sequence

class Matcher:
    """Compares ``pairs`` of stretches of files: (file, offset, file, offset, length)."""

    def __init__(self, pairs: Sequence[tuple[int, int, int, int, int]]) -> None: ...
    def work(self) -> None:
        """Work until all pairs, or all before one that differs, have been compared or are being compared."""

    @property
    def suspect(self) -> int:
        """When all threads are done: the first pair that differs or could not be read, -1 if there is none."""
