"""Mounting by the helper, which a program stands in for, so that nothing is mounted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qobra.block.export.fuse.mount import mount
from qobra.errors import QobraError

GIVE = """
import array, os, socket
told = open({given!r}, "rb")
with socket.socket(fileno=int(os.environ["_FUSE_COMMFD"])) as sock:
    sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [told.fileno()]))])
"""
KEEP = """
import os, socket
socket.socket(fileno=int(os.environ["_FUSE_COMMFD"])).send(b"x")
"""
REFUSE = """
import sys
sys.exit("fusermount3: user has no write access to mountpoint\\n")
"""


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """``helper(text)``: a fusermount3 that runs the program ``text`` and notes its arguments, for who is not root."""

    def make(text: str) -> None:
        program = tmp_path / "fusermount3"
        note = f"import sys\nopen({str(tmp_path / 'arguments')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        program.write_text(f"#!{sys.executable}\n{note}{text}")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "mount").touch()
    return make


@pytest.mark.parametrize("allow_other", [False, True])
def test_the_helper_gives_the_descriptor_back(helper, tmp_path: Path, allow_other: bool) -> None:
    (tmp_path / "given").write_bytes(b"requests")
    helper(GIVE.format(given=str(tmp_path / "given")))
    fd = mount(str(tmp_path / "mount"), allow_other=allow_other)
    try:
        assert os.read(fd, 8) == b"requests" and not os.get_inheritable(fd)
    finally:
        os.close(fd)
    options = "default_permissions,allow_other" if allow_other else "default_permissions"
    assert (tmp_path / "arguments").read_text() == f"-o {options} -- {tmp_path / 'mount'}"


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (KEEP, "Could not mount FUSE session to export: fusermount3 passed no descriptor"),
        (REFUSE, "Could not mount FUSE session to export: fusermount3: user has no write access to mountpoint"),
        (None, "Could not run fusermount3: No such file or directory"),
    ],
)
def test_a_helper_that_does_not_mount(helper, tmp_path: Path, program: str | None, text: str) -> None:
    if program is not None:
        helper(program)
    with pytest.raises(QobraError) as error:
        mount(str(tmp_path / "mount"), allow_other=False)
    assert str(error.value) == text


def test_only_a_file_is_mounted_over(helper, tmp_path: Path) -> None:
    with pytest.raises(QobraError, match="is not a regular file"):
        mount(str(tmp_path), allow_other=False)
