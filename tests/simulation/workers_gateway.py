"""The random gateway for several workers: it checks that a POST is sent only by the run that has the job."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulation.network import Request
from tests.simulation.random_gateway import Post, RandomGateway
from tests.simulation.worker_faults import WorkerFiles
from tests.simulation.worker_loop import SimulatedWorker


class WorkersGateway(RandomGateway):
    """The server of a simulation with several workers. `files` has their runs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.files: dict[SimulatedWorker, WorkerFiles] = {}
        super().__init__(*args, **options)

    async def connect(self, request: Request) -> None:
        """Open a connection, which may take long: a worker may be fenced in the meantime."""
        if request.method == "POST" and not self.no_faults:
            await asyncio.sleep(self.random_for("connect", request.url).choice([0.0, 0.0, 0.2, 3.0, 12.0]))
        await super().connect(request)

    def _check_intent(self, post: Post) -> None:
        super()._check_intent(post)
        assert isinstance(post.process, SimulatedWorker)
        run_no = self.files[post.process].run_no
        sql = (
            "SELECT runs.run_no, fenced, ended_at FROM jobs JOIN submissions USING (job_no)"
            " LEFT JOIN runs ON runs.run_no = submissions.run_no WHERE job_id = ? ORDER BY submission_no DESC LIMIT 1"
        )
        if self.ledger.query(sql, post.prompt) != [(run_no, 0, None)]:
            self.violations.append(f"a POST of {post.prompt} by run {run_no}, which no longer has the job")
