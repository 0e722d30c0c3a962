"""What query-command-line-options lists has an effect: each parameter of each option is set here and looked for."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qobra.chardev.options import parse as parse_chardev
from qobra.cli._system import process, sandbox, table
from qobra.cli._system.build import Builder
from qobra.errors import QobraError
from qobra.machine import fw_cfg
from qobra.machine.board import find_devices
from qobra.machine.machine import Machine
from qobra.machine.option_groups import GROUPS
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess

Check = Callable[[Path], None]
CHECKS: dict[str, Check] = {}


def _shows(group: str, *parameters: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        CHECKS.update({f"{group}.{parameter}": check for parameter in parameters})
        return check

    return register


@contextmanager
def _built(*arguments: str, architecture: str = "x86_64") -> Iterator[Any]:
    """The machine of the options; it runs unless ``-S`` is among them."""
    builder = Builder(architecture, table.scan(["-nodefaults", "-display", "none", *arguments]))
    try:
        with builder.machine.control:
            builder.build_early()
            builder.build_board()
            builder.start()
        yield builder.machine
    finally:
        builder.machine.close()
        builder.close()


def _qmp(machine: Machine, command: str, **arguments: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, command, {key.replace("_", "-"): value for key, value in arguments.items()})


def _program(*arguments: str, then: tuple[str, ...] = (), **options: Any) -> str:
    """What the program says when it is run with these options and QMP commands, then ``quit``."""
    lines = [json.dumps({"execute": each}) for each in ("qmp_capabilities", *then, "quit")]
    command = [sys.executable, "-m", "qobra.cli.system", "-nodefaults", "-display", "none", *arguments]
    done = subprocess.run(
        [*command, "-qmp", "stdio"], input="\n".join(lines), capture_output=True, text=True, timeout=60, **options
    )
    return f"{done.stdout}{done.stderr}"


def _cmos(machine: Machine, index: int) -> int:
    access = BoardAccess(machine)
    access.port_out(0x70, 1, index)
    return access.port_in(0x71, 1)


def _item(machine: Any, key: int) -> int:
    return int.from_bytes(machine.board.fw_cfg._items[key], "little")


def _image(directory: Path, name: str = "image", data: bytes = bytes(1 << 16)) -> Path:
    (directory / name).write_bytes(data)
    return directory / name


@_shows("action", "reboot", "shutdown", "panic", "watchdog")
def _action(_directory: Path) -> None:
    with _built("-action", "reboot=shutdown,shutdown=pause,panic=none,watchdog=inject-nmi") as machine:
        state = machine.run_state
        assert (state.reboot_action, state.shutdown_action) == ("shutdown", "pause")
        assert (state.panic_action, state.watchdog_action) == ("none", "inject-nmi")


@_shows("add-fd", "fd", "set", "opaque")
def _add_fd(_directory: Path) -> None:
    read, write = os.pipe()
    try:
        os.set_inheritable(read, True)
        with _built("-add-fd", f"fd={read},set=7,opaque=mine") as machine:
            (found,) = _qmp(machine, "query-fdsets")
            assert found["fdset-id"] == 7 and found["fds"][0]["opaque"] == "mine"
            assert os.path.samestat(os.fstat(found["fds"][0]["fd"]), os.fstat(read))
    finally:
        os.close(read)
        os.close(write)


@_shows("boot-opts", "order", "once", "menu", "splash", "splash-time", "reboot-timeout", "strict")
def _boot(directory: Path) -> None:
    splash = _image(directory, "splash.jpg", b"\xff\xd8 a picture")
    options = f"order=c,menu=on,splash={splash},splash-time=500,reboot-timeout=9,strict=on"
    disk = ("-blockdev", "null-co,node-name=n", "-device", "virtio-blk,drive=n,bootindex=1")
    with _built("-accel", "qtest", "-boot", options, *disk) as machine:
        assert _cmos(machine, 0x3D) & 0x0F == 2
        assert _item(machine, fw_cfg.BOOT_MENU) == 1
        files = machine.board.fw_cfg.file
        assert files("bootsplash.jpg") == splash.read_bytes()
        assert files("etc/boot-menu-wait") == (500).to_bytes(2, "little")
        assert files("etc/boot-fail-wait") == (9).to_bytes(4, "little")
        assert b"HALT" in files("bootorder")
    with _built("-accel", "qtest", "-boot", "order=c,once=d") as machine:
        assert _cmos(machine, 0x3D) & 0x0F == 3
        _qmp(machine, "system_reset")
        with machine.control:
            machine.board.reset_all()
        assert _cmos(machine, 0x3D) & 0x0F == 2


_CHARDEVS = {
    # The options of a character device become what chardev-add takes; tests/chardev shows what comes of that.
    "socket,id=c,host=h,port=1,to=5,ipv4=on,ipv6=off,server=on,wait=off,telnet=on,delay=off": {
        "addr": {"type": "inet", "data": {"host": "h", "port": "1", "to": 5, "ipv4": True, "ipv6": False}},
        "server": True,
        "wait": False,
        "telnet": True,
        "nodelay": True,
    },
    "backend=socket,id=c,host=h,port=1,nodelay=on,reconnect=3,tls-creds=t,tls-authz=z,logfile=l,logappend=on": {
        "addr": {"type": "inet", "data": {"host": "h", "port": "1"}},
        "server": False,
        "nodelay": True,
        "reconnect": 3,
        "tls-creds": "t",
        "tls-authz": "z",
        "logfile": "l",
        "logappend": True,
    },
    "socket,id=c,path=x,abstract=on,tight=off,server=on,wait=off,websocket=on": {
        "addr": {"type": "unix", "data": {"path": "x", "abstract": True, "tight": False}},
        "server": True,
        "wait": False,
        "websocket": True,
    },
    "socket,id=c,fd=5,tn3270=on,server=on,wait=off": {
        "addr": {"type": "fd", "data": {"str": "5"}},
        "server": True,
        "wait": False,
        "tn3270": True,
    },
    "udp,id=c,host=h,port=1,localaddr=a,localport=2": {
        "remote": {"type": "inet", "data": {"host": "h", "port": "1"}},
        "local": {"type": "inet", "data": {"host": "a", "port": "2"}},
    },
    "file,id=c,path=p,append=on": {"out": "p", "append": True},
    "stdio,id=c,signal=off": {"signal": False},
    "ringbuf,id=c,size=16": {"size": 16},
    "mux,id=c,chardev=b": {"chardev": "b"},
}


@_shows("chardev", *(name for name, _type in GROUPS["chardev"]))
def _chardev(_directory: Path) -> None:
    with socket.socket() as inherited:
        number = inherited.fileno()
        for text, data in _CHARDEVS.items():
            expected = json.loads(json.dumps(data).replace('"5"', f'"{number}"'))
            assert parse_chardev(text.replace("fd=5", f"fd={number}"))[1]["data"] == expected
    named = {key for text in _CHARDEVS for key in re.findall(r"([\w-]+)=", text)} | {"mux"}
    assert {name for name, _type in GROUPS["chardev"]} <= named
    with _built("-chardev", "null,id=c,mux=on", "-mon", "c", "-mon", "c") as machine:
        assert {"c", "c-base"} == {each["label"] for each in _qmp(machine, "query-chardev")} - {"compat_monitor0"}


@_shows("drive", "node-name", "driver", "file", "format", "read-only", "cache.direct", "cache.no-flush")
@_shows("drive", "cache.writeback", "detect-zeroes", "rerror", "werror", "discard", "force-share", "auto-read-only")
@_shows("drive", "stats-account-invalid", "stats-account-failed", "aio", "if", "media")
def _drive(directory: Path) -> None:
    image = _image(directory)
    caches = "cache.direct=on,cache.no-flush=on,cache.writeback=off"
    policy = (
        "discard=unmap,detect-zeroes=unmap,werror=stop,rerror=ignore,read-only=on,force-share=on,auto-read-only=off"
    )
    account = "stats-account-invalid=off,stats-account-failed=off"
    drive = f"if=none,id=d,file={image},format=raw,node-name=n,aio=threads,{caches},{policy},{account}"
    with _built("-drive", drive, "-drive", "if=none,id=e,driver=null-co,media=cdrom,size=512") as machine:
        shown = {each["device"]: each for each in _qmp(machine, "query-block")}
        inserted = shown["d"]["inserted"]
        assert inserted["cache"] == {"writeback": False, "direct": True, "no-flush": True}
        assert (inserted["node-name"], inserted["drv"], inserted["ro"]) == ("n", "raw", True)
        assert (inserted["file"], inserted["detect_zeroes"]) == (str(image), "unmap")
        backend = machine.block.backends["d"]
        assert (backend.on_error["werror"], backend.on_error["rerror"]) == ("stop", "ignore")
        options = backend.node.options | backend.node.children["file"].options
        assert (options["discard"], options["force-share"], options["auto-read-only"]) == ("unmap", True, False)
        assert options["aio"] == "threads"
        stats = next(each["stats"] for each in _qmp(machine, "query-blockstats") if each["device"] == "d")
        assert (stats["account_invalid"], stats["account_failed"]) == (False, False)
        assert shown["e"]["inserted"]["drv"] == "null-co"
    with _built("-drive", "if=ide,media=cdrom,index=2") as machine:
        assert [each["device"] for each in _qmp(machine, "query-block")] == ["ide1-cd0"]


@_shows("drive", "bus", "unit", "index")
def _places(_directory: Path) -> None:
    null = "driver=null-co,size=1M"
    with _built("-drive", f"bus=1,unit=1,{null}", "-drive", f"index=1,{null}") as machine:
        assert {each["device"] for each in _qmp(machine, "query-block")} == {"ide1-hd1", "ide0-hd1"}
        found: Any = find_devices(machine.board, "ide-hd")
        disks = {(disk.bus.name, disk.unit) for disk in found}
        assert disks == {("ide.1", 1), ("ide.0", 1)}


@_shows("drive", "snapshot", "copy-on-read")
def _layers(directory: Path) -> None:
    image = _image(directory)
    with _built("-drive", f"if=none,id=d,file={image},format=raw,snapshot=on") as machine:
        assert "qcow2" in [each["drv"] for each in _qmp(machine, "query-named-block-nodes")]
    with _built("-drive", f"if=none,id=d,file={image},format=raw,copy-on-read=on") as machine:
        assert "copy-on-read" in [each["drv"] for each in _qmp(machine, "query-named-block-nodes")]
    assert image.read_bytes() == bytes(1 << 16)


_THROTTLING = [name for name, _type in GROUPS["drive"] if name.startswith("throttling.")]


@_shows("drive", *_THROTTLING)
def _throttling(_directory: Path) -> None:
    limits = {name: index for index, name in enumerate(_THROTTLING, 2) if not name.endswith(("-length", "group"))}
    for direction in (("total",), ("read", "write")):
        chosen = {name: value for name, value in limits.items() if name.split("-")[1] in (*direction, "size")}
        for name in [each for each in chosen if each.endswith("-max")]:
            chosen[name] = 1000 + chosen[name]
            chosen[f"{name}-length"] = 3
        text = "".join(f",{name}={value}" for name, value in chosen.items())
        with _built("-drive", f"if=none,id=d,driver=null-co,throttling.group=g{text}") as machine:
            inserted = _qmp(machine, "query-block")[0]["inserted"]
            assert inserted["group"] == "g"
            for name, value in chosen.items():
                kind, _, rest = name.removeprefix("throttling.").partition("-")
                words = {"total": "", "read": "_rd", "write": "_wr", "size": "_size"}
                direction_word, _, suffix = rest.partition("-")
                suffix = {"": "", "max": "_max", "max-length": "_max_length"}[suffix]
                shown = f"{kind}{words[direction_word]}{suffix}"
                assert inserted[shown] == value, name


@_shows("fw_cfg", "name", "file", "string")
def _fw_cfg(directory: Path) -> None:
    blob = _image(directory, "blob", b"from a file")
    with _built("-fw_cfg", "name=opt/a,string=text", "-fw_cfg", f"name=opt/b,file={blob}") as machine:
        files = machine.board.fw_cfg.file
        assert (files("opt/a"), files("opt/b")) == (b"text", b"from a file")


@_shows("option-rom", "romfile", "bootindex")
def _option_rom(directory: Path) -> None:
    rom = _image(directory, "rom", b"of the user")
    with _built("-option-rom", f"romfile={rom},bootindex=3", "-machine", "pc") as machine:
        assert machine.board.fw_cfg.file("genroms/rom") == b"of the user"
        assert machine.board.fw_cfg.file("bootorder") == b"/rom@genroms/rom\0"


@_shows("global", "driver", "property", "value")
def _global(_directory: Path) -> None:
    with _built("-global", "driver=i8042,property=extended-state,value=off", "-machine", "pc") as machine:
        (found,) = find_devices(machine.board, "i8042")
        assert found.get("extended-state") is False


@_shows("icount", "shift", "sleep")
def _icount(_directory: Path) -> None:
    with _built("-icount", "shift=3,sleep=off", "-machine", "none", "-S") as machine:
        assert machine.board.clock_sleeps is False
    with _built("-icount", "shift=auto", "-machine", "none", "-S") as machine:
        assert machine.board.clock_sleeps is True


@_shows("machine", "type", "accel", "dump-guest-core", "mem-merge", "usb", "graphics", "nvdimm", "nvdimm-persistence")
@_shows("machine", "memory-backend")
def _machine(_directory: Path) -> None:
    words = "type=pc,accel=qtest,dump-guest-core=off,mem-merge=off,usb=on,graphics=off,memory-backend=m"
    memory = ("-object", "memory-backend-memfd,id=m,size=16M", "-m", "16M,maxmem=64M,slots=1")
    with _built("-machine", f"{words},nvdimm=on,nvdimm-persistence=cpu", *memory) as machine:
        assert machine.board.machine_name.startswith("pc-i440fx") and machine.board.clock.driven
        (shown,) = _qmp(machine, "query-memdev")
        assert (shown["id"], shown["merge"], shown["dump"]) == ("m", False, False)
        assert [each.type_name for each in find_devices(machine.board, "piix3-usb-uhci")]
        assert _item(machine, fw_cfg.NOGRAPHIC) == 1
        assert b"NFIT" in machine.board.fw_cfg.file("etc/acpi/tables")
        with_cpu = machine.board.fw_cfg.file("etc/acpi/tables")
    with _built("-machine", f"{words},nvdimm=on", *memory) as machine:
        assert machine.board.fw_cfg.file("etc/acpi/tables") != with_cpu


@_shows("machine", "kernel", "initrd", "append", "dtb", "dumpdtb", "firmware")
def _files(directory: Path) -> None:
    kernel, initrd = _image(directory, "kernel", b"\x13\0\0\0" * 64), _image(directory, "initrd", b"a ram disk")
    firmware = _image(directory, "firmware", b"\x93\0\0\0" * 64)
    words = f"virt,kernel={kernel},initrd={initrd},append=quiet,firmware={firmware}"
    with _built("-machine", words, "-m", "32M", "-S", architecture="riscv64") as machine:
        memory = bytes(machine.board.ram.view)
        assert firmware.read_bytes() in memory and kernel.read_bytes() in memory and b"a ram disk" in memory
        assert b"quiet\0" in memory
        tree = memory[memory.index(b"\xd0\x0d\xfe\xed") :][: 64 << 10]
        size = int.from_bytes(tree[4:8], "big")
    dtb = _image(directory, "dtb", tree[:size].replace(b"riscv-virtio,qemu", b"riscv-virtio,mine"))
    with _built("-machine", f"{words},dtb={dtb}", "-m", "32M", "-S", architecture="riscv64") as machine:
        assert b"riscv-virtio,mine" in bytes(machine.board.ram.view)
    with pytest.raises(SystemExit, match="0"), _built("-M", f"virt,dumpdtb={directory}/dumped", architecture="riscv64"):
        pass
    assert b"riscv-virtio,qemu" in (directory / "dumped").read_bytes()


@_shows("memory", "size", "slots", "maxmem")
def _memory(_directory: Path) -> None:
    with _built("-m", "size=16M,slots=2,maxmem=64M", "-object", "memory-backend-ram,id=m,size=16M") as machine:
        assert _qmp(machine, "query-memory-size-summary") == {"base-memory": 16 << 20, "plugged-memory": 0}
        _qmp(machine, "device_add", driver="pc-dimm", memdev="m")
        assert machine.board.max_ram_size == 64 << 20 and machine.board.memory_slots == 2


@_shows("mon", "chardev", "mode", "pretty")
def _mon(_directory: Path) -> None:
    arguments = ("-machine", "none", "-chardev", "stdio,id=c", "-mon", "chardev=c,mode=control,pretty=on")
    command = [sys.executable, "-m", "qobra.cli.system", "-nodefaults", "-display", "none", *arguments]
    lines = '{"execute": "qmp_capabilities"}{"execute": "quit"}'
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=True)
    assert '    "return": {\n' in done.stdout


@_shows("msg", "timestamp", "guest-name")
@_shows("name", "guest", "process", "debug-threads")
def _names(_directory: Path) -> None:
    said = _program("-machine", "none", "-msg", "timestamp=on,guest-name=on", "-name", "guest=vm", "-device", "nope")
    assert re.search(r"^\d{4}-\S+Z vm .*'nope' is not a valid", said, re.MULTILINE)
    assert '{"name": "vm"}' in _program("-machine", "none", "-name", "guest=vm", then=("query-name",))
    command = [sys.executable, "-m", "qobra.cli.system", "-nodefaults", "-display", "none", "-machine", "none"]
    arguments = ("-name", "process=mine,debug-threads=on", "-object", "iothread,id=io0", "-qmp", "stdio")
    with subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None and program.stdout is not None
        assert '"QMP"' in program.stdout.readline()
        names = [path.read_text().strip() for path in Path(f"/proc/{program.pid}/task").glob("*/comm")]
        program.stdin.write('{"execute": "qmp_capabilities"}{"execute": "quit"}')
        program.stdin.close()
        assert "mine" in names and len(set(names)) > 1
        program.stdout.read()


@_shows("overcommit", "mem-lock")
def _overcommit(_directory: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        locked: list[bool] = []
        patch.setattr(process, "lock_all_memory", lambda: locked.append(True))
        with _built("-machine", "none", "-overcommit", "mem-lock=on"):
            assert locked == [True]


@_shows("rtc", "base", "clock", "driftfix")
def _rtc(_directory: Path) -> None:
    with _built("-machine", "pc,accel=qtest", "-rtc", "base=2001-02-03T04:05:06,clock=vm,driftfix=slew") as machine:
        assert [_cmos(machine, index) for index in (9, 8, 7, 4, 2)] == [0x01, 0x02, 0x03, 0x04, 0x05]
        rtc: Any = next(find_devices(machine.board, "mc146818rtc"))
        assert (rtc.lost_tick_policy, machine.board.rtc_host) == ("slew", False)


@_shows("sandbox", "enable", "obsolete", "elevateprivileges", "spawn", "resourcecontrol")
def _sandbox(_directory: Path) -> None:
    fork, setuid, setpriority, uselib = 57, 105, 141, 134
    assert sandbox.parse("enable=off") is None
    tight = sandbox.parse("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
    loose = sandbox.parse("on,obsolete=allow,elevateprivileges=allow,spawn=allow,resourcecontrol=allow")
    assert tight is not None and loose is not None
    assert {fork, setuid, setpriority, uselib} <= set(tight)
    assert {fork, setuid, setpriority, uselib}.isdisjoint(loose)


@_shows("smp-opts", "cpus", "sockets", "dies", "cores", "threads", "maxcpus")
@_shows("smp-opts", "clusters")
def _smp(_directory: Path) -> None:
    with _built("-smp", "cpus=3,sockets=2,dies=2,cores=2,threads=2,maxcpus=16,clusters=1") as machine:
        assert len(_qmp(machine, "query-cpus-fast")) == 3
        places = [each["props"] for each in _qmp(machine, "query-hotpluggable-cpus")]
        assert len(places) == 16
        assert {key: max(each[key] for each in places) for key in places[0]} == {
            "socket-id": 1,
            "die-id": 1,
            "core-id": 1,
            "thread-id": 1,
        }
    with (
        pytest.raises(Exception, match="clusters not supported by this machine's CPU topology"),
        _built("-smp", "clusters=2"),
    ):
        pass


@_shows("trace", "enable", "events", "file")
def _trace(directory: Path) -> None:
    (directory / "events").write_text("bdrv_open_common\n")
    image, log = _image(directory), directory / "log"
    drive = ("-machine", "none", "-blockdev", f"file,node-name=n,filename={image}")
    _program(*drive, "-trace", f"enable=bdrv_open*,file={log}")
    assert "bdrv_open" in log.read_text()
    log.write_text("")
    _program(*drive, "-trace", f"events={directory}/events,file={log}")
    assert "bdrv_open_common" in log.read_text()


@_shows("vnc", "vnc", "to", "ipv4", "ipv6", "reverse")
def _vnc_addresses(directory: Path) -> None:
    def listening(*options: str) -> list[dict[str, Any]]:
        with _built(*options) as machine:
            servers: list[dict[str, Any]] = _qmp(machine, "query-vnc-servers")[0]["server"]
            return servers

    assert listening("-vnc", f"unix:{directory}/v")[0]["service"] == f"{directory}/v"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        display = taken.getsockname()[1] - 5900
        (server,) = listening("-vnc", f"127.0.0.1:{display},to={display + 90}")
        assert display + 5900 < int(server["service"]) <= display + 5990
        port = taken.getsockname()[1]
        with _built("-vnc", f"127.0.0.1:{port},reverse=on"):
            taken.accept()[0].close()
        families = {
            family: {each["family"] for each in listening("-vnc", f":{display},to={display + 90},{family}=on")}
            for family in ("ipv4", "ipv6")
        }
    assert families == {"ipv4": {"ipv4"}, "ipv6": {"ipv6"}}


@_shows("vnc", "password", "password-secret", "share", "connections", "display", "head")
def _vnc_clients(directory: Path) -> None:
    def greeted(*options: str, tries: int = 1) -> list[bytes]:
        """What each of so many clients hears first, the latest first, once it has said its version."""
        where = ("-vnc", ",".join((f"unix:{directory}/v", *options)))
        with _built("-object", "secret,id=s,data=x", "-device", "virtio-gpu-pci,id=g,max_outputs=2", *where):
            clients = [socket.socket(socket.AF_UNIX) for _ in range(tries)]
            for client in clients:
                client.settimeout(30)
                client.connect(f"{directory}/v")
            heard = []
            for client in reversed(clients):  # once the latest hears something, those it sent away are gone
                try:
                    client.recv(12)
                    client.sendall(b"RFB 003.008\n")
                    heard.append(client.recv(2))
                except OSError:
                    heard.append(b"")
            for client in clients:
                client.close()
            return heard

    assert greeted() == [b"\1\1"]
    assert greeted("password=on") == greeted("password-secret=s") == [b"\1\2"]
    assert greeted("connections=1", tries=2) == [b"\1\1", b""]
    assert greeted("display=g", "head=1") == [b"\1\1"]
    for options, complaint in (("share=x", "unknown vnc share= option"), ("display=g,head=2", "is not bound")):
        with pytest.raises(Exception, match=complaint):
            greeted(options)


@_shows("vnc", "tls-creds", "tls-authz", "sasl", "sasl-authz", "websocket", "audiodev")
def _vnc_security(directory: Path) -> None:
    def told(*options: str) -> dict[str, Any]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            display = taken.getsockname()[1] - 5900
        objects = ("-object", "tls-creds-anon,id=t,endpoint=server", "-audiodev", "none,id=a")
        with _built(*objects, "-vnc", ",".join((f"127.0.0.1:{display}", f"to={display + 90}", *options))) as machine:
            server: dict[str, Any] = _qmp(machine, "query-vnc-servers")[0]
            return server

    assert told("audiodev=a")["auth"] == "none"
    assert told("tls-creds=t")["vencrypt"] == "tls-none"
    assert {each["websocket"] for each in told("websocket=on")["server"]} == {False, True}
    for options, complaint in (
        ("tls-authz=x", "TLS is not enabled"),
        ("sasl-authz=x", "SASL auth is not enabled"),
        ("audiodev=nope", "nope"),
    ):
        with pytest.raises(QobraError, match=complaint):
            told(options)
    try:
        assert told("sasl=on")["auth"] == "sasl"
    except QobraError as error:
        assert "SASL is not available" in str(error)  # on this host


@pytest.mark.parametrize("check", dict.fromkeys(CHECKS.values()))
def test_parameters_have_effects(check: Check, tmp_path: Path) -> None:
    check(tmp_path)


def test_every_listed_parameter_is_looked_at() -> None:
    listed = {f"{group}.{name}" for group, parameters in GROUPS.items() for name, _type in parameters}
    assert listed == CHECKS.keys()
