"""``file``: output goes to a file, input comes from another."""

from __future__ import annotations

import os

from qobra.chardev.chardev import registry
from qobra.chardev.fdio import FdChardev, open_path


@registry.register("file")
class FileChardev(FdChardev):
    """Files, or whatever their paths name."""

    kind = "file"
    pipe_like = False

    def open_fds(self) -> tuple[int, int]:
        mode = os.O_APPEND if self.options.get("append") else os.O_TRUNC
        out = open_path(self, self.options["out"], os.O_WRONLY | os.O_CREAT | mode)
        if "in" not in self.options:
            return -1, out
        try:
            return open_path(self, self.options["in"], os.O_RDONLY), out
        except BaseException:
            os.close(out)
            raise
