"""What queries return is what the contract says: each mandatory member, no other one, values of the right types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.qmp.writer import plain

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "value": (object,),
}
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "query-cpu-model-expansion": {"type": "static", "model": {"name": "qemu64"}},
    "trace-event-get-state": {"name": "*"},
    "qom-list": {"path": "/machine"},
    "device-list-properties": {"typename": "virtio-blk-pci"},
    "qom-list-properties": {"typename": "iothread"},
    "query-command-line-options": {},
}


class Schema:
    """The types that query-qmp-schema tells of."""

    def __init__(self, machine: Machine) -> None:
        self._entities = {each["name"]: each for each in plain(dispatch.call(machine, "query-qmp-schema", {}))}

    @property
    def commands(self) -> set[str]:
        return {name for name, each in self._entities.items() if each["meta-type"] == "command"}

    def without_arguments(self) -> list[str]:
        """The queries that need none."""
        return [
            name
            for name, each in self._entities.items()
            if each["meta-type"] == "command"
            and name.startswith("query-")
            and all("default" in member for member in self._entities[each["arg-type"]]["members"])
        ]

    def wrong(self, command: str, answer: Any) -> list[str]:
        """What of ``answer`` is not as the schema has it."""
        return list(self._check(self._entities[command]["ret-type"], answer, command))

    def _check(self, type_name: str, value: Any, where: str) -> Iterator[str]:
        entity = self._entities[type_name]
        match entity["meta-type"]:
            case "builtin":
                right = isinstance(value, _KINDS[entity["json-type"]])
                if not right or (isinstance(value, bool) and entity["json-type"] in ("int", "number")):
                    yield f"{where}: {value!r} is no {entity['json-type']}"
            case "enum":
                if value not in entity["values"]:
                    yield f"{where}: {value!r}"
            case "array":
                for each in value:
                    yield from self._check(entity["element-type"], each, f"{where}[]")
            case "alternate":
                if all(list(self._check(each["type"], value, where)) for each in entity["members"]):
                    yield f"{where}: {value!r} is none of them"
            case "object":
                members = self._members(entity, value)
                yield from (f"{where}.{name} is unknown" for name in value.keys() - members.keys())
                for name, member in members.items():
                    if name in value:
                        yield from self._check(member["type"], value[name], f"{where}.{name}")
                    elif "default" not in member:
                        yield f"{where}.{name} is missing"

    def _members(self, entity: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
        members = {each["name"]: each for each in entity["members"]}
        for variant in entity.get("variants", ()):
            if variant["case"] == value.get(entity["tag"]):
                members |= self._members(self._entities[variant["type"]], value)
        return members


_DEVICES = ("virtio-balloon-pci", "virtio-net-pci", "virtio-scsi-pci", "virtio-serial-pci")


@pytest.fixture(params=["x86_64", "riscv64"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    is_pc = request.param == "x86_64"
    room: dict[str, int] = {"max_memory": 1 << 30, "slots": 2} if is_pc else {}
    machine = simple_machine(request.param, "pc" if is_pc else "virt", memory=32 << 20, cpus=2, **room)
    board: Any = machine.board
    with machine.control:
        board.ready = False  # as if the command line had named the devices
        for driver in _DEVICES:
            add_device(machine, {"driver": driver, "id": driver}, keyval=False)
        add_device(machine, {"driver": "pci-bridge", "chassis_nr": 1}, keyval=False)
        if is_pc:
            add_device(machine, {"driver": "vmgenid", "guid": "auto"}, keyval=False)
        board.ready = True
        machine.objects.create("iothread", "loop", {})
        machine.objects.create("memory-backend-ram", "m", {"size": 2 << 20})
        if is_pc:
            add_device(machine, {"driver": "pc-dimm", "memdev": "m"}, keyval=False)
        dispatch.call(machine, "blockdev-add", {"driver": "null-co", "node-name": "n"})
        dispatch.call(machine, "chardev-add", {"id": "c", "backend": {"type": "null", "data": {}}})
    yield machine
    machine.close()


def test_answers_are_as_the_contract_has_them(machine: Machine) -> None:
    with machine.control:
        schema = Schema(machine)
        answered = 0
        for command in {*schema.without_arguments(), *_ARGUMENTS} & schema.commands:
            try:
                answer = plain(dispatch.call(machine, command, _ARGUMENTS.get(command, {})))
            except QobraError:
                continue  # there is no such thing on this machine
            assert schema.wrong(command, answer) == []
            answered += 1
    assert answered > 45


def test_a_machine_that_no_other_follows(machine: Machine) -> None:
    with machine.control:
        status = dispatch.call(machine, "query-colo-status", {})
    assert status == {"mode": "none", "last-mode": "none", "reason": "none"}
