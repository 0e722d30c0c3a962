"""Jobs as awaitables."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

from qobra.client.aio_events import EventStream
from qobra.client.errors import CommandNotFound, JobError, JobNotFound
from qobra.client.events import Event
from qobra.client.jobs import JOB_EVENTS, JobState, Progress

if TYPE_CHECKING:
    from qobra.client.aio import Client


class Jobs:
    """A server's jobs by id: ``await client.jobs["backup0"].wait()``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getitem__(self, job_id: str) -> Job:
        return Job(self._client, job_id)

    async def all(self) -> list[Job]:
        """The jobs that the server has now."""
        return [Job(self._client, str(info["id"])) for info in await self.query()]

    async def query(self) -> list[dict[str, Any]]:
        """What query-jobs returns, or query-block-jobs on a server that has only that."""
        try:
            jobs: list[dict[str, Any]] = await self._client.execute("query-jobs")
        except CommandNotFound:
            block_jobs = await self._client.execute("query-block-jobs")
            jobs = [{**info, "id": info["device"]} for info in block_jobs]
        return jobs


class Job:
    """One job. ``await job`` is :meth:`wait`."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __await__(self) -> Generator[Any, None, JobState]:
        return self.wait().__await__()

    @property
    def state(self) -> JobState:
        """The last that was heard, without asking."""
        return self._client._exchange.jobs.state(self.id)

    async def refresh(self) -> JobState:
        """Ask the server. Raises JobNotFound if it knows no such job and none was heard of."""
        await self._client.jobs.query()
        if self.state.status == "unknown":
            raise JobNotFound(self.id, "there is no such job")
        return self.state

    async def wait(self, timeout: float | None = None) -> JobState:
        """Wait until the job's work is over, and return its last state.

        Raises JobFailed or JobCancelled if it came to no good end, TimeoutError after ``timeout`` seconds. A job made
        with ``auto-dismiss`` false stays on the server: :meth:`dismiss` it.
        """
        state = await self._wait_for("ended", timeout)
        if state.status == "concluded":
            # Only the server knows why a job failed that is no block job.
            state = await self.refresh()
        state.raise_failure()
        return state

    async def ready(self, timeout: float | None = None) -> JobState:
        """Wait until a mirror or commit is in step with its source. Raises as :meth:`wait` does if it ends first."""
        state = await self._wait_for("ready", timeout)
        if state.ended:
            state.raise_failure()
            raise JobError(self.id, "ended before it was ready")
        return state

    async def watch(self, interval: float = 0.1) -> AsyncIterator[Progress]:
        """The progress now and after each ``interval`` seconds or change, until the work is over."""
        with self._events() as stream:
            state = await self.refresh()
            yield state.progress
            while not state.ended:
                try:
                    await stream.next(interval)
                except TimeoutError:
                    state = await self.refresh()
                else:
                    state = self.state
                yield state.progress

    async def pause(self) -> None:
        """Pause the job."""
        await self._control("pause")

    async def resume(self) -> None:
        """Undo :meth:`pause`."""
        await self._control("resume")

    async def cancel(self) -> None:
        """Give the job up; :meth:`wait` then raises JobCancelled."""
        await self._control("cancel")

    async def complete(self) -> None:
        """Let a job that is ready switch over."""
        await self._control("complete")

    async def finalize(self) -> None:
        """Let a job made with ``auto-finalize`` false carry out its last, graph-changing step."""
        await self._control("finalize")

    async def dismiss(self) -> None:
        """Remove a concluded job made with ``auto-dismiss`` false."""
        await self._control("dismiss")

    async def set_speed(self, bytes_per_second: int) -> None:
        """Limit a block job's rate; 0 is no limit."""
        await self._client.execute("block-job-set-speed", {"device": self.id, "speed": bytes_per_second})

    async def _control(self, verb: str) -> None:
        try:
            await self._client.execute(f"job-{verb}", {"id": self.id})
        except CommandNotFound:
            await self._client.execute(f"block-job-{verb}", {"device": self.id})

    async def _wait_for(self, condition: str, timeout: float | None) -> JobState:
        deadline = time.monotonic() + timeout if timeout is not None else None
        with self._events() as stream:
            state = await self.refresh()
            while not (state.ended or getattr(state, condition)):
                await stream.next(deadline - time.monotonic() if deadline is not None else None)
                state = self.state
        return state

    def _events(self) -> EventStream:
        # The older events call a block job by its device.
        return self._client.events(*JOB_EVENTS, where=lambda event: self.id in _names(event))


def _names(event: Event) -> tuple[Any, Any]:
    return event.data.get("id"), event.data.get("device")
