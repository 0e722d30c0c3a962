"""``none``: sound that nobody hears."""

from __future__ import annotations

from qobra.audio.audiodev import Audiodev, registry


@registry.register("none")
class NoneAudiodev(Audiodev):
    """It takes everything at the pace at which it is played."""

    driver = "none"
