"""Failed parts are settled as the job's policies say, once for all that have failed by then."""

from __future__ import annotations

import errno
import threading

import pytest

from qobra.block.copy.chunk import CopyFailed
from qobra.block.job.failures import RETRY_NS, Failures


class Job:
    """What :class:`Failures` asks of a job, with notes of that."""

    def __init__(self):
        self.condition = threading.Condition()
        self.said = []

    def error_action(self, policy, is_read, error):
        self.said.append((policy, is_read, error.errno))
        return policy

    def park(self, delay_ns):
        self.said.append(delay_ns)

    def pause_point(self):
        self.said.append("pause point")


def failed(number, is_read):
    return CopyFailed(OSError(number, "failed"), is_read)


def test_nothing_has_failed():
    failures = Failures(Job(), "report", "report")
    assert not failures
    assert not failures.settle()


@pytest.mark.parametrize("is_read", [False, True])
def test_an_error_that_is_reported_is_raised(is_read):
    failures = Failures(Job(), *(("report", "ignore") if is_read else ("ignore", "report")))
    failures.note(failed(errno.EIO, is_read))
    assert failures
    with pytest.raises(OSError, match="failed") as caught:
        failures.settle()
    assert caught.value.errno == errno.EIO
    assert not failures


def test_what_is_ignored_is_tried_again_after_a_while():
    job = Job()
    failures = Failures(job, "ignore", "report")
    failures.note(failed(errno.EIO, True))
    failures.note(failed(errno.ENOSPC, False))
    assert failures.settle()
    assert job.said == [("ignore", True, errno.EIO), RETRY_NS, "pause point"]
    assert not failures


def test_a_job_that_is_to_stop_comes_to_its_pause_point():
    job = Job()
    failures = Failures(job, "report", "stop")
    failures.note(failed(errno.ENOSPC, False))
    assert failures.settle()
    assert job.said == [("stop", False, errno.ENOSPC), "pause point"]
