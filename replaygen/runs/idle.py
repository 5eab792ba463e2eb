"""What every Dask worker of a run is given: how long it may hold its models without a task, and how much memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin

from replaygen.holding import HELD, IDLE

if TYPE_CHECKING:
    from distributed import Worker


class IdleModels(WorkerPlugin):
    """Workers that come later get it too: `client.register_plugin(IdleModels(seconds))`. It imports no torch.

    Args:
        seconds: without a task, after which a worker's models are freed.
    """

    name = "replaygen-idle-models"

    def __init__(self, seconds: float = IDLE) -> None:
        self.seconds = seconds

    def setup(self, worker: Worker) -> None:
        """On each worker, at its start or when the plugin comes."""
        manager: Any = worker.memory_manager
        HELD.idle = self.seconds
        HELD.memory_limit = int(manager.memory_limit or 0)
