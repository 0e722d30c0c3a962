"""What Qobra says it is: the version of QEMU whose QMP it serves, and its own name as the package."""

from __future__ import annotations

import qobra

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PACKAGE = f"qobra-{qobra.__version__}"


def version_info() -> dict[str, Any]:
    """VersionInfo of the reference."""
    return {"qemu": {"micro": 0, "minor": 2, "major": 5}, "package": PACKAGE}
