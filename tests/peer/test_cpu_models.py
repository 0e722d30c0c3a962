"""CPU models: their features are those that QEMU's models of the same names have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qobra.machine.cpu_features import FEATURES
from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_OTHERS = ("family", "model", "stepping", "vendor", "model-id", "min-level", "min-xlevel")


def _expand(program: SystemProgram, name: str) -> Any:
    return program.qmp("query-cpu-model-expansion", {"type": "static", "model": {"name": name}})


def test_models(tmp_path: Path) -> None:
    arguments = ("-machine", "none")
    with (
        SystemProgram(tmp_path, "x86_64", *arguments) as own,
        SystemProgram(tmp_path, "x86_64", *arguments, peer=True) as peer,
    ):
        theirs = {each["name"]: each for each in peer.qmp("query-cpu-definitions")}
        for definition in own.qmp("query-cpu-definitions"):
            name = definition["name"]
            model = _expand(own, name)["model"]["props"]
            expected = _expand(peer, name)["model"]["props"]
            for each in theirs[name]["unavailable-features"]:
                expected[each] = True  # their accelerator lacks it, the model does not
            if name != "max":
                assert {key: model[key] for key in (*FEATURES, *_OTHERS)} == {
                    key: expected[key] for key in (*FEATURES, *_OTHERS)
                }, name
            for member in ("static", "migration-safe", "deprecated"):
                assert definition[member] == theirs[name][member], (name, member)
        for name in ("nope", "", "qemu64-x86_64-cpu"):
            assert _expand(own, name) == _expand(peer, name)
