"""``tcg``: the accelerator that needs nothing of the host. Its CPUs are idle; time passes as on the host."""

from __future__ import annotations

from qobra.machine.accelerator import Accelerator, registry


@registry.register("tcg-accel")
class TcgAccel(Accelerator):
    """CPUs that wait."""

    type_name = "tcg-accel"
