class Stream:
    start: int
    end: int
    position: int
    error: int
    def set_payload(self, buffer: bytearray) -> None: ...
