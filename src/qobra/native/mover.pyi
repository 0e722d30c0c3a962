from collections.abc import Iterable

can_unpack: bool
"""Whether there is a library that :meth:`Mover.push_packed` can use."""

class Mover:
    """Moves runs of files into the file ``target``. One thread gives the work, and may help; others :meth:`work`.

    What is zero in units of ``unit`` bytes of the copy (0: nothing is looked at) is left out. ``cluster`` is the size
    of the clusters for which places are provided; 0: byte N of the copy goes to byte ``base`` + N of the target.
    """

    def __init__(self, target: int, unit: int, cluster: int, base: int = 0) -> None: ...
    def push(self, fd: int, offset: int, start: int, length: int) -> None:
        """Have ``length`` bytes from ``offset`` of a file moved to ``start`` of the copy; in order of ``start``."""

    def push_packed(self, fd: int, clusters: Iterable[tuple[int, int, int, int]], whole: int) -> None:
        """Have clusters moved that zstd compressed, ``whole`` bytes each: ``(offset, packed, start, length)``.

        At most ``packed`` bytes from ``offset`` of the file hold the one whose first ``length`` bytes go to ``start``.
        """

    def provide(self, host: int, length: int) -> None:
        """Whole clusters of the target that data may go to, in the order given; before the run that needs them."""

    @property
    def pushed(self) -> int:
        """Bytes of all runs so far."""

    @property
    def failed(self) -> int:
        """The number of the error that stopped the threads, 0 if there was none."""

    def help(self, pushed: int) -> None:
        """Work like the threads until so many bytes of the runs are moved, or a thread has failed."""

    def take(self) -> list[tuple[int, int, int]]:
        """``(start, host, length)`` of clusters that got a place and are written, each told once, in order."""

    def close(self) -> None:
        """No more runs will come: the threads end when they are done."""

    def stop(self) -> None:
        """The threads end as soon as they can."""

    def work(self) -> None:
        """Work until there is nothing more to do."""
