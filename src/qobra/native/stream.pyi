class Lock:
    def __enter__(self) -> Lock: ...
    def __exit__(self, *_exc: object) -> None: ...

class Stream:
    start: int
    end: int
    position: int
    error: int
    def set_payload(self, buffer: bytearray) -> None: ...
