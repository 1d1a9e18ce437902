"""Tasks of the stand-in that outlive a request and must not outlive the server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Background:
    """Starts tasks in a group and can end all of them; what one raises ends the group, so no failure is silent."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None], *, name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
