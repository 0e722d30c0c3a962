"""Properties that are sets of small numbers: CPUs, NUMA nodes."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.object.property import Property
from qobra.units import decimal

_MAX = 0xFFFF


class NumberList(Property):
    """Numbers below 65536. An option's text has them one by one or as a range (``0-3``), and may be repeated."""

    expected = "array"

    def __init__(self, *, maximum: int = _MAX, **options: Any) -> None:
        super().__init__("int", (), **options)
        self.maximum = maximum

    def write(self, instance: Any, value: Any, *, keyval: bool = False) -> None:
        super().write(instance, self.convert(value) if keyval else value)

    def convert(self, text: Any) -> list[int]:
        texts = text if isinstance(text, list) else [text]
        return [number for each in texts for number in self._range(each)]

    def check(self, value: Any) -> list[int]:
        if not isinstance(value, list):
            raise self.mismatch()
        for index, number in enumerate(value):
            if isinstance(number, bool) or not isinstance(number, int):
                raise QobraError(f"Parameter '{self.name}[{index}]' expects uint64")
            if not 0 <= number <= _MAX:
                raise QobraError("Parameter 'null' expects uint16_t")
            if number > self.maximum:
                raise QobraError(f"Invalid {self.name} value: {number}")
        return sorted(set(value))

    def show(self, value: Any) -> list[int]:
        return list(value)

    def _range(self, text: Any) -> range:
        low, dash, high = text.partition("-") if isinstance(text, str) else ("", "", "")
        first, last = decimal(low), decimal(high if dash else low)
        if first is None or last is None or last < first:
            raise QobraError(f"Parameter '{self.name}' expects a uint64 value or range")
        if last > _MAX:
            raise QobraError("Parameter 'null' expects uint16_t")
        return range(first, last + 1)
