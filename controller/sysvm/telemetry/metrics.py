"""What can be counted, in Prometheus' words. Times are in seconds, sizes in bytes; no label has an unbounded range.

VMs and rollouts are counted from the caches when somebody scrapes, so nothing has to be kept in step.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sysvm.kube.client import Write
from sysvm.kube.errors import KubeError
from sysvm.kube.objects import Resource

SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """All metrics of one process, in a registry of its own: the observers of `kube`, `cloudstack` and `engine`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        home = self.registry
        self._depth = Gauge("sysvm_queue_ready", "Keys that could be worked on now", ["queue"], registry=home)
        self._waited = Histogram(
            "sysvm_queue_wait_seconds", "Time a key waited for a worker", ["queue"], buckets=SECONDS, registry=home
        )
        self._ran = Histogram(
            "sysvm_reconcile_seconds", "Time of one reconcile", ["queue", "role"], buckets=SECONDS, registry=home
        )
        self._failed = Counter(
            "sysvm_reconcile_failures", "Reconciles that ended with an error", ["role"], registry=home
        )
        self._requests = Counter(
            "sysvm_kube_requests", "Requests to the API server", ["verb", "kind", "status"], registry=home
        )
        self._writes = Counter("sysvm_kube_writes", "Writes to the API server", ["verb", "kind"], registry=home)
        self._cloud_requests = Counter(
            "sysvm_cloudstack_requests", "Requests to management servers", ["command", "code"], registry=home
        )
        self._cloud_seconds = Histogram(
            "sysvm_cloudstack_request_seconds",
            "Time of one request to a management server",
            ["command"],
            buckets=SECONDS,
            registry=home,
        )
        self._looks = Counter("sysvm_looks", "Looks at VMs", ["result"], registry=home)
        self._look_seconds = Histogram("sysvm_look_seconds", "Time of one look at a VM", buckets=SECONDS, registry=home)
        self._operations = Counter("sysvm_operations", "Operations that ended", ["method", "result"], registry=home)
        self._operation_seconds = Histogram(
            "sysvm_operation_seconds", "Time of one operation", ["method"], buckets=SECONDS, registry=home
        )
        self._sent = Counter("sysvm_sent_bytes", "Bytes sent to VMs by operations", registry=home)
        self.leader = Gauge("sysvm_leader", "1 while this process holds the lease", registry=home)

    def count_from(
        self, name: str, help_: str, labels: tuple[str, ...], items: Callable[[], Iterable[tuple[str, ...]]]
    ) -> None:
        """A gauge `name` that counts `items()` by `labels` at every scrape."""
        self.registry.register(_Counted(name, help_, labels, items))

    # kube.queue.QueueObserver
    def depth(self, queue: str, ready: int) -> None:
        self._depth.labels(queue).set(ready)

    def started(self, queue: str, key: object, waited_seconds: float) -> None:
        self._waited.labels(queue).observe(waited_seconds)

    def finished(self, queue: str, key: object, ran_seconds: float) -> None:
        self._ran.labels(queue, _role(key)).observe(ran_seconds)

    def failed(self, queue: str, key: object, error: Exception, failures: int, retry_seconds: float) -> None:
        self._failed.labels(_role(key)).inc()

    # kube.client.RequestObserver
    def answered(self, verb: str, resource: Resource, status: int, seconds: float) -> None:
        self._requests.labels(verb, resource.kind, str(status)).inc()

    # kube.client.WriteObserver
    def before(self, write: Write) -> None:
        return

    def after(self, write: Write, error: KubeError | None) -> None:
        self._writes.labels(write.verb.value, write.resource.kind).inc()

    # cloudstack.client.ApiObserver
    def cloud_asked(self, command: str, code: int, seconds: float) -> None:
        self._cloud_requests.labels(command, str(code)).inc()
        self._cloud_seconds.labels(command).observe(seconds)

    # engine.ports.EngineObserver
    def looked(self, *, result: str, seconds: float) -> None:
        self._looks.labels(result).inc()
        self._look_seconds.observe(seconds)

    def operated(self, *, method: str, result: str, seconds: float, bytes_sent: int) -> None:
        self._operations.labels(method, result).inc()
        self._operation_seconds.labels(method).observe(seconds)
        self._sent.inc(bytes_sent)


class _Counted(Collector):
    def __init__(
        self, name: str, help_: str, labels: tuple[str, ...], items: Callable[[], Iterable[tuple[str, ...]]]
    ) -> None:
        self._name, self._help, self._labels, self._items = name, help_, labels, items

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily(self._name, self._help, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for values, number in sorted(Tally(self._items()).items()):
            family.add_metric(values, number)
        yield family


def _role(key: object) -> str:
    return str(getattr(key, "role", "other"))
