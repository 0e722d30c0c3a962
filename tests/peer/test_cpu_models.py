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
        assert theirs.keys() - {"host"} == {each["name"] for each in own.qmp("query-cpu-definitions")}
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
            for member in ("static", "migration-safe", "deprecated", "alias-of", "typename"):
                assert definition.get(member) == theirs[name].get(member), (name, member)
        for name in ("nope", "", "qemu64-x86_64-cpu"):
            assert _expand(own, name) == _expand(peer, name)


def test_boards_from_before_models_had_versions_tell_of_no_aliases(tmp_path: Path) -> None:
    for version, expected in (("4.0", False), ("4.1", True)):
        with SystemProgram(tmp_path, "x86_64", "-machine", f"pc-i440fx-{version}") as own:
            definitions = own.qmp("query-cpu-definitions")
            assert any("alias-of" in each for each in definitions) == expected


_PLACE = ("cpuid-input-eax", "cpuid-input-ecx", "cpuid-register")


@pytest.mark.parametrize(
    "model",
    [
        "Snowridge,svm=on,npt=on,xstore=on,sgx=on,sgx1=on,sgx-kss=on",
        "EPYC-Milan,intel-pt=on,amx-tile=on,amx-int8=on",
        "base,vendor=AuthenticAMD,mmx=on,xsave=on,avx=on,avx512f=on,avx-vnni=on",
        "486,level=2,xlevel=0x80000003,arat=on,svm=on",
        "phenom,invtsc=on,full-cpuid-auto-level=off",
    ],
)
def test_words_of_cpuid(tmp_path: Path, model: str) -> None:
    arguments = ("-machine", "pc", "-m", "2", "-net", "none", "-cpu", model)
    seen = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            path = program.qmp("query-cpus-fast")[0]["qom-path"]
            words: dict[tuple[Any, ...], int] = {}
            for name in ("feature-words", "filtered-features"):  # their accelerator lacks some
                for word in program.qmp("qom-get", {"path": path, "property": name}):
                    place = tuple(word.get(key) for key in _PLACE)
                    words[place] = words.get(place, 0) | word["features"]
            levels = ("level", "level-func7", "xlevel", "xlevel2")
            seen.append((words, [program.qmp("qom-get", {"path": path, "property": name}) for name in levels]))
    assert seen[0] == seen[1]
