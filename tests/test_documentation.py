"""The README and the pages in docs/: what they show works, and what they name and link to is there."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qobra
from qobra.client.sync import Client
from qobra.testing import QobraServer

ROOT = Path(__file__).parent.parent
SOURCE = Path(qobra.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = Path(sys.executable).parent
needs_programs = pytest.mark.skipif(
    not (PROGRAMS / "qobra-img").exists(), reason="the programs are not installed beside this Python"
)


def blocks(page: str, *kinds: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text()) if kind in kinds]


def run_shell(script: str, directory: Path, path: str = f"{PROGRAMS}:{os.environ['PATH']}") -> str:
    """Run a script that has to succeed, line for line; what it leaves running in the background is ended."""
    end = "trap 'kill $(jobs -p) $(find $TMPDIR -name *.pid -exec cat {} +) 2>/dev/null || :; wait' EXIT"
    environment = {**os.environ, "PATH": path, "TMPDIR": str(directory)}
    command = ["bash", "-euo", "pipefail", "-c", f"{end}\n{script}"]
    with open(directory / "output", "w+") as output:  # not a pipe, which a daemon would keep open
        subprocess.run(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=60
        ).check_returncode()
        output.seek(0)
        return output.read()


@needs_programs
def test_the_first_five_minutes(tmp_path: Path, peer: Callable[[str], str]) -> None:
    peer("nbdinfo")
    text = (ROOT / "README.md").read_text().partition("## The first five minutes")[2]
    steps = []
    for kind, block in BLOCK.findall(text):
        steps.append(f"{sys.executable} - <<'END'\n{block}END\n" if kind == "python" else block)
    script = "".join(steps).replace("$PWD/.venv/bin", str(PROGRAMS))
    shown = run_shell(script, tmp_path)
    assert "export-size: 1073741824" in shown  # nbdinfo
    assert "\ndisk 1073741824\n" in shown  # the client
    assert "virtual size: 1 GiB" in shown  # qobra img inspect


@needs_programs
def test_the_image_tools(tmp_path: Path) -> None:
    (tmp_path / "old.img").write_bytes(bytes(1 << 20))
    (block, *_) = blocks("docs/tools.md", "")
    server = f"--socket {tmp_path}/disk.sock --pid-file {tmp_path}/nbd.pid"
    script = block.replace("--socket /run/disk.sock", server)
    assert script != block
    shown = run_shell(script, tmp_path)
    assert "wrote 65536/65536 bytes at offset 0" in shown and "ab ab ab ab" in shown


def test_images_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qobra.cli.img import main

    monkeypatch.chdir(tmp_path)
    assert main(["create", "-q", "-f", "qcow2", "disk.qcow2", "1025M"]) == 0
    for block in blocks("docs/python.md", "python"):
        exec(block, {"qobra": qobra})
    assert (tmp_path / "disk.raw").stat().st_size == 1025 << 20


def test_a_machine_and_a_device_from_python() -> None:
    first, device = blocks("docs/machine.md", "python")
    exec(first, {})
    from qobra.machine.device import edu
    from qobra.object.property import Int
    from qobra.registry import Registry

    names: dict[str, Any] = {"PciDevice": edu.PciDevice, "Int": Int, "registry": Registry("device", [])}
    exec(device, names)
    assert names["MyDevice"].type_name == "my-device"


async def run_block(block: str, names: dict[str, Any]) -> None:
    """Run a block of Python that may await."""
    made = eval(compile(block, "the page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if made is not None:
        await made


def test_the_client(make_qobra_server: Callable[..., QobraServer], capsys: pytest.CaptureFixture[str]) -> None:
    asynchronous, blocking, commands, events, jobs, test = blocks("docs/client.md", "python")
    server = make_qobra_server()

    async def follow() -> None:
        names: dict[str, Any] = {}
        await run_block(asynchronous.replace("/run/vm.sock", server.address), names)
        server.execute("blockdev-del", node_name="disk")
        image = Path(server.directory, "disk.img")
        image.touch()
        server.execute("blockdev-add", driver="file", node_name="disk", filename=str(image))
        server.execute("blockdev-add", driver="null-co", node_name="backup", size=2 << 30)
        async with await names["Client"].connect(server.address) as client:
            names["client"] = client
            await run_block(commands, names)
            await run_block(jobs, names)
            errors = asyncio.create_task(run_block(events, names))
            while "errors" not in names:
                await asyncio.sleep(0)
            server.emit("BLOCK_IO_ERROR", device="", node_name="another")
            server.emit("BLOCK_IO_ERROR", device="", node_name="disk", operation="read")
            while "event" not in names:
                await asyncio.sleep(0.001)
        await errors

    asyncio.run(asyncio.wait_for(follow(), 60))
    assert server.execute("query-named-block-nodes")[0]["image"]["virtual-size"] == 2 << 30
    shown = capsys.readouterr().out
    assert "100%" in shown and "'operation': 'read'" in shown and "another" not in shown
    server = make_qobra_server()
    exec(blocking.replace("/run/vm.sock", server.address), {})
    assert [node["node-name"] for node in server.execute("query-named-block-nodes")] == ["disk"]

    class MyTool:
        def run(self, address: str) -> None:
            with Client.connect(address) as client:
                assert client.query_named_block_nodes()[0]["node-name"] == "disk"

    names: dict[str, Any] = {"my_tool": MyTool()}
    exec(test, names)
    names["test_my_tool"](make_qobra_server())


def test_what_goes_wrong_on_demand(make_qobra_server: Callable[..., QobraServer]) -> None:
    text = (ROOT / "docs/client.md").read_text().partition("| `server.faults.` |")[2].partition("\n\n")[0]
    calls = re.findall(r"^\| `(.*?)` \|", text, re.MULTILINE)
    server = make_qobra_server()
    for call in calls:
        eval(f"server.faults.{call}", {"server": server})
    assert len(calls) == 5


def test_the_nbd_library(make_qobra_server: Callable[..., QobraServer], peer: Callable[[str], str]) -> None:
    first, many, several, aio = blocks("docs/nbd.md", "python")
    server = make_qobra_server()
    size = 2 << 20
    server.execute("blockdev-add", driver="null-co", node_name="disk", size=size, read_zeroes=True)
    path = f"{server.directory}/nbd"
    server.execute("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
    server.execute("block-export-add", type="nbd", id="disk", node_name="disk", writable=True)
    uri = f"nbd+unix:///disk?socket={path}"
    names: dict[str, Any] = {}
    exec(first.replace("nbd://server/disk", uri), names)
    assert names["boot"] == bytes(512)
    read: dict[int, bytes] = {}
    with names["qobra"].nbd.connect(uri) as disk:
        exec(many, {"disk": disk, "store": read.__setitem__})
    assert sorted(read) == list(range(0, size, 65536)) and set(map(bytes, read.values())) == {bytes(65536)}

    async def gather() -> None:
        import qobra.nbd.aio

        names.update(asyncio=asyncio, qobra=qobra)
        await run_block(aio.replace("nbd://server/disk", uri), names)

    asyncio.run(asyncio.wait_for(gather(), 60))
    assert bytes(names["tail"]) == bytes(512)
    peer("nbdkit")
    exec(several, names)
    assert names["one"].size == names["another"].size == 1 << 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python_and_finds_what_it_imports(page: Path) -> None:
    for text in blocks(str(page.relative_to(ROOT)), "python"):
        tree = compile(text, page.name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), {})


def anchors(page: Path) -> set[str]:
    """What a link to a part of the page can say, as Python-Markdown names headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if link.startswith(("https:", "protocol/", "python/")):  # the last two are made with the manual
            continue
        file, _, part = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (part and part not in anchors(target)):
            dead.append(link)
    assert dead == []


def expanded(name: str) -> list[str]:
    """``a/{b,c}/d``: the names that a shell makes of it."""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
    return [found[1] + word + found[3] for word in found[2].split(",")] if found else [name]


def test_the_architecture_names_modules_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    places = [SOURCE, *(path for path in SOURCE.iterdir() if path.is_dir()), SOURCE / "block/export", ROOT]
    named = [name for quoted in re.findall(r"`([\w./{},*]+)`", text) if "/" in quoted for name in expanded(quoted)]
    missing = [name for name in named if not any(list(place.glob(name.rstrip("/"))) for place in places)]
    assert len(named) > 60 and missing == []
    for name in re.findall(r"`((?:qobra\.)[\w.]+)`", text):
        module, _, attribute = name.rpartition(".")
        assert (SOURCE.parent / (name.replace(".", "/") + ".py")).exists() or hasattr(
            __import__(module, fromlist=[attribute]), attribute
        ), name
