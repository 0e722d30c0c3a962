"""What needs another project's package says so where there is none, and what can do without does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qobra.block.format.qcow2 import compressed
from qobra.block.format.qcow2.create import header_for
from qobra.cli._tool.report import Program
from qobra.cli.img import main
from qobra.crypto.identity import distinguished_name
from qobra.crypto.sectors import SectorCipher
from qobra.crypto.tls_sanity import check_certificates
from qobra.errors import QobraError
from qobra.image import open_image
from qobra.packages import need

_NEEDS: list[tuple[str, Callable[[], object]]] = [
    ("cryptography", lambda: SectorCipher("aes-128", "cbc", bytes(16))),
    ("cryptography", lambda: check_certificates("ca-cert.pem", None, server=True)),
    ("cryptography", lambda: distinguished_name(b"")),
    ("zstandard", lambda: compressed.compress(bytes(512), compressed.ZSTD)),
    ("zstandard", lambda: header_for({"size": 1 << 20, "compression-type": "zstd"})),
]


def _hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(compressed, "_codec", [])
    monkeypatch.setattr(compressed, "_compiled_part", lambda: None)


@pytest.mark.parametrize(("package", "use"), _NEEDS)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, use: Callable[[], object]
) -> None:
    _hide(monkeypatch, package)
    with pytest.raises(QobraError, match=rf" needs the Python package '{package}', which is not installed$"):
        use()


def test_an_image_that_nothing_here_can_read_is_not_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "zstd.qcow2"
    assert main(["create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", str(path), "1M"]) == 0
    _hide(monkeypatch, "zstandard")
    with pytest.raises(QobraError, match="needs the Python package 'zstandard'"):
        open_image(path)


def test_a_package_that_lacks_something_itself_is_not_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        need("broken_package", "Nothing")


def test_progress_is_a_line_where_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "qobra.cli._img_people.progress", raising=False)
    _hide(monkeypatch, "rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert type(Program("qobra img", people=True).progress(False)).__name__ == "Progress"
    monkeypatch.undo()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert type(Program("qobra img", people=True).progress(False)).__name__ == "RichProgress"
    monkeypatch.setenv("TERM", "dumb")  # it could not be drawn anew
    assert type(Program("qobra img", people=True).progress(False)).__name__ == "Progress"
