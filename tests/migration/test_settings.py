"""Capabilities and parameters."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.migration.settings import CAPABILITIES, DEFAULTS, Settings
from qobra.qapi.contract import contract


def test_every_capability_and_parameter_of_the_contract_is_known() -> None:
    enums = contract().types
    assert list(CAPABILITIES) == list(enums["MigrationCapability"].values)
    assert DEFAULTS.keys() | {"block-bitmap-mapping"} == set(enums["MigrationParameter"].values)


def test_capabilities_are_switched_all_or_none() -> None:
    settings = Settings()
    with pytest.raises(QobraError, match="COLO is not supported"):
        settings.set_capabilities([{"capability": "events", "state": True}, {"capability": "x-colo", "state": True}])
    assert not any(settings.capabilities.values())
    settings.set_capabilities([{"capability": "multifd", "state": False}, {"capability": "events", "state": True}])
    assert settings.capabilities["events"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"compress-level": 10}, "'compress_level' expects a value between 0 and 9"),
        ({"downtime-limit": 2_000_001}, "in the range of 0 to (2000 * 1000) ms"),
        ({"max-cpu-throttle": 10}, "in the range of cpu_throttle_initial to 99"),
        ({"xbzrle-cache-size": 5000}, "a power of two no less than the target page size"),
        ({"x-checkpoint-delay": -1}, "Parameter 'x-checkpoint-delay' expects uint32_t"),
        ({"announce-rounds": 1, "multifd-channels": 0}, "'multifd_channels' expects a value between 1 and 255"),
    ],
)
def test_bad_parameters_change_nothing(changes: dict[str, Any], text: str) -> None:
    settings = Settings()
    with pytest.raises(QobraError) as refused:
        settings.set_parameters(changes)
    assert text in str(refused.value)
    assert settings.describe_parameters() == DEFAULTS


def test_tls_settings_may_be_null_and_a_negative_bandwidth_is_a_large_one() -> None:
    settings = Settings()
    settings.set_parameters({"tls-creds": None, "max-bandwidth": -1})
    assert settings.parameters["tls-creds"] == "" and settings.parameters["max-bandwidth"] == (1 << 64) - 1


def mapped(node: str, alias: str, *bitmaps: tuple[str, str]) -> dict[str, Any]:
    return {"node-name": node, "alias": alias, "bitmaps": [{"name": n, "alias": a} for n, a in bitmaps]}


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ([mapped("a", "x"), mapped("b", "x")], "The node alias 'x' is used twice"),
        ([mapped("a", "x"), mapped("a", "y")], "The node name 'a' is mapped twice"),
        ([mapped("a", "x", ("b", "c"), ("d", "c"))], "The bitmap alias 'x'/'c' is used twice"),
        ([mapped("a", "x", ("b", "c"), ("b", "d"))], "The bitmap 'a'/'b' is mapped twice"),
        ([mapped("a", "1x")], "The node alias '1x' is not well-formed"),
        ([mapped("a" * 32, "x")], "is longer than 31 bytes"),
        ([mapped("a", "x", ("b" * 1024, "c"))], "is longer than 1023 bytes"),
        ([mapped("a", "x", ("b", "c" * 256))], "is longer than 255 bytes"),
    ],
)
def test_a_mapping_of_bitmaps_is_one_to_one(mapping: list[dict[str, Any]], text: str) -> None:
    settings = Settings()
    with pytest.raises(QobraError) as refused:
        settings.set_parameters({"block-bitmap-mapping": mapping})
    assert text in str(refused.value)
    assert "block-bitmap-mapping" not in settings.describe_parameters()
