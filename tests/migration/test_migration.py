"""Migration between two machines: what arrives, in which order things are told, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device, plug_in
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, ModernPci, PciFunction, start_driver

Make = Callable[..., Any]


@pytest.mark.parametrize(("architecture", "board"), [("x86_64", "pc"), ("x86_64", "q35"), ("riscv64", "virt")])
def test_memory_and_time_arrive_and_the_guest_runs_on(pair_of: Make, architecture: str, board: str) -> None:
    start = 0x80000000 if architecture == "riscv64" else 0
    pair = pair_of(lambda: simple_machine(architecture, board, memory=4 << 20))
    source, destination = pair.source, pair.destination
    with source.control:
        source.board.memory.write(start + 0x123456, b"somewhere")
        source.board.clock.set(5_000_000_000)
        source.run_state.start()
    pair.migrate()
    assert pair.events[source] == [
        "RESUME", "setup", "MIGRATION_PASS", "active", "STOP", "MIGRATION_PASS", "completed",
    ]  # fmt: skip
    assert pair.events[destination] == ["setup", "active", "RESUME", "completed"]
    assert (source.run_state.state, destination.run_state.state) == ("postmigrate", "running")
    assert destination.board.memory.read(start + 0x123456, 9) == b"somewhere"
    assert destination.board.clock.now_ns() == 5_000_000_000


def test_who_hears_that_the_guest_runs_finds_the_migration_completed(pair_of: Make) -> None:
    pair = pair_of()
    destination, seen = pair.destination, []

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "RESUME":
            destination.control.post(lambda: seen.append(destination.migration.describe()["status"]))

    destination.events.subscribe(hear)
    with pair.source.control:
        pair.source.run_state.start()
    pair.migrate()
    assert seen == ["completed"]


def test_statistics_tell_what_was_sent(pair_of: Make) -> None:
    pair = pair_of()
    with pair.source.control:
        pair.source.board.memory.write(0x200000, b"\x55" * 3 * 4096)
    pair.migrate()
    ram = pair.source.migration.describe()["ram"]
    assert ram["total"] >= 4 << 20 and ram["remaining"] == 0
    assert ram["normal"] + ram["duplicate"] == ram["total"] // 4096
    assert ram["normal-bytes"] == ram["normal"] * 4096 < ram["transferred"] < ram["total"]


@pytest.mark.parametrize("state", ["prelaunch", "paused", "shutdown"])
def test_a_machine_that_does_not_run_arrives_as_it_is(pair_of: Make, state: str) -> None:
    pair = pair_of()
    with pair.source.control:
        if state != "prelaunch":
            pair.source.run_state.start()
            pair.source.run_state.stop(state)
    pair.migrate()
    assert pair.destination.run_state.state == state
    assert pair.source.run_state.state == "postmigrate"


def test_a_paused_destination_does_not_start(pair_of: Make) -> None:
    pair = pair_of()
    with pair.source.control:
        pair.source.run_state.start()
    pair.destination.run_state.autostart = False
    pair.migrate()
    assert pair.destination.run_state.state == "paused"


def test_pause_before_switchover(pair_of: Make) -> None:
    pair = pair_of()
    paused = threading.Event()
    pair.set_capability("pause-before-switchover")
    pair.source.events.subscribe(
        lambda event: paused.set() if event.get("data", {}).get("status") == "pre-switchover" else None
    )
    with pair.source.control:
        pair.source.run_state.start()
    pair.start()
    assert paused.wait(60)
    with pair.source.control:
        assert pair.source.run_state.state == "finish-migrate"
        with pytest.raises(QobraError, match="Migration not in expected state: pre-switchover"):
            pair.source.migration.go_on("active")
        with pytest.raises(QobraError, match="There's a migration process in progress"):
            pair.source.migration.start("exec:cat>/dev/null")
        pair.source.migration.go_on("pre-switchover")
    assert pair.source.migration.wait(60) and pair.destination.migration.wait(60)
    assert pair.events[pair.source][-3:] == ["device", "MIGRATION_PASS", "completed"]
    assert pair.destination.run_state.running


def test_cancelled_while_it_waits_the_guest_goes_on_here(pair_of: Make) -> None:
    pair = pair_of()
    paused = threading.Event()
    pair.set_capability("pause-before-switchover")
    pair.source.events.subscribe(
        lambda event: paused.set() if event.get("data", {}).get("status") == "pre-switchover" else None
    )
    with pair.source.control:
        pair.source.run_state.start()
    pair.start()
    assert paused.wait(60)
    with pair.source.control:
        pair.source.migration.cancel()
    assert pair.source.migration.wait(60) and pair.destination.migration.wait(60)
    assert pair.source.run_state.running
    assert pair.events[pair.source][-3:] == ["cancelling", "cancelled", "RESUME"]
    assert pair.destination.run_state.exit_status == 1 and pair.destination.wait_for_exit(0)


def _with_standby() -> Machine:
    machine = simple_machine("x86_64", "q35", memory=4 << 20)
    board: Any = machine.board
    with machine.control:
        for number in range(2):
            machine.netdevs.create({"type": "hubport", "id": f"n{number}", "hubid": number})
        board.ready = False
        add_device(machine, {"driver": "pcie-root-port", "id": "rp", "chassis": "1", "addr": "4"}, keyval=True)
        standby = {"driver": "virtio-net-pci", "id": "sb", "netdev": "n0", "failover": "on", "addr": "3"}
        add_device(machine, standby, keyval=True)
        board.ready = True
        primary = {"driver": "e1000", "id": "pr", "netdev": "n1", "failover_pair_id": "sb", "bus": "rp"}
        plug_in(machine, primary, keyval=True)
    return machine


def test_a_card_that_another_stands_by_for_leaves_first(pair_of: Make) -> None:
    pair = pair_of(_with_standby)
    function = PciFunction(BoardAccess(pair.source), 3 << 3)
    function.enable()
    driver = ModernPci(function)
    start_driver(driver, 1 << 62 | 1 << 32)
    waits = threading.Event()
    pair.source.events.subscribe(
        lambda event: waits.set() if event.get("data", {}).get("status") == "wait-unplug" else None
    )
    board: Any = pair.source.board
    with pair.source.control:
        pair.source.run_state.start()
    pair.start()
    assert waits.wait(60)
    with pair.source.control:
        board.peripheral.children["pr"].unparent()  # as once the guest has let go
    assert pair.source.migration.wait(60) and pair.destination.migration.wait(60)
    expected = ["setup", "UNPLUG_PRIMARY", "wait-unplug", "MIGRATION_PASS", "active"]
    assert [event for event in pair.events[pair.source] if event in expected][:5] == expected
    assert "DEVICE_DELETED" not in pair.events[pair.source]  # it comes back, or is there at the destination
    arrived: Any = pair.destination.board
    assert "FAILOVER_NEGOTIATED" in pair.events[pair.destination]
    assert arrived.peripheral.children["pr"].realized


def test_a_card_that_leaves_after_the_migration_was_cancelled_comes_back(pair_of: Make) -> None:
    pair = pair_of(_with_standby)
    source = pair.source
    function = PciFunction(BoardAccess(source), 3 << 3)
    function.enable()
    start_driver(ModernPci(function), 1 << 62 | 1 << 32)
    waits, cancels = threading.Event(), threading.Event()

    def listen(event: dict[str, Any]) -> None:
        status = event.get("data", {}).get("status")
        if status in ("wait-unplug", "cancelling"):
            (waits if status == "wait-unplug" else cancels).set()

    source.events.subscribe(listen)
    board: Any = source.board
    with source.control:
        source.run_state.start()
    pair.start()
    assert waits.wait(60)
    with source.control:
        source.migration.cancel()
    assert cancels.wait(60) and not source.migration.wait(0.2)
    leaving = board.peripheral.children["pr"]
    with source.control:
        assert source.migration.describe()["status"] == "cancelling"
        leaving.unparent()  # as once the guest has let go
    assert source.migration.wait(60)
    with source.control:
        assert source.migration.describe()["status"] == "cancelled"
        assert board.peripheral.children["pr"].realized and board.peripheral.children["pr"] is not leaving
    assert "DEVICE_DELETED" not in pair.events[source]


def test_memory_that_changes_meanwhile_is_sent_again(pair_of: Make) -> None:
    pair = pair_of()
    paused = threading.Event()
    pair.set_capability("pause-before-switchover")
    pair.source.events.subscribe(
        lambda event: paused.set() if event.get("data", {}).get("status") == "pre-switchover" else None
    )
    memory = pair.source.board.memory
    memory.write(0x100000, b"old")
    view = memory.ram(0x101000, 16, writable=True)  # as a device holds it
    view[:3] = b"old"
    pair.start()
    assert paused.wait(60)
    memory.write(0x100000, b"new")
    view[:3] = b"NEW"
    memory.write(0x102000, b"fresh")
    with pair.source.control:
        pair.source.migration.go_on("pre-switchover")
    assert pair.source.migration.wait(60) and pair.destination.migration.wait(60)
    there = pair.destination.board.memory
    assert (there.read(0x100000, 3), there.read(0x101000, 3), there.read(0x102000, 5)) == (b"new", b"NEW", b"fresh")


def test_another_machine_type_is_refused_by_the_destination(pair_of: Make, capsys: pytest.CaptureFixture[str]) -> None:
    types = iter(("pc", "q35"))
    pair = pair_of(lambda: simple_machine("x86_64", next(types), memory=4 << 20))
    pair.migrate()
    told = capsys.readouterr().err
    assert "Machine type received is 'pc-i440fx-7.2' and local is 'pc-q35-7.2'" in told
    assert "load of migration failed: Invalid argument" in told
    assert pair.events[pair.destination][-1] == "failed"


def test_a_device_too_many_or_too_few_is_named(pair_of: Make, capsys: pytest.CaptureFixture[str]) -> None:
    for more_here in (True, False):
        pair = pair_of()
        machine = pair.source if more_here else pair.destination
        with machine.control:
            add_device(machine, {"driver": "virtio-rng-pci", "addr": "7"}, keyval=True)
        pair.migrate()
        told = capsys.readouterr().err
        assert ("Unknown savevm section" if more_here else "Missing section of device") in told
        assert "0000:00:07.0/virtio-rng-pci" in told or "0000:00:07.0/virtio-bus" in told


def test_memory_of_another_size_is_refused(pair_of: Make, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = iter((4 << 20, 8 << 20))
    pair = pair_of(lambda: simple_machine("x86_64", "pc", memory=next(sizes)))
    pair.migrate()
    assert "Size mismatch: pc.ram: 0x400000 != 0x800000" in capsys.readouterr().err


def test_a_device_without_declared_state_keeps_the_machine_here(pair_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of()
    with pair.source.control:
        device = add_device(pair.source, {"driver": "pvpanic-pci", "addr": "6"}, keyval=True)
        monkeypatch.setattr(type(device), "migrates", False)
        with pytest.raises(QobraError, match="State blocked by non-migratable device '0000:00:06.0/pvpanic-pci'"):
            pair.source.migration.start("exec:cat>/dev/null")


def test_uuids_must_match_if_they_are_sent(pair_of: Make, capsys: pytest.CaptureFixture[str]) -> None:
    import uuid

    pair = pair_of()
    pair.set_capability("validate-uuid")
    pair.source.uuid = uuid.UUID(int=1)
    pair.migrate()
    assert "UUID received is 00000000-0000-0000-0000-000000000001 and local is 0" in capsys.readouterr().err


# -- commands


@pytest.fixture
def machine() -> Any:
    made = simple_machine("x86_64", "pc", memory=1 << 20)
    yield made
    made.close()


def call(machine: Machine, name: str, **arguments: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, name, {key.replace("_", "-"): value for key, value in arguments.items()})


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("migrate", {"uri": "nowhere"}, "Parameter 'uri' expects a valid migration protocol"),
        ("migrate", {"uri": "fd:none"}, "File descriptor named 'none' has not been found"),
        ("migrate-incoming", {"uri": "tcp::0"}, "'-incoming' was not specified on the command line"),
        ("migrate-continue", {"state": "pre-switchover"}, "Migration not in expected state: none"),
        ("migrate-start-postcopy", {}, "Enable postcopy with migrate_set_capability before the start of migration"),
    ],
)
def test_refusals(machine: Machine, name: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError, match=text):
        call(machine, name, **arguments)


def test_a_failed_connection_is_told_by_query_migrate(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    call(machine, "migrate", uri="unix:/nonexistent/socket")
    assert machine.migration.wait(60)
    info = call(machine, "query-migrate")
    assert info["status"] == "failed"
    assert info["error-desc"] == "Failed to connect to '/nonexistent/socket': No such file or directory"
    assert machine.run_state.state == "prelaunch"


def test_to_a_file_and_back(machine: Machine, tmp_path: Any) -> None:
    machine.board.memory.write(0x8000, b"kept in a file")
    call(machine, "migrate", uri=f"exec:cat > {tmp_path}/a")
    assert machine.migration.wait(60) and call(machine, "query-migrate")["status"] == "completed"
    other = simple_machine("x86_64", "pc", memory=1 << 20)
    try:
        with other.control:
            other.migration.expect()
            other.run_state.incoming = "defer"
            other.migration.listen(f"file:{tmp_path}/a")
        assert other.migration.wait(60) and other.run_state.state == "prelaunch"
        assert other.board.memory.read(0x8000, 14) == b"kept in a file"
    finally:
        other.close()


def test_over_tcp_the_port_is_told(pair_of: Make) -> None:
    pair = pair_of()
    with pair.destination.control:
        pair.destination.migration.expect()
        pair.destination.run_state.incoming = "defer"
        pair.destination.migration.listen("tcp:127.0.0.1:0")
        (address,) = pair.destination.migration.describe()["socket-address"]
    assert address["type"] == "inet" and address["host"] == "127.0.0.1"
    call(pair.source, "migrate", uri=f"tcp:127.0.0.1:{address['port']}")
    assert pair.source.migration.wait(60) and pair.destination.migration.wait(60)
    assert pair.source.run_state.state == "postmigrate"
    assert pair.destination.migration.describe() == {"status": "completed"}


def test_the_source_may_go_on_after_all(pair_of: Make) -> None:
    pair = pair_of()
    pair.migrate()
    with pytest.raises(QobraError, match="Can't migrate the vm that was paused due to previous migration"):
        call(pair.source, "migrate", uri="exec:cat >/dev/null")
    call(pair.source, "cont")
    assert pair.source.run_state.running


def test_bandwidth_bounds_what_is_sent(machine: Machine) -> None:
    machine.board.memory.write(0, bytes(range(256)) * 3000)  # about 750 KiB
    call(machine, "migrate-set-parameters", max_bandwidth=1 << 20)
    call(machine, "migrate", uri="exec:cat >/dev/null")
    assert machine.migration.wait(60)
    assert call(machine, "query-migrate")["total-time"] > 400


def test_without_the_capability_only_the_wait_is_told_of(pair_of: Make) -> None:
    pair = pair_of()
    for machine in (pair.source, pair.destination):
        machine.migration.set_capabilities([{"capability": "events", "state": False}])
    pair.migrate()
    told = [event for events in pair.events.values() for event in events if event not in ("STOP", "RESUME")]
    assert told == ["setup"]


def test_a_wait_at_no_address_is_told_of_too(pair_of: Make) -> None:
    pair = pair_of()
    destination = pair.destination
    with destination.control:
        destination.migration.expect()
        destination.run_state.incoming = "defer"
        with pytest.raises(QobraError, match="^unknown migration protocol: foo$"):
            destination.migration.listen("foo")
    assert pair.events[destination] == ["setup"]
