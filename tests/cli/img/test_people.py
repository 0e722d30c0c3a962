from __future__ import annotations

import json
import xml.dom.minidom
from pathlib import Path

import pytest

import qobra
from qobra.cli import img
from qobra.cli.subcommand import img as people


@pytest.fixture(autouse=True)
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    img.main(["create", "-q", "-f", "qcow2", "base.q", "4M"])
    with qobra.open("base.q", "r+") as image:
        image.pwrite(b"b" * 131072, 0)
    img.main(["create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "top.q"])
    with qobra.open("top.q", "r+") as image:
        image.pwrite(b"t" * 65536, 65536)


@pytest.mark.parametrize("confined", [[], ["--untrusted"]])
def test_inspect_reports_references_and_opens_none(confined: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    Path("base.q").unlink()
    assert people.main(["inspect", *confined, "--output=json", "top.q"]) == 3
    report = json.loads(capfd.readouterr().out)
    assert report["references"][0]["name"] == "base.q"
    assert report["references"][0]["same-directory"] is True
    assert not report["safe"]


def test_inspect_calls_a_file_as_it_was_called(capfd: pytest.CaptureFixture[str]) -> None:
    assert people.main(["inspect", "nofile"]) == 1
    assert "problem: Could not open 'nofile': No such file or directory\n" in capfd.readouterr().out


def test_inspect_accepts_what_stands_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert people.main(["inspect", "--untrusted", "--check", "-f", "qcow2", "base.q"]) == 0
    assert "verdict: nothing to object to" in capfd.readouterr().out


@pytest.mark.parametrize("confined", [[], ["--untrusted"]])
def test_inspect_tells_why_a_check_cannot_be_done(confined: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """In the report, and nowhere else."""
    image = bytearray(Path("base.q").read_bytes())
    image[60:64] = b"\xff\xff\0\0"  # snapshots
    Path("base.q").write_bytes(image)
    assert people.main(["inspect", *confined, "--check", "--output=json", "base.q"]) == 2
    out, err = capfd.readouterr()
    assert "ERROR snapshot table too large" in json.loads(out)["problems"]
    assert err == ""


def test_inspect_notices_the_wrong_format_and_size(capfd: pytest.CaptureFixture[str]) -> None:
    assert people.main(["inspect", "-f", "raw", "base.q"]) == 4
    assert people.main(["inspect", "--max-size", "1M", "base.q"]) == 5
    assert people.main(["inspect", "missing"]) == 1
    data = bytearray(Path("base.q").read_bytes())
    data[20] = 77  # cluster bits
    Path("bad.q").write_bytes(data)
    assert people.main(["inspect", "--untrusted", "bad.q"]) == 2


def test_tree(capfd: pytest.CaptureFixture[str]) -> None:
    assert people.main(["tree", "top.q"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "top.q  [qcow2]"
    assert "64 KiB of data, 64 KiB of it seen from the top" in lines[1]
    assert "128 KiB of data, 64 KiB of it seen from the top" in lines[3]


def test_tree_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    assert people.main(["tree", "--output=json", "top.q"]) == 0
    top, base = json.loads(capfd.readouterr().out)
    assert (top["filename"], top["format"], top["data"], top["seen"]) == ("top.q", "qcow2", 65536, 65536)
    assert (base["filename"], base["virtual-size"], base["data"], base["seen"]) == ("base.q", 4 << 20, 131072, 65536)
    assert people.main(["tree", "--output=xml", "top.q"]) == 1


def test_plot_never_overwrites_an_image(capfd: pytest.CaptureFixture[str]) -> None:
    before = Path("top.q").read_bytes()
    assert people.main(["map", "--plot", "top.q", "base.q"]) == 1
    assert "'top.q' does not end in .svg" in capfd.readouterr().err
    assert Path("top.q").read_bytes() == before


def test_help_of_a_subcommand(capfd: pytest.CaptureFixture[str]) -> None:
    assert people.main(["help", "tree"]) == 0
    assert "[--output human|json]" in capfd.readouterr().out


def test_plot_is_a_picture() -> None:
    assert people.main(["map", "--plot", "p.svg", "top.q"]) == 0
    document = xml.dom.minidom.parse("p.svg")
    assert len(document.getElementsByTagName("rect")) == 1 + 2 + 2
    assert "base.q" in Path("p.svg").read_text()


def test_the_rest_is_qemu_imgs(capfd: pytest.CaptureFixture[str]) -> None:
    assert people.main(["info", "base.q"]) == 0
    assert "file format: qcow2" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("begin", "name"),
    [
        (b'# Disk DescriptorFile\nversion=1\nRW 100 FLAT "/etc/passwd" 0\n', "vmdk"),
        (b"KDMV", "vmdk"),
        (b"QED\0", "qed"),
        (b"vhdxfile", "vhdx"),
    ],
)
def test_inspect_warns_of_what_others_may_open(begin: bytes, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """No driver is here for these, but another program has one, and would open what the image names."""
    Path("a").write_bytes(begin.ljust(4096, b"\0"))
    for given in ([], ["-f", "raw"]):
        assert people.main(["inspect", "--untrusted", *given, "a"]) == 4
        assert f"it could be taken for {name} as well" in capfd.readouterr().out


def test_an_image_writes_no_lines_of_its_own_nor_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31mred\nverdict: nothing to object to"
    img.main(["create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "a", "1M"])
    assert people.main(["inspect", "--untrusted", "a"]) == 3
    out = capfd.readouterr().out
    assert "\x1b" not in out and r"\x1b[31mred\nverdict" in out
    assert [line for line in out.splitlines() if line.startswith("verdict")] == ["verdict: do not use it as it is"]
    Path("new\nline").write_bytes(Path("base.q").read_bytes())
    assert people.main(["tree", "new\nline"]) == 0
    assert capfd.readouterr().out.startswith(r"new\nline  [qcow2]")
