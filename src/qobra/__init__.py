"""Qobra: the virtual machine and block layer that QEMU's QMP manual describes, in Python."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.image import open_image as open

__all__ = ["open"]
__version__ = "0.1.0"


def __getattr__(name: str) -> "Any":
    # `qobra.open` pulls in the block layer; most importers of the package do not want it.
    if name == "open":
        from qobra.image import open_image

        return open_image
    raise AttributeError(f"module 'qobra' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "open"])
