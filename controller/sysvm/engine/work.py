"""Long work beside the reconcilers: looks at VMs and operations, bounded in number, at most one a VM.

A reconciler never waits for a VM. It starts work under a key, returns, and is called again when there is news: then it
finds the latest progress or the outcome here. After a restart nothing is here, and the journal on the VM is asked.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from sysvm.kube.objects import Key
from sysvm.patching.errors import PatchingError

CUT_OFF_SECONDS = 1.0
"""Work that was cut off from within is wanted again after so long: it may be cut off again at once."""

P = TypeVar("P")
R = TypeVar("R")


@dataclass(slots=True)
class Handle(Generic[P, R]):
    """One piece of work. `purpose` tells a second request for the same work from another work."""

    purpose: str
    task: "asyncio.Task[None] | None" = None
    progress: P | None = None
    result: R | None = None
    error: PatchingError | None = None

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


class Pool(Generic[P, R]):
    """At most `size` pieces of work at once, at most one a key; the rest waits its turn. Use as a context manager.

    `notify(key)` is called in the loop with every progress and at the end. Leaving the context cancels what runs:
    the VMs end their operations alone. An error that is not a `PatchingError` is a defect and ends the whole group.
    Work that is cut off from within has no outcome: its key is told, and whoever wants it starts it again.
    """

    def __init__(self, size: int, notify: Callable[[Key, bool], None]) -> None:
        self._slots = asyncio.Semaphore(size)
        self._notify = notify
        self._handles: dict[Key, Handle[P, R]] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles.values():
            if handle.task is not None:
                handle.task.cancel()
        await self._group.__aexit__(kind, error, trace)

    def start(self, key: Key, purpose: str, work: Callable[[Callable[[P], None]], Awaitable[R]]) -> Handle[P, R]:
        """The handle of this work: started now, or as it stands. Other unfinished work of the key ends first."""
        known = self._handles.get(key)
        if known is not None and (known.purpose == purpose or not known.done):
            return known
        handle: Handle[P, R] = Handle(purpose)
        self._handles[key] = handle
        handle.task = self._group.create_task(self._run(key, handle, work), name=f"{purpose} {key}")
        return handle

    def get(self, key: Key) -> Handle[P, R] | None:
        return self._handles.get(key)

    def forget(self, key: Key) -> None:
        """The outcome was stored, or nobody wants it any more."""
        handle = self._handles.get(key)
        if handle is not None and handle.done:
            del self._handles[key]

    @property
    def running(self) -> int:
        return sum(1 for handle in self._handles.values() if not handle.done)

    def drop(self, key: Key) -> None:
        """Nobody wants its outcome any more: it is cut off, nobody is told, and other work of the key may begin."""
        handle = self._handles.pop(key, None)
        if handle is not None and handle.task is not None:
            handle.task.cancel()

    async def drain(self, seconds: float) -> int:
        """Waits for what runs, at most so long. Returns how many still run."""
        tasks = [handle.task for handle in self._handles.values() if handle.task is not None and not handle.done]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        return self.running

    async def _run(self, key: Key, handle: Handle[P, R], work: Callable[[Callable[[P], None]], Awaitable[R]]) -> None:
        def progressed(progress: P) -> None:
            handle.progress = progress
            self._notify(key, False)

        try:
            async with self._slots:
                handle.result = await work(progressed)
        except PatchingError as error:
            handle.error = error
        except asyncio.CancelledError:
            if self._handles.get(key) is handle:  # not of the work that took its place
                del self._handles[key]
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that it waited for was cancelled, not the work. Nobody else knows that it has ended.
            asyncio.get_running_loop().call_later(CUT_OFF_SECONDS, self._notify, key, True)
            return
        self._notify(key, True)
