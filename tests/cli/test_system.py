"""The system programs: from options to a machine, and what is said of options that cannot be."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.cli import system
from qobra.cli._system import answers, readconfig, table
from qobra.cli._system.build import Builder
from qobra.cli.subcommand import run
from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.machine import Machine
from qobra.machine.memory import Ram
from qobra.qmp import dispatch

Build = Callable[..., Machine]


@pytest.fixture
def build() -> Iterator[Build]:
    builders: list[Builder] = []

    def make(*arguments: str, architecture: str = "x86_64") -> Machine:
        builder = Builder(architecture, table.scan(["-nodefaults", "-display", "none", *arguments]))
        builders.append(builder)
        with builder.machine.control:
            builder.build_early()
            builder.build_board()
            builder.start()
        return builder.machine

    yield make
    for builder in builders:
        builder.machine.close()
        builder.close()


def _qmp(machine: Machine, command: str, **arguments: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, command, arguments)


def test_no_display_is_asked_for_in_each_way(build: Build) -> None:
    assert _qmp(build("-vnc", "none"), "query-vnc") == {"enabled": False}
    with pytest.raises(QobraError, match="^-vnc x: no vnc port specified$"):
        build("-vnc", "x")


def test_the_usual_way_of_tests(build: Build, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    machine = build(
        *("-accel", "qtest", "-machine", "q35", "-m", "64", "-smp", "4,sockets=2", "-name", "guest=vm,process=x"),
        *("-uuid", "12345678-1234-5678-1234-567812345678", "-object", "iothread,id=io0"),
        *("-drive", f"if=virtio,id=drive0,file={disk},format=raw,cache=none,werror=stop"),
        *("-blockdev", "null-co,node-name=n0", "-device", "virtio-scsi,id=s,iothread=io0"),
        *("-device", '{"driver": "scsi-hd", "drive": "n0", "id": "hd", "lun": 3}'),
        *("-global", "virtio-blk-device.serial=from-global", "-qtest", "null", "-qtest-log", "none"),
    )
    assert machine.run_state.running
    devices = {each["device"]: each for each in _qmp(machine, "query-block")}
    # Drives that make their cards themselves come after all -device.
    assert devices["drive0"]["qdev"] == "/machine/peripheral-anon/device[0]/virtio-backend"
    slots = {each["id"]["device"]: each["slot"] for each in _qmp(machine, "query-pci")[0]["devices"]}
    assert slots[0x1004] < slots[0x1001]
    assert devices[""]["qdev"] == "hd"
    assert _qmp(machine, "qom-get", path="hd", property="lun") == 3
    backend = "/machine/peripheral-anon/device[0]/virtio-backend"
    assert _qmp(machine, "qom-get", path=backend, property="serial") == "from-global"
    cpus = _qmp(machine, "query-cpus-fast")
    assert [cpu["props"] for cpu in cpus] == [
        {"socket-id": s, "core-id": c, "thread-id": 0} for s in (0, 1) for c in (0, 1)
    ]
    assert _qmp(machine, "query-name") == {"name": "vm"}
    assert _qmp(machine, "query-memory-size-summary")["base-memory"] == 64 << 20


def test_stopped_at_the_start(build: Build) -> None:
    machine = build("-S", "-machine", "none")
    assert _qmp(machine, "query-status")["status"] == "prelaunch"


def test_riscv(build: Build) -> None:
    machine = build("-machine", "virt", "-m", "128M", "-smp", "2", architecture="riscv64")
    assert _qmp(machine, "query-target") == {"arch": "riscv64"}
    assert [cpu["qom-path"] for cpu in _qmp(machine, "query-cpus-fast")] == [
        "/machine/soc0/harts[0]",
        "/machine/soc0/harts[1]",
    ]


def test_memory_backends(build: Build) -> None:
    machine = build(
        *("-machine", "pc,memory-backend=m0", "-m", "32M"),
        *("-object", "memory-backend-memfd,id=m0,size=32M", "-object", "memory-backend-ram,id=m1,size=1M,merge=off"),
    )
    backends = {each["id"]: each for each in _qmp(machine, "query-memdev")}
    assert backends["m0"]["share"] and not backends["m1"]["merge"]
    with pytest.raises(QobraError, match="object 'm0' is in use"):
        _qmp(machine, "object-del", id="m0")
    _qmp(machine, "object-del", id="m1")


def test_what_the_board_says_of_its_memory_goes_for_all_backends(build: Build) -> None:
    machine = build("-machine", "pc,mem-merge=off,dump-guest-core=off", "-object", "memory-backend-ram,id=m,size=1M")
    assert {(each["merge"], each["dump"]) for each in _qmp(machine, "query-memdev")} == {(False, False)}


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc")
def test_memory_that_stays_out_of_core_dumps() -> None:
    def flags(ram: Ram) -> str:
        start = f"{ctypes.addressof(ctypes.c_char.from_buffer(ram.view)):x}-"
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        next(line for line in lines if line.startswith(start))
        return next((line for line in lines if line.startswith("VmFlags:")), "")

    plain, hidden = Ram("plain", 1 << 20), Ram("hidden", 1 << 20)
    hidden.advise(merge=True, dump=False)
    if not flags(plain):
        pytest.skip("the kernel shows no VmFlags")
    assert " dd" in flags(hidden) and " dd" not in flags(plain)


def test_options_that_are_for_kvm_alone_are_let_by(build: Build) -> None:
    machine = build("-machine", "pc,kernel_irqchip=split,kvm_shadow_mem=1M", "-accel", "tcg,thread=single,tb-size=32")
    assert machine.board is not None and machine.board.accelerator == "tcg"


@pytest.mark.parametrize(("machine", "speed", "places"), [("pc", "12", ("1", "2.1")), ("q35", "480", ("1", "2"))])
def test_usb_devices_come_with_a_controller(build: Build, machine: str, speed: str, places: tuple[str, ...]) -> None:
    built = build("-machine", machine, "-usbdevice", "tablet", "-usbdevice", "keyboard")
    shown = _qmp(built, "human-monitor-command", **{"command-line": "info usb"})
    for place, product in zip(places, ("Tablet", "Keyboard"), strict=True):
        assert f"Port {place}, Speed {speed} Mb/s, Product QEMU USB {product}\r\n" in shown


def test_memory_on_nodes_of_the_host_that_there_are_not(build: Build) -> None:
    with pytest.raises(QobraError, match="cannot bind memory to host NUMA nodes: "):
        build("-object", "memory-backend-ram,id=m,size=1M,policy=bind,host-nodes=120")


def test_a_list_is_given_piece_by_piece(build: Build) -> None:
    machine = build("-object", "thread-context,id=t,cpu-affinity=0,cpu-affinity=0-0")
    assert machine.objects.resolve("/objects/t").get("cpu-affinity") == [0]


def test_only_what_migrates(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = build("-only-migratable", "-device", "edu,id=e")
    monkeypatch.setattr(type(machine.objects.resolve("/machine/peripheral/e")), "migrates", False)
    for refused in (
        lambda: _qmp(machine, "device_add", driver="edu", id="f"),
        lambda: build("-only-migratable", "-device", "edu,id=f"),
    ):
        with pytest.raises(QobraError, match="Device edu is not migratable, but --only-migratable was specified$"):
            refused()
    assert set(machine.objects.resolve("/machine/peripheral").children) == {"e"}
    build("-device", "edu")


def test_a_debug_console(build: Build, tmp_path: Path) -> None:
    machine = build("-debugcon", f"file:{tmp_path / 'out'}")
    for byte in b"hi":
        machine.board.ports.write(0xE9, bytes((byte,)))
    machine.close()
    assert (tmp_path / "out").read_bytes() == b"hi"
    with pytest.raises(
        QobraError, match="-debugcon none: 'none' is not a valid char driver\n.*invalid character backend"
    ):
        build("-debugcon", "none")


def test_filters_find_the_backends_of_nic(build: Build) -> None:
    machine = build("-nic", "hubport,hubid=1,id=n,model=e1000", "-object", "filter-buffer,id=f,netdev=n,interval=9")
    backend = machine.netdevs.find("n")
    assert backend is not None and [each.id for each in backend.filters] == ["f"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-machine", "nope"], "unsupported machine type"),
        (["-usbdevice", "nope"], "-usbdevice nope: could not add USB device 'nope'"),
        (["-usbdevice", "disk:x"], "usbdevice parameters are not supported anymore"),
        (
            ["-machine", "none", "-usbdevice", "mouse"],
            "no usb bus to attach usbdevice mouse, please try -machine usb=on",
        ),
        (["-machine", "pc,nope=1"], "Property 'pc-i440fx-7.2-machine.nope' not found"),
        (["-accel", "nope"], "invalid accelerator nope"),
        (["-accel", "tcg,bogus=1"], "-accel tcg,bogus=1: Property 'tcg-accel.bogus' not found"),
        (["-accel", "tcg,thread=many"], "Invalid 'thread' setting many"),
        (["-machine", "pc,max-ram-below-4g=5G"], "'max-ram-below-4g=5368709120' expects size less than or equal to 4G"),
        (["-machine", "pc,boot.order=z"], "Invalid boot device 'z'"),
        (["-cpu", "nope"], "unable to find CPU model 'nope'"),
        (
            ["-cpu", "qemu64,x=on"],
            "can't apply global qemu64-x86_64-cpu.x=on: Property 'qemu64-x86_64-cpu.x' not found",
        ),
        (["-cpu", "Haswell,stepping=16"], "Property .stepping doesn't take value 16 (minimum: 0, maximum: 15)"),
        (["-cpu", "qemu64,vendor=Me"], "Property '.vendor' doesn't take value 'Me'"),
        (["-cpu", "qemu64,phys-bits=60"], "phys-bits should be between 32 and 52  (but is 60)"),
        (["-cpu", "486,phys-bits=40"], "phys-bits is not user-configurable in 32 bit"),
        (["-accel", "nope", "-accel", "neither"], "-accel neither: invalid accelerator neither"),
        (["-machine", "pc,accel=tcg", "-accel", "tcg"], 'The -accel and "-machine accel=" options are incompatible'),
        (["-icount", "3", "-accel", "tcg,thread=multi"], "No MTTCG when icount is enabled"),
        (["-smp", "-1"], "Invalid SMP CPUs -1. The max CPUs supported by machine 'pc-i440fx-7.2' is 255"),
        (["-smp", "4,sockets=2,cores=2,threads=2"], "cores (2) * threads (2) != maxcpus (4)"),
        (["-m", "64,slots=257,maxmem=1G"], "unsupported amount of memory slots: 257"),
        (["-uuid", "12345678567856781234567812345678"], "failed to parse UUID string: wrong format"),
        (["-serial", "chardev:x"], "could not connect serial device to character backend 'chardev:x'"),
        (["-qmp", "nope"], "-qmp nope: parse error: nope"),
        (["-qmp", "none"], "-qmp none: parse error: none"),
        (["-numa", "node,cpus=0-"], "-numa node,cpus=0-: Parameter 'cpus' expects a uint64 value or range"),
        (["-numa", "node,cpus=3-1"], "-numa node,cpus=3-1: Parameter 'cpus' expects a uint64 value or range"),
        (["-numa", "node,foo=1"], "-numa node,foo=1: Invalid parameter 'foo'"),
        (["-m", "64", "-numa", "node,nodeid=5"], "numa: Node ID missing: 4"),
        (["-qtest", "nope"], 'Failed to initialize device for qtest: "nope"'),
        (["-machine", "pc,append=x"], "-append only allowed with -kernel option"),
        (["-incoming", "nope:x"], "-incoming nope:x: unknown migration protocol: nope:x"),
        (["-incoming", "defer", "-loadvm", "s"], "'incoming' and 'loadvm' options are mutually exclusive"),
        (["-preconfig", "-loadvm", "s"], "'preconfig' and 'loadvm' options are mutually exclusive"),
        (
            ["-drive", "if=none,id=d,driver=null-co,node-name=d"],
            "Device name 'd' conflicts with an existing node name",
        ),
        (["-add-fd", "fd=-1,set=1"], "fd option is required and must be non-negative"),
        (["-add-fd", "fd=4294967295,set=1"], "fd option is required and must be non-negative"),
        (["-netdev", "user,id=n,domainname="], "'domainname' parameter cannot be empty"),
        (["-fw_cfg", "name=opt/a,string="], "name, plus exactly one of file, string and gen_id, are needed"),
        (["-add-fd", "fd=1,set=-1"], "fd cannot be a standard I/O stream"),
        (["-fw_cfg", "name=opt/a,string=b", "-fw_cfg", "name=opt/a,string=c"], "duplicate fw_cfg file name: opt/a"),
        (["-fw_cfg", "name=etc/e820,string=b"], "duplicate fw_cfg file name: etc/e820"),
        (["-blockdev", "null-co,node-name=n,read-only=on", "-device", "ide-hd,drive=n"], "Block node is read-only"),
        (["-device", "ide-hd"], "No drive specified"),
        (
            ["-device", "virtio-rng-pci,disable-modern=on,disable-legacy=on"],
            "neither modern nor legacy mode is enabled",
        ),
        (["-device", "virtio-serial-pci,max_ports=0"], "Maximum number of serial ports not specified"),
        (["-device", "virtio-serial-pci,max_ports=512"], "maximum ports supported: 511"),
        (["-smp", "3,sockets=2,maxcpus=3"], "product of the hierarchy must match maxcpus"),
        (["-smp", "9999"], "The max CPUs supported by machine"),
        (["-smp", "bogus=1"], "Parameter 'smp.bogus' is unexpected"),
        (["-m", "64,maxmem=32M"], "invalid value of maxmem"),
        (["-m", "x"], "Parameter 'size' expects a non-negative number below 2^64"),
        (
            ["-object", "secret,id=x,data=y,format=z"],
            "-object secret,id=x,data=y,format=z: Parameter 'format' does not accept value 'z'",
        ),
        (["-object", "nope,id=x"], "invalid object type: nope"),
        (["-object", "iothread"], "Parameter 'id' is missing"),
        (["-device", "nope"], "'nope' is not a valid device model name"),
        (["-device", "virtio-blk-pci"], "drive property not set"),
        (["-drive", "if=nope"], "unsupported bus type 'nope'"),
        (["-drive", "file=/nowhere/x,if=none"], "/nowhere/x"),
        (["-mon", "chardev=none"], "none"),
        (["-netdev", "hubport,id=x"], "Parameter 'hubid' is missing"),
        (["-add-fd", "set=1"], "fd option is required"),
        (["-rtc", "base=nonsense"], "invalid datetime format"),
        (["-global", "nonsense"], "Invalid parameter 'nonsense'"),
        (["-net", "nope"], "Parameter 'type' does not accept value 'nope'"),
        (["-net", "nic,model=virtio-rng-pci"], "Unsupported NIC model: virtio-rng-pci"),
        (["-echr", "x"], "Bad argument to echr"),
        (["-nic", "nope"], "nope"),
        (["-machine", "pc,pic=off"], "pic=off is not supported by this machine"),
        (["-machine", "memory-backend=m", "-object", "memory-backend-ram,id=m,size=8M", "-m", "4"], "does not match"),
        (["-object", "memory-backend-ram,id=m,size=1M,prealloc-threads=0"], "doesn't take value '0'"),
        (["-numa", "node,cpus=7"], "CPU index (7) should be smaller than maxcpus (1)"),
        (["-numa", "node,mem=1M"], "Parameter -numa node,mem is not supported by this machine type"),
        (["-numa", "node", "-numa", "dist,src=0,dst=5,val=20"], "NUMA node is missing"),
        (["-numa", "cpu,node-id=0,socket-id=0"], "Invalid node-id=0"),
    ],
)
def test_refusals(build: Build, arguments: list[str], text: str) -> None:
    with pytest.raises(QobraError) as caught:
        build(*arguments)
    assert text in caught.value.desc


def test_what_is_odd_is_told_and_taken(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    board = build(
        *("-accel", "nope", "-accel", "tcg", "-smp", "2,sockets=0", "-boot", "splash=/nowhere"),
        *("-fw_cfg", "name=mine,string=x", "-serial", "null", *("-serial", "none") * 3, "-serial", "null"),
    ).board
    assert board is not None and board.accelerator == "tcg" and len(board.cpus) == 2
    told = capsys.readouterr().err
    for text in (
        "-accel nope: invalid accelerator nope\n",
        "falling back to tcg\n",
        "Deprecated CPU topology (considered invalid): CPU topology parameters must be greater than zero\n",
        'externally provided fw_cfg item names should be prefixed with "opt/"\n',
    ):
        assert text in told


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("1970-01-02", 86400),
        ("2020-02-30", 1583020800),
        ("2020-13-01T00:61:00", 1609462860),
        ("2020-01-01T10:00:00Z", 1577872800),
        ("2020-01-01T10:00", 1577836800),
        ("1969-12-31", -86400),
    ],
)
def test_dates_of_the_clock(build: Build, date: str, seconds: int) -> None:
    board: Any = build("-rtc", f"base={date}").board
    assert board.rtc_start == seconds


def test_memory_that_may_come_later_makes_a_node(build: Build) -> None:
    machine = build("-machine", "pc", "-m", "64,maxmem=1G")
    assert [cpu["props"]["node-id"] for cpu in _qmp(machine, "query-cpus-fast")] == [0]
    assert machine.board is not None and machine.board.numa.nodes[0].memory == 64 << 20


def test_memory_of_nodes_on_old_boards_is_in_mebibytes(build: Build) -> None:
    nodes = ("-numa", "node,mem=24,cpus=0", "-numa", "node,mem=8M,cpus=1")
    board = build("-machine", "pc-i440fx-5.0", "-m", "32", "-smp", "2", *nodes).board
    assert board is not None and [node.memory for node in board.numa.nodes.values()] == [24 << 20, 8 << 20]


def test_cpus_say_where_they_are_and_what_a_hypervisor_shows(build: Build) -> None:
    machine = build(
        "-machine", "pc", "-smp", "4,cores=2,threads=2", "-cpu", "qemu64,kvm=off,hv-relaxed,hv-vendor-id=me"
    )
    cpu: Any = machine.board.cpus[3] if machine.board is not None else None
    shown = {
        name: _qmp(machine, "qom-get", path=cpu.path(), property=name) for name in cpu.properties() if name[:3] != "cra"
    }
    assert [shown[f"{part}-id"] for part in ("socket", "die", "core", "thread")] == [0, 0, 1, 1]
    assert (shown["kvm"], shown["hv-relaxed"], shown["hv-vendor-id"], shown["phys-bits"]) == (False, True, "me", 40)
    assert shown["lahf_lm"] is shown["lahf-lm"] is True and shown["vmx-ept"] is False
    with pytest.raises(QobraError, match="No crash occurred"):
        _qmp(machine, "qom-get", path=cpu.path(), property="crash-information")


def test_what_boards_are_told_can_be_asked_for(build: Build) -> None:
    machine = build(
        *("-machine", "q35,boot.order=c,max-ram-below-4g=64M,kernel-irqchip=split,smm=on,sata=off"),
        *("-m", "96M,slots=1,maxmem=1G", "-smp", "2,cores=2"),
    )
    board: Any = machine.board
    told = {name: _qmp(machine, "qom-get", path="/machine", property=name) for name in ("smp", "boot", "memory")}
    assert told["smp"] == {"cpus": 2, "maxcpus": 2, "sockets": 1, "dies": 1, "clusters": 1, "cores": 2, "threads": 1}
    assert told["boot"] == {"order": "c"} and board.boot_order() == "c"
    assert told["memory"] == {"size": 96 << 20, "max-size": 1 << 30, "slots": 1}
    assert _qmp(machine, "qom-get", path="/machine", property="memory-backend") == "/objects/pc.ram"
    assert board.low_memory == 64 << 20 and board.ide is None
    board.memory.store((1 << 32) + (16 << 20), 4, 0x12345678)
    assert bytes(board.ram.view[(80 << 20) : (80 << 20) + 4]) == bytes.fromhex("78563412")


@pytest.mark.parametrize(
    ("architecture", "machine", "place"), [("x86_64", "pc", (4 << 30) - 65536), ("riscv64", "virt", 0x20000000)]
)
def test_firmware_in_a_node(build: Build, tmp_path: Path, architecture: str, machine: str, place: int) -> None:
    size = 65536 if architecture == "x86_64" else 32 << 20
    image = tmp_path / "code"
    image.write_bytes(b"code" + bytes(size - 4))
    node = ("-blockdev", f"file,filename={image},node-name=code,read-only=on")
    board: Any = build(*node, "-machine", f"{machine},pflash0=code", architecture=architecture).board
    assert board.memory.load(place, 4).to_bytes(4, "little") == b"code"
    with pytest.raises(QobraError, match="Property 'cfi.pflash01.drive' can't find value 'nothing'"):
        build("-machine", f"{machine},pflash1=nothing", architecture=architecture)
    with pytest.raises(QobraError, match="mean the same bank"):
        build(
            *node,
            *("-machine", f"{machine},pflash0=code", "-drive", f"if=pflash,file={image},format=raw,readonly=on"),
            architecture=architecture,
        )


def test_modules_are_refused_in_qemus_order(build: Build) -> None:
    memory = ("-object", "memory-backend-ram,id=m,size=64M", "-device", "pc-dimm,memdev=m")
    machine = build("-machine", "pc", "-m", "64M,slots=1,maxmem=1G", *memory)
    for arguments, text in (
        ({"driver": "pc-dimm", "memdev": "m"}, "no free slots available"),
        ({"driver": "pc-dimm"}, "no free slots available"),
    ):
        with pytest.raises(QobraError, match=text):
            _qmp(machine, "device_add", **arguments)
    with pytest.raises(QobraError, match="no slots where allocated"):
        build("-device", "pc-dimm")
    with pytest.raises(QobraError, match="No balloon device has been activated"):
        _qmp(machine, "balloon", value=-1)


def test_controllers_come_and_go_later(build: Build) -> None:
    machine = build("-machine", "pc")
    board: Any = machine.board
    for id, driver in (("u", "piix3-usb-uhci"), ("a", "ich9-ahci")):
        _qmp(machine, "device_add", driver=driver, id=id)
        assert _qmp(machine, "qom-get", path=f"/machine/peripheral/{id}", property="hotpluggable") is True
        slot = _qmp(machine, "qom-get", path=f"/machine/peripheral/{id}", property="addr") >> 3
        _qmp(machine, "device_del", id=id)
        with machine.control:
            board.ports.store(0xAE08, 4, 1 << slot)
        with pytest.raises(QobraError, match="not found"):
            _qmp(machine, "qom-get", path=f"/machine/peripheral/{id}", property="type")
    for driver, text in (
        ("isa-debug-exit", "Bus 'isa.0' does not support hotplugging"),
        ("sd-card", "No 'sd-bus' bus found for device 'sd-card'"),
    ):
        with pytest.raises(QobraError, match=text):
            _qmp(machine, "device_add", driver=driver)


def test_the_port_of_vmware_is_there_unless_it_is_not_wanted(build: Build) -> None:
    for words, value in (("pc", "on"), ("q35,vmport=off", "off")):
        machine = build("-machine", words)
        board: Any = machine.board
        assert [each.type_name for each in find_devices(board, "vmport")] == (["vmport"] if value == "on" else [])
        assert _qmp(machine, "qom-get", path="/machine", property="vmport") == value
        assert board.ports.load(0x5658, 1) == 0xFF


def test_what_devices_settled_on_can_be_asked_for(build: Build) -> None:
    nodes = [each for n in "abcd" for each in ("-blockdev", f"null-co,node-name={n},size=1048576")]
    machine = build(
        *nodes,
        *("-device", "virtio-blk-pci,drive=a,id=v", "-device", "ide-hd,drive=b,id=i", "-device", "virtio-scsi-pci"),
        *("-device", "scsi-hd,drive=c,id=s", "-device", "nvme,serial=x,drive=d,id=n"),
        *("-device", "virtio-rng-pci,disable-legacy=on,id=r"),
    )
    for device, name, value in (
        ("v", "cyls", 2), ("v", "heads", 16), ("v", "secs", 63), ("v", "disable-legacy", "off"),
        ("i", "serial", "QM00003"), ("i", "ver", "2.5+"), ("i", "discard_granularity", 512),
        ("s", "vendor", "QEMU"), ("s", "product", "QEMU HARDDISK"), ("s", "ver", "2.5+"),
        ("s", "discard_granularity", 4096), ("n", "discard_granularity", 4096), ("r", "disable-legacy", "on"),
    ):  # fmt: skip
        assert _qmp(machine, "qom-get", path=f"/machine/peripheral/{device}", property=name) == value, (device, name)


@pytest.mark.parametrize(
    ("arguments", "text"), [(["-bogus"], "-bogus: invalid option"), (["-m"], "-m: requires an argument")]
)
def test_unknown_options(arguments: list[str], text: str) -> None:
    with pytest.raises(QobraError, match=text):
        table.scan(arguments)


def test_questions_are_answered() -> None:
    assert "pc-i440fx-7.2" in (answers.answer("x86_64", "machine", "help") or "")
    assert "rv64" in (answers.answer("riscv64", "cpu", "help") or "")
    assert 'name "virtio-blk-pci", bus PCI' in (answers.answer("x86_64", "device", "help") or "")
    assert "queue-size=<uint16>" in (answers.answer("x86_64", "device", "virtio-blk-pci,help") or "")
    assert "qtest" in (answers.answer("x86_64", "accel", "help") or "")
    assert answers.answer("x86_64", "device", "virtio-blk-pci,drive=x") is None


def test_boards_are_listed_newest_first_and_those_without_versions_last() -> None:
    names = [line.split()[0] for line in (answers.answer("x86_64", "machine", "help") or "").splitlines()[1:]]
    assert names[:3] == ["pc", "pc-i440fx-7.2", "pc-i440fx-7.1"]
    assert names[names.index("q35") + 1] == "pc-q35-7.2" and names[-1] == "none"
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("option", ["--version", "-help"])
def test_the_version_stands_where_launchers_look_for_it(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert system.main("x86_64", [option]) == 0
    words = capsys.readouterr().out.splitlines()[0].split()
    assert words[:4] == ["QEMU", "emulator", "version", "5.2.0"]
    assert len(words) == 5


def test_preconfig_holds_the_board_back() -> None:
    builder = Builder("x86_64", table.scan(["-nodefaults", "-preconfig", "-machine", "pc", "-S"]))
    machine = builder.machine
    with machine.control:
        builder.build_early()
    assert machine.board is not None and not machine.board.cpus
    machine.exit_preconfig = builder._exit_preconfig
    _qmp(machine, "x-exit-preconfig")
    assert len(machine.board.cpus) == 1
    with pytest.raises(QobraError, match="permitted only before machine initialization"):
        _qmp(machine, "x-exit-preconfig")
    machine.close()
    builder.close()


def test_cards_and_shared_terminals(build: Build) -> None:
    machine = build(
        *("-machine", "pc", "-nic", "hubport,hubid=0,model=virtio,mac=52:54:00:00:00:09", "-nic", "none"),
        *("-net", "none"),
        *("-serial", "mon:null"),
    )
    assert _qmp(machine, "query-rx-filter")[0]["main-mac"] == "52:54:00:00:00:09"
    labels = {each["label"] for each in _qmp(machine, "query-chardev")}
    assert {"serial-base0", "serial-mux"} <= labels


def test_cards_and_backends_on_the_hub(build: Build) -> None:
    machine = build(
        *("-machine", "pc", "-net", "nic,model=virtio,macaddr=52-54-0-0-0-8,addr=0x10", "-net", "nic,model=e1000"),
        *("-net", "socket,listen=127.0.0.1:0,id=s", "-echr", "0x14"),
    )
    text = _qmp(machine, "human-monitor-command", **{"command-line": "info network"})
    lines = [line.partition(": index")[0] for line in text.splitlines()]
    assert lines == ["hub 0", " \\ hub0port2: s", " \\ hub0port1: e1000.0", " \\ hub0port0: virtio-net-pci.0"]
    assert "macaddr=52:54:00:00:00:08" in text
    assert 0x10 in [each["slot"] for each in _qmp(machine, "query-pci")[0]["devices"]]
    assert machine.chardevs.escape == 0x14


def test_numa(build: Build) -> None:
    nodes = [*("-numa", "node,nodeid=0,cpus=0-1,memdev=a"), *("-numa", "node,nodeid=1,cpus=2-3,memdev=b")]
    machine = build(
        *("-machine", "pc", "-m", "32M", "-smp", "4", "-S"),
        *("-object", "memory-backend-ram,id=a,size=8M", "-object", "memory-backend-ram,id=b,size=24M"),
        *nodes,
        *("-numa", "dist,src=0,dst=1,val=30"),
    )
    assert [cpu["props"]["node-id"] for cpu in _qmp(machine, "query-cpus-fast")] == [0, 0, 1, 1]
    board: Any = machine.board
    board.memory.store((8 << 20) - 4, 8, 0x1122334455667788)
    second: Any = machine.objects.find("b")
    assert bytes(second.ram.view[:4]).hex() == "44332211"
    assert board.memory.load(8 << 20, 4) == 0x11223344
    assert board.numa.distance(1, 0) == 30
    assert [each["id"] for each in _qmp(machine, "query-memdev")] == ["a", "b"]  # the nodes' and no other
    with pytest.raises(QobraError, match="permitted only before the machine has been created"):
        _qmp(machine, "set-numa-node", type="node")


def test_options_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vm.cfg"
    path.write_text(
        '# a machine\n[memory]\n  size = "64"\n\n[device "d0"]\n  driver = "virtio-rng-pci"\n  addr = "a,b"\n'
    )
    assert readconfig.read_config(str(path)) == [
        ("m", "size=64"),
        ("device", "id=d0,driver=virtio-rng-pci,addr=a,,b"),
    ]
    path.write_text("[memory]\n \nsize = 64\n")
    with pytest.raises(QobraError, match=":2: parse error"):
        readconfig.read_config(str(path))


def test_run_says_it_in_other_words() -> None:
    disks, values, switches, rest = run._parse(["a.qcow2", "--memory=1G", "--cpus", "2", "--paused", "--", "-usb"])
    assert rest == ["-usb"]
    options = run.options(disks, values, switches, "unix:/run/x.qmp")
    table.scan(options)
    text = " ".join(options)
    assert "-m 1G -smp 2 -qmp unix:/run/x.qmp,server=on,wait=off" in text
    assert "-drive file=a.qcow2,if=virtio,id=disk0 -S" in text
    with pytest.raises(ValueError, match="'--bogus' is no option"):
        run._parse(["--bogus"])


def test_devices_are_listed_by_category() -> None:
    text = answers.answer("x86_64", "device", "help")
    assert text is not None
    groups = {block.split("\n")[0]: block.split("\n")[1:] for block in text.rstrip("\n").split("\n\n")}
    assert list(groups)[:4] == [
        *("Controller/Bridge/Hub devices:", "USB devices:", "Storage devices:", "Network devices:"),
    ]
    assert 'name "virtio-blk-pci", bus PCI, alias "virtio-blk"' in groups["Storage devices:"]
    assert 'name "e1000", bus PCI, alias "e1000-82540em", desc "Intel Gigabit Ethernet"' in groups["Network devices:"]
    assert 'name "ib700", bus ISA, desc "iBASE 700"' in groups["Watchdog devices:"]
    assert 'name "pc-dimm", desc "DIMM memory module"' in groups["Uncategorized devices:"]


@pytest.mark.parametrize(
    ("architecture", "options", "text"),
    [
        ("x86_64", ["-kernel", "/nonexistent"], "could not open kernel file '/nonexistent': No such file or directory"),
        ("riscv64", ["-M", "virt", "-kernel", "/nonexistent"], "could not load kernel '/nonexistent'"),
        ("x86_64", ["-M", "none", "-kernel", "/dev/null"], "The -kernel parameter is not supported"),
        ("x86_64", ["-global", "foo"], "-global foo: Invalid parameter 'foo'"),
        ("x86_64", ["-global", "driver=a"], "-global driver=a: options 'driver', 'property', and 'value' are required"),
    ],
)
def test_kernels_and_globals_that_cannot_be(build: Build, architecture: str, options: list[str], text: str) -> None:
    with pytest.raises(QobraError) as caught:
        build(*options, architecture=architecture)
    assert str(caught.value).startswith(text)
