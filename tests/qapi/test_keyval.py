"""key=value options, as qemu-storage-daemon 7.2 takes them (see tests/peer/test_schema_peer.py)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.qapi import keyval
from qobra.qapi.contract import contract
from qobra.qapi.convert import parse_size

PARSED = [
    ("", {}),
    ("a=b", {"a": "b"}),
    ("a=b,", {"a": "b"}),
    ("a=", {"a": ""}),
    ("a=b=c", {"a": "b=c"}),
    ("a=x,,y,b=,,", {"a": "x,y", "b": ","}),
    ("a=1,a=2", {"a": "2"}),
    ("a.b.c=1,a.b.d=2,a.e=3", {"a": {"b": {"c": "1", "d": "2"}, "e": "3"}}),
    ("l.1=b,l.0=a", {"l": ["a", "b"]}),
    ("l.0.x=1,l.1.0=2", {"l": [{"x": "1"}, ["2"]]}),
    ("__org.example_x=1", {"__org.example_x": "1"}),
    ("a-b_c=1", {"a-b_c": "1"}),
    ("a" * 127 + "=1", {"a" * 127: "1"}),
    ("__x-y.z9_a.b=1", {"__x-y.z9_a": {"b": "1"}}),
]

WRONG = [
    ("a", "Expected '=' after parameter 'a'"),
    ("a=b,c", "Expected '=' after parameter 'c'"),
    ("=x", "Invalid parameter ''"),
    (",a=b", "Invalid parameter ''"),
    (".a=1", "Invalid parameter '.a'"),
    ("a..b=1", "Invalid parameter 'a..b'"),
    ("a.=1", "Invalid parameter 'a.'"),
    ("0=1", "Invalid parameter '0'"),
    ("1a=1", "Invalid parameter '1a'"),
    ("-a=1", "Invalid parameter '-a'"),
    ("é=1", "Invalid parameter 'é'"),
    ("__a=1", "Invalid parameter '__a'"),
    ("__a!b_c=1", "Invalid parameter '__a!b_c'"),
    ("__a_=1", "Invalid parameter '__a_'"),
    ("__é_a=1", "Invalid parameter '__é_a'"),
    ("a=1,a.b=2", "Parameters 'a.*' used inconsistently"),
    ("a.b=2,a=1", "Parameters 'a.*' used inconsistently"),
    ("l.0=a,l.2=b", "Parameter 'l.1' missing"),
    ("l.99999999999=a", "Parameter 'l.0' missing"),
    ("l.0=a,l.x=b", "Parameters 'l.*' used inconsistently"),
    ("a" * 128 + "=1", f"Parameter '{'a' * 128}' is too long"),
    ("x." + "a" * 128 + "=1", f"Parameter fragment '{'a' * 128}' is too long"),
    ("help", "Help is not available for this option"),
    ("a=b,?", "Help is not available for this option"),
]


@pytest.mark.parametrize(("text", "expected"), PARSED)
def test_parse(text: str, expected: dict[str, Any]) -> None:
    assert keyval.parse(text) == expected


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_what_cannot_be_parsed(text: str, expected: str) -> None:
    with pytest.raises(QobraError) as caught:
        keyval.parse(text)
    assert caught.value.desc == expected


def test_the_implied_key() -> None:
    assert keyval.parse("qcow2,file=a", "driver") == {"driver": "qcow2", "file": "a"}
    with pytest.raises(QobraError, match="Invalid parameter ''"):
        keyval.parse("a,,b", "driver")  # no comma can be in it
    assert keyval.parse("driver=raw", "driver") == {"driver": "raw"}
    with pytest.raises(QobraError, match="Expected '=' after parameter 'b'"):
        keyval.parse("a,b", "driver")


@given(st.text(alphabet="ab01.,=_-?é", max_size=30), st.sampled_from([None, "k"]))
def test_garbage_raises_nothing_but_errors(text: str, implied: str | None) -> None:
    try:
        assert isinstance(keyval.parse(text, implied), dict)
    except QobraError as error:
        assert error.desc


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_-]{0,5}", fullmatch=True), st.text(max_size=10), max_size=5))
def test_any_value_survives_with_its_commas_doubled(values: dict[str, str]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in values.items())
    assert keyval.parse(text) == values


class TestConversion:
    def _blockdev(self, text: str) -> Any:
        return contract().check("BlockdevOptions", keyval.parse(text, "driver"), keyval=True)

    def test_types(self) -> None:
        assert self._blockdev("qcow2,read-only=on,file.driver=file,file.filename=a,l2-cache-size=010,backing=") == {
            "driver": "qcow2",
            "read-only": True,
            "file": {"driver": "file", "filename": "a"},
            "l2-cache-size": 8,
            "backing": "",
        }
        assert self._blockdev("quorum,vote-threshold=0x2,children.0=a,children.1.driver=null-co") == {
            "driver": "quorum",
            "vote-threshold": 2,
            "children": ["a", {"driver": "null-co"}],
        }
        options = {"driver": "file", "filename": "x", "size": "64k"}
        assert contract().check("BlockdevCreateOptions", options, keyval=True)["size"] == 65536

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("driver=null-co,size=1M", "Parameter 'size' expects integer"),
            ("driver=null-co,size=12 ", "Parameter 'size' expects integer"),
            ("driver=null-co,size=", "Parameter 'size' expects integer"),
            ("driver=null-co,latency-ns=99999999999999999999", "Parameter 'latency-ns' expects integer"),
            ("driver=null-co,read-only=1", "Parameter 'read-only' expects 'on' or 'off'"),
            ("driver=null-co,cache=on", "Invalid parameter type for 'cache', expected: object"),
            ("driver=null-co,cache.zz=1", "Parameter 'cache.zz' is unexpected"),
            ("driver=null-co,node-name.x=1", "Parameters 'node-name.*' are unexpected"),
            ("driver=quorum,vote-threshold=1,children.0.driver=file", "Parameter 'children.0.filename' is missing"),
            ("driver=quorum,vote-threshold=1,children=x", "Invalid parameter type for 'children', expected: array"),
            ("driver=blkdebug,image=x,max-transfer=4294967296", "Parameter 'max-transfer' expects int32_t"),
            ("driver=raw,file.0=x", "Invalid parameter type for 'file', expected: BlockdevRef"),
            ("driver=zz", "Parameter 'driver' does not accept value 'zz'"),
            ("", "Parameter 'driver' is missing"),
        ],
    )
    def test_what_does_not_fit(self, text: str, expected: str) -> None:
        with pytest.raises(QobraError) as caught:
            self._blockdev(text)
        assert caught.value.desc == expected


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("64k", 65536),
        ("64K", 65536),
        ("1.5G", 3 << 29),
        ("0x200", 512),
        ("1b", 1),
        ("15E", 15 << 60),
        ("16E", None),
        ("16383P", 16383 << 50),
        ("1T", 1 << 40),
        ("1kk", None),
        ("1.2", None),
        ("-1", None),
        ("", None),
        ("k", None),
        ("1.k", 1024),
        (".5k", None),
        ("0x", None),
        ("1 k", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size
