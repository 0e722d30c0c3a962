"""CPU models: what query-cpu-model-expansion says, and what -cpu takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.cpu_features import FEATURES
from qobra.machine.cpuid import feature_words
from qobra.machine.launch import attach_board, find_board, simple_machine
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.testing.waiting import wait_until


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    yield machine
    machine.close()


def _expand(machine: Machine, kind: str, name: str, **props: Any) -> Any:
    with machine.control:
        arguments = {"type": kind, "model": {"name": name, "props": props}}
        return dispatch.call(machine, "query-cpu-model-expansion", arguments)["model"]


def test_a_static_expansion_is_of_the_model_without_features(machine: Machine) -> None:
    model = _expand(machine, "static", "qemu64", avx=True, sse2=False)
    assert model["name"] == "base"
    assert model["props"]["avx"] and not model["props"]["sse2"] and model["props"]["lm"]
    assert set(FEATURES) < model["props"].keys()
    assert _expand(machine, "static", "base", **model["props"])["props"] == model["props"]


def test_a_full_expansion_keeps_the_name(machine: Machine) -> None:
    model = _expand(machine, "full", "max")
    assert model["name"] == "max"
    assert model["props"]["apic-id"] == 0xFFFFFFFF
    assert model["props"]["vendor"] == "AuthenticAMD"


@pytest.mark.parametrize(
    ("name", "props", "text"),
    [
        ("nope", {}, "CPU model 'nope' not found"),
        ("qemu64", {"bogus": True}, "Property 'qemu64-x86_64-cpu.bogus' not found"),
        ("qemu64", {"avx": "x"}, "Invalid parameter type for 'avx', expected: boolean"),
    ],
)
def test_refusals(machine: Machine, name: str, props: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError) as refusal:
        _expand(machine, "full", name, **props)
    assert str(refusal.value) == text


def test_features_of_the_command_line() -> None:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "pc"))
        with pytest.raises(QobraError, match="Property 'qemu64-x86_64-cpu.bogus' not found"):
            board.set_cpu_model("qemu64,+bogus")
        board.set_cpu_model("qemu64,+avx,-sse2,sse4_1=on,svm=off")
        board.set_topology({"cpus": 1})
        board.set_memory(1 << 20)
        board.start()
        cpu = board.cpus[0]
        assert [cpu.get(name) for name in ("avx", "sse2", "sse4.1", "svm", "fpu")] == [True, False, True, False, True]
    machine.close()


def test_time_that_does_not_sleep_leaps_from_timer_to_timer() -> None:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "none"))
        board.accelerator, board.clock_sleeps = "tcg", False
        board.start()
        board.finish()
        seen: list[int] = []
        hour = 3600 * 10**9
        timers = [board.clock.timer(lambda: seen.append(board.clock.now_ns())) for _ in range(2)]
        timers[0].set(2 * hour)
        timers[1].set(hour)
        machine.run_state.start()
    wait_until(lambda: len(seen) == 2)
    assert seen == [hour, 2 * hour]
    machine.close()


def test_models_by_name(machine: Machine) -> None:
    with machine.control:
        names = {each["name"] for each in dispatch.call(machine, "query-cpu-definitions", {})}
    assert {"486", "pentium", "Haswell", "EPYC", "qemu64", "max", "base"} <= names
    haswell, older = _expand(machine, "static", "Haswell")["props"], _expand(machine, "static", "Nehalem")["props"]
    assert haswell["avx2"] and not older["avx2"]
    assert haswell["vendor"] == "GenuineIntel"
    assert all(haswell[name] for name in FEATURES if older[name] and name != "hypervisor")


def test_minus_overrides_plus_and_plus_overrides_values(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    cls: Any = machine.objects.find_type("qemu64-x86_64-cpu")
    parsed = cls.parse_features("-fpu,+fpu,-mce,mce=on,+cx8,cx8=off,sse4_2=on")
    assert dict(parsed) == {"fpu": "off", "mce": "off", "cx8": "on", "sse4.2": "on"}
    warnings = capsys.readouterr().err
    assert 'Don\'t mix both "-mce" and "mce=on"' in warnings
    assert 'Don\'t mix both "+cx8" and "cx8=off"' in warnings


@pytest.mark.parametrize(("architecture", "model"), [("x86_64", "qemu64"), ("riscv64", "rv64")])
def test_a_machine_without_a_board_has_the_cpu_that_is_named(architecture: str, model: str) -> None:
    machine = Machine(capabilities=frozenset(("board", architecture)))
    with machine.control:
        board = attach_board(machine, find_board(architecture, "none"))
        board.set_cpu_model(model)
        board.set_topology({"cpus": 1})
        board.start()
        board.finish()
        assert [cpu["cpu-index"] for cpu in dispatch.call(machine, "query-cpus-fast", {})] == [0]
    machine.close()


def test_words_of_cpuid() -> None:
    def has(name: str) -> bool:
        return name in {"fpu", "mmx", "arat", "xsave", "avx", "svm", "avx-vnni"}

    words = feature_words(has, "AuthenticAMD")
    assert words[1, None, "EDX"] == words[0x80000001, None, "EDX"] == 1 | 1 << 23  # AMD's show them twice
    assert feature_words(has, "GenuineIntel")[0x80000001, None, "EDX"] == 0
    assert words[6, None, "EAX"] == 1 << 2
    assert words[0xD, 0, "EAX"] == 0b111  # what XSAVE saves: x87, SSE, AVX


@pytest.mark.parametrize(
    ("model", "levels"),
    [
        ("486", {"level": 1, "xlevel": 0, "xlevel2": 0}),
        ("486,arat=on,3dnow=on,xstore=on", {"level": 6, "xlevel": 0x80000001, "xlevel2": 0xC0000001}),
        ("486,level=0,arat=on", {"level": 0}),
        ("phenom,svm=on,avx-vnni=on", {"level": 7, "level-func7": 1, "xlevel": 0x8000001A}),
        ("486,arat=on,full-cpuid-auto-level=off", {"level": 1}),
    ],
)
def test_the_highest_leaves_follow_from_the_features(model: str, levels: dict[str, int]) -> None:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "pc"))
        board.set_cpu_model(model)
        board.set_topology({"cpus": 1})
        board.set_memory(1 << 20)
        board.start()
        assert {name: board.cpus[0].get(name) for name in levels} == levels
    machine.close()


def _model(name: str, **props: Any) -> dict[str, Any]:
    return {"name": name, "props": props}


@pytest.mark.parametrize(
    ("first", "second", "result", "because"),
    [
        (_model("qemu64"), {"name": "qemu64-v1"}, "identical", []),
        (_model("Haswell"), _model("Haswell", avx2=False), "superset", ["avx2"]),
        (_model("486"), _model("486", mmx=True, sse=True), "subset", ["mmx", "sse"]),
        (_model("486", mmx=True), _model("486", sse=True), "incompatible", ["mmx", "sse"]),
    ],
)
def test_models_are_compared_by_their_features(
    machine: Machine, first: Any, second: Any, result: str, because: list[str]
) -> None:
    with machine.control:
        answer = dispatch.call(machine, "query-cpu-model-comparison", {"modela": first, "modelb": second})
    assert answer == {"result": result, "responsible-properties": because}


def test_a_baseline_runs_where_either_model_does(machine: Machine) -> None:
    both = {"modela": _model("EPYC"), "modelb": _model("Haswell")}
    with machine.control:
        baseline = dispatch.call(machine, "query-cpu-model-baseline", both)["model"]
        assert baseline["name"] == "base"
        for model in both.values():
            answer = dispatch.call(machine, "query-cpu-model-comparison", {"modela": baseline, "modelb": model})
            assert answer["result"] == "subset"
        assert not {"avx", "aes"} & set(answer["responsible-properties"])  # what both have is kept


@pytest.mark.parametrize("command", ["query-cpu-model-comparison", "query-cpu-model-baseline"])
def test_models_that_cannot_be_compared(machine: Machine, command: str) -> None:
    for wrong, text in (
        (_model("nope"), "CPU model 'nope' not found"),
        (_model("486", nope=True), "Property '486-x86_64-cpu.nope' not found"),
        (_model("486", sse=1), "Invalid parameter type for 'sse', expected: boolean"),
    ):
        for arguments in ({"modela": wrong, "modelb": _model("486")}, {"modela": _model("486"), "modelb": wrong}):
            with pytest.raises(QobraError) as caught, machine.control:
                dispatch.call(machine, command, arguments)
            assert caught.value.desc == text
