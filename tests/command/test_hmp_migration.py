"""The human monitor's commands for migration."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.qmp import hmp


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    yield machine
    machine.close()


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        ("max-bandwidth", "3", "3145728 bytes/second"),
        ("max-bandwidth", "1.5", "1572864 bytes/second"),
        ("max-bandwidth", "3k", "3072 bytes/second"),
        ("max-postcopy-bandwidth", "300", "300"),
        ("downtime-limit", "1k", "1024 ms"),
        ("compress-level", "0x9", "9"),
        ("block-incremental", "on", "on"),
    ],
)
def test_parameters(machine: Machine, parameter: str, text: str, value: str) -> None:
    assert hmp.execute(machine, f"migrate_set_parameter {parameter} {text}") == ""
    assert f"{parameter}: {value}\r\n" in hmp.execute(machine, "info migrate_parameters")


@pytest.mark.parametrize(
    ("parameter", "text", "complaint"),
    [
        ("max-bandwidth", "-1", "Invalid size -1"),
        ("max-bandwidth", "99999999999999999999", "Invalid size 99999999999999999999"),
        ("max-postcopy-bandwidth", "-1", "Parameter 'max-postcopy-bandwidth' expects a non-negative number below 2^64"),
        ("downtime-limit", "99999999999999999999", "is out of range for parameter 'downtime-limit'"),
        ("compress-level", "1k", "Parameter 'compress-level' expects uint64"),
        ("compress-level", "99999999999999999999", "Parameter 'compress-level' expects uint64"),
    ],
)
def test_what_is_no_value_of_a_parameter(machine: Machine, parameter: str, text: str, complaint: str) -> None:
    before = hmp.execute(machine, "info migrate_parameters")
    assert complaint in hmp.execute(machine, f"migrate_set_parameter {parameter} {text}")
    assert hmp.execute(machine, "info migrate_parameters") == before


def test_a_migration_that_does_not_run_is_not_paused_or_recovered(machine: Machine) -> None:
    told = hmp.execute(machine, "migrate_pause")
    assert told == "Error: migrate-pause is currently only supported during postcopy-active state\r\n"
    told = hmp.execute(machine, "migrate_recover tcp:localhost:1")
    assert told == "Error: Migrate recover can only be run when postcopy is paused.\r\n"
