"""Reconciles that fail, in the log: where an object stands still, somebody must be able to read why.

Which failure is worth how many lines depends on how many keys share it. A defect of ours is told with the place where
it happened, once a key, and then in a sentence. What the API server refuses is its own sentence. A server that does
not answer fails every key alike: one line speaks for all.
"""

import logging
import time
from collections.abc import Callable

from sysvm.kube.errors import Conflict, KubeError, NotFound, Unavailable
from sysvm.kube.queue import QueueObserver

logger = logging.getLogger("sysvm.reconcile")

ORDINARY_FAILURES = 3
"""So often in a row a key may lose a race before it is strange."""
SILENCE_SECONDS = 10.0
"""Between two lines about a server that does not answer."""


class ToldFailures:
    """Implements `kube.queue.QueueObserver`: tells of failures and passes everything on."""

    def __init__(self, then: QueueObserver, clock: Callable[[], float] = time.monotonic) -> None:
        self._then = then
        self._clock = clock
        self._silent_until = 0.0

    def depth(self, queue: str, ready: int) -> None:
        self._then.depth(queue, ready)

    def started(self, queue: str, key: object, waited_seconds: float) -> None:
        self._then.started(queue, key, waited_seconds)

    def finished(self, queue: str, key: object, ran_seconds: float) -> None:
        self._then.finished(queue, key, ran_seconds)

    def failed(self, queue: str, key: object, error: Exception, failures: int, retry_seconds: float) -> None:
        self._then.failed(queue, key, error, failures, retry_seconds)
        when = f"failure {failures} in a row, again in {retry_seconds:.1f} s"
        if not isinstance(error, KubeError):
            where = error if failures == 1 else None
            logger.error("%s: %s: %s (%s)", key, type(error).__name__, error, when, exc_info=where)
        elif isinstance(error, Unavailable):
            if self._clock() >= self._silent_until:
                self._silent_until = self._clock() + SILENCE_SECONDS
                logger.warning("%s, and maybe others: %s (%s)", key, error, when)
        elif failures >= ORDINARY_FAILURES or not isinstance(error, (Conflict, NotFound)):
            logger.warning("%s: %s (%s)", key, error, when)
