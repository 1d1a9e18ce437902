"""MaintenanceWindow: say whether it is open, and wake whoever waits for it when it opens, closes or is cut off.

Nothing is decided here: admission asks the calendar itself each time. A clock that was put back only makes the next
look come at another moment, and one that was put forward is found within an hour.
"""

from collections.abc import Callable
from datetime import datetime

from sysvm.api.window import MaintenanceWindow
from sysvm.domain.window_status import report
from sysvm.engine.ports import Clock
from sysvm.engine.resources import WINDOW
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Key
from sysvm.kube.queue import Again

LONGEST_WAIT_SECONDS = 3600.0
"""The clock may jump meanwhile."""
SHORTEST_WAIT_SECONDS = 0.05
"""The queue's clock and the wall's are not the same one: a look may come a moment early."""


class WindowReconciler:
    """One key: one MaintenanceWindow."""

    def __init__(
        self, cluster: Cluster, stores: Stores, passed: Callable[[MaintenanceWindow], None], clock: Clock
    ) -> None:
        """`passed` is called when an edge of the window has passed: who depends on it looks again."""
        self._cluster = cluster
        self._stores = stores
        self._passed = passed
        self._clock = clock
        self._edges: dict[Key, datetime | None] = {}

    async def reconcile(self, key: Key) -> Again | None:
        window = self._stores.windows.get(key)
        if window is None:
            self._edges.pop(key, None)
            return None
        now = self._clock()
        found = report(window, now=now)
        expected = self._edges.get(key)
        if expected is not None and expected <= now:
            self._passed(window)
        self._edges[key] = found.edge
        if not await write_status(self._cluster, WINDOW, window.metadata, window.status, found.status):
            return Again(0.1)
        if found.edge is None:
            return Again(LONGEST_WAIT_SECONDS)
        wait = (found.edge - now).total_seconds()
        return Again(min(max(wait, SHORTEST_WAIT_SECONDS), LONGEST_WAIT_SECONDS))
