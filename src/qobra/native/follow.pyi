from qobra.native.places import Places

def copy_marked(
    source: Places,
    target: Places,
    offset: int,
    shift: int,
    bits: bytearray,
    first: int,
    most: int,
    longest: int,
    leaves_long: bool,
) -> tuple[int, int]: ...
