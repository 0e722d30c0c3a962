"""The filter that a commit puts over the topmost node that it takes away: it bears that what is under it changes."""

from __future__ import annotations

from qobra.block import permissions
from qobra.block.filter._filter import FilterNode
from qobra.block.node import Options, drivers
from qobra.block.opening import Opening


@drivers.register("commit_top")
class CommitTopNode(FilterNode):
    """Shows ``backing``."""

    driver = "commit_top"
    shows_places = True

    def open(self, opening: Opening) -> None:
        opening.child("backing", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        self.child_resized("backing")

    def plain_filename(self, options: Options) -> str:
        return self.below.filename

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        # Between the copying of two parts, what lies above the base is not consistent.
        return 0, permissions.ALL
