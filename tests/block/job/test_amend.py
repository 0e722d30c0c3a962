"""x-blockdev-amend as a job."""

from __future__ import annotations

import pytest

from qobra.block.job.amend import AmendJob
from qobra.errors import QobraError


def amend(layer, node, **options):
    with layer.control:
        job = AmendJob(layer.jobs, "a", node, options, False)
        job.start()
    layer.wait_status("a", "concluded")
    return job


def test_nothing_to_change(layer, qcow2):
    qcow2("disk")
    amend(layer, "disk", driver="qcow2")
    assert layer.story() == ["created", "running", "waiting", "pending", "concluded"]


def test_what_is_not_encrypted_has_no_settings_of_that(layer, qcow2):
    qcow2("disk")
    job = amend(layer, "disk", driver="qcow2", encrypt={"format": "luks", "state": "active"})
    assert job.info()["error"] == "image is not encrypted, can't amend"


@pytest.mark.parametrize(
    ("node", "driver", "text"),
    [
        ("x", "qcow2", "Cannot find device='' nor node-name='x'"),
        ("disk", "raw", "x-blockdev-amend doesn't support changing the block driver"),
        ("plain", "raw", "Driver does not support x-blockdev-amend"),
        ("disk", "nosuch", "Block driver 'nosuch' not found or not supported"),
    ],
)
def test_refusals(layer, qcow2, raw, node, driver, text):
    qcow2("disk")
    raw("plain")
    with layer.control, pytest.raises(QobraError) as error:
        AmendJob(layer.jobs, "a", node, {"driver": driver}, False)
    assert str(error.value) == text
