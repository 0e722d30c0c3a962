"""Images to play with."""

from __future__ import annotations

import pytest

from qobra.testing.images import ImageLab


@pytest.fixture
def lab(tmp_path):
    return ImageLab(tmp_path)
