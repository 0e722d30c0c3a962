class Stream:
    start: int
    end: int
    position: int
    error: int
    def close(self) -> None: ...
    def set_payload(self, buffer: memoryview) -> None: ...
