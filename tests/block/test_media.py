"""Trays and media on a device model that does as it is told."""

from __future__ import annotations

import threading

import pytest

from qobra.block import media, query
from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer
from qobra.block.throttle import Limits, Membership
from qobra.errors import DEVICE_NOT_FOUND, QobraError


class _Drive:
    """A drive with a tray (or a disk, if not removable)."""

    def __init__(self, *, removable=True, tray=True):
        self.is_removable = removable
        self.has_tray = tray
        self.tray_open = False
        self.medium_locked = False
        self.requests = []
        self.changes = 0
        self.refuses = False
        self.qom_path = "cd0"

    def matches(self, id):
        return id == "cd0"

    def eject_request(self, force):
        self.requests.append(force)

    def move_tray(self, opened):
        self.tray_open = opened

    def medium_changed(self):
        self.changes += 1
        if self.refuses and self.backend.node is not None:
            raise QobraError("refused")


@pytest.fixture
def events():
    return []


@pytest.fixture
def layer(events):
    made = BlockLayer(emit=lambda name, data: events.append((name, data["tray-open"])))
    yield made
    made.close()


def _drive(layer, **options):
    backend = BlockBackend(layer)
    device = _Drive(**options)
    device.backend = backend
    backend.attach_device(device)
    return backend


def _null(layer, name):
    return layer.add_node({"driver": "null-co", "node-name": name})


def test_a_medium_goes_in_and_out_through_the_tray(layer, events):
    drive = _drive(layer)
    with pytest.raises(QobraError, match="Tray of the device is not open"):
        media.insert_medium(drive, _null(layer, "n"))
    assert media.open_tray(drive, "cd0", force=False)
    media.insert_medium(drive, layer.find_node("n"))
    with pytest.raises(QobraError, match="There already is a medium in the device"):
        media.insert_medium(drive, layer.find_node("n"))
    media.close_tray(drive, "cd0")
    media.eject(drive, "cd0", force=False)
    assert drive.node is None and drive.device.changes == 2
    assert events == [("DEVICE_TRAY_MOVED", True), ("DEVICE_TRAY_MOVED", False), ("DEVICE_TRAY_MOVED", True)]


def test_a_locked_tray_is_asked_for(layer, events):
    drive = _drive(layer)
    drive.device.medium_locked = True
    with pytest.raises(media.TrayLocked, match="is locked and force was not specified"):
        media.open_tray(drive, "cd0", force=False)
    assert drive.device.requests == [False] and events == []
    assert media.open_tray(drive, "cd0", force=True)
    assert drive.device.requests == [False, True] and drive.device.tray_open


def test_disks_are_not_removable(layer):
    drive = _drive(layer, removable=False, tray=False)
    for call in (
        lambda: media.open_tray(drive, "cd0", force=False),
        lambda: media.close_tray(drive, "cd0"),
        lambda: media.remove_medium(drive, "cd0"),
    ):
        with pytest.raises(QobraError, match="Device 'cd0' is not removable"):
            call()


def test_changing_a_medium_keeps_the_old_one_if_the_new_cannot_be_opened(layer, tmp_path, events):
    drive = _drive(layer)
    (tmp_path / "new").write_bytes(b"n" * 512)
    drive.insert(_null(layer, "old"))
    with pytest.raises(QobraError, match="No such file"):
        media.change_medium(drive, "cd0", str(tmp_path / "absent"))
    assert drive.node.node_name == "old" and events == []
    media.change_medium(drive, "cd0", str(tmp_path / "new"), read_only_mode="read-only")
    assert drive.node.driver == "raw" and drive.node.read_only
    assert events == [("DEVICE_TRAY_MOVED", True), ("DEVICE_TRAY_MOVED", False)]
    drive.remove()


def test_devices_are_found_by_exactly_one_name(layer):
    drive = _drive(layer)
    assert media.find_backend(layer, None, "cd0") is drive
    for device, id in ((None, None), ("a", "b")):
        with pytest.raises(QobraError, match="Need exactly one of 'device' and 'id'"):
            media.find_backend(layer, device, id)
    with pytest.raises(QobraError, match="Device 'x' not found") as error:
        media.find_backend(layer, None, "x")
    assert error.value.error_class == DEVICE_NOT_FOUND
    layer.check_device = lambda id: None
    with pytest.raises(QobraError, match="Device does not have a block device backend"):
        media.find_backend(layer, None, "x")


def test_query_block_tells_of_the_tray(layer):
    drive = _drive(layer)
    assert query.block_info(layer) == [
        {"device": "", "type": "unknown", "removable": True, "locked": False, "qdev": "cd0", "tray_open": False}
    ]
    drive.insert(_null(layer, "n"))
    assert query.block_info(layer)[0]["inserted"]["node-name"] == "n"
    drive.remove()


def test_limits_stay_with_the_drive(layer):
    backend = _drive(layer)
    backend.insert(_null(layer, "one"))
    group = layer.throttle_group("g")
    group.set_limits(Limits().updated({"bps-read": 512}))
    backend.throttle = Membership(group)
    media.open_tray(backend, "cd0", force=False)
    media.remove_medium(backend, "cd0")
    media.insert_medium(backend, _null(layer, "two"))
    assert query.device_info(backend.node, backend=backend)["bps_rd"] == 512


def test_requests_that_wait_are_let_go_with_the_medium(layer):
    backend = _drive(layer)
    backend.insert(_null(layer, "one"))
    group = layer.throttle_group("g")
    group.set_limits(Limits().updated({"iops-read": 1}))
    backend.throttle = Membership(group)
    backend.device.tray_open = True
    backend.read(0, 512)
    waiting = threading.Thread(target=backend.read, args=(0, 1 << 20))
    waiting.start()
    while not any(group._turns):
        threading.Event().wait(0.001)
    backend.throttle.release()
    waiting.join(30)
    assert not waiting.is_alive()
    assert group.members == 1


def test_a_medium_that_the_device_refuses_is_out_again(layer):
    backend = _drive(layer, tray=False)
    backend.device.refuses = True
    with pytest.raises(QobraError, match="refused"):
        media.insert_medium(backend, _null(layer, "n"))
    assert backend.node is None
    backend.device.refuses = False
    media.insert_medium(backend, layer.find_node("n"))
