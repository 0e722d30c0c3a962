"""``tcg``: the accelerator that needs nothing of the host. Its CPUs are idle; time passes as on the host."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.accelerator import Accelerator, registry
from qobra.object.property import Bool, Size, String


def _set_thread(accelerator: TcgAccel, value: str) -> None:
    if value not in ("single", "multi"):
        raise QobraError(f"Invalid 'thread' setting {value}")
    accelerator.values["thread"] = value


@registry.register("tcg-accel")
class TcgAccel(Accelerator):
    """CPUs that wait: how they were to be translated is checked, and comes to nothing."""

    type_name = "tcg-accel"

    thread = String("multi", set=_set_thread)
    tb_size = Size(0, type="int", width="uint32", name="tb-size", description="TCG translation block cache size")
    split_wx = Bool(False, name="split-wx", description="Map jit pages into separate RW and RX regions")
