"""`python -m scale.instant`: the operator with VMs that answer at once.

What was patched is a line in a file, so that the next process finds it done.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sysvm.api.observed import ContentState
from sysvm.operator.app import App
from sysvm.operator.main import until_told
from sysvm.operator.settings import Settings
from sysvm.patching.payload import Payload
from sysvm.patching.results import (
    ContentReport,
    JournalPhase,
    Observation,
    OperationReport,
    Order,
    SeenHostKey,
    ServiceState,
    StepReport,
    Target,
)
from sysvm.telemetry import logs

DONE = "SYSVM_SCALE_DONE"
OLD = "01" * 16
_SERVICES = ("ssh", "haproxy", "dnsmasq", "apache2", "cron", "rsyslog", "systemd-journald", "cloud-password-server")

Progress = Callable[[OperationReport], None]


@dataclass
class InstantVMs:
    """`engine.ports.SystemVMs`; as much is seen of each VM as of a real router."""

    done: Path
    signatures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.done.exists():
            self.signatures = dict(line.split(" ", 1) for line in self.done.read_text().splitlines())

    async def observe(self, target: Target, payload: Payload | None, *, samples: int = 1) -> Observation:
        await asyncio.sleep(0)
        signature = self.signatures.get(target.name, OLD)
        content = None
        if payload is not None:
            same = signature == payload.signature
            content = ContentReport(
                revision=payload.revision,
                state=ContentState.MATCHES if same else ContentState.DRIFTED,
                changed=0 if same else 10,
                paths=() if same else tuple(f"/opt/cloud/bin/cs/Cs{number}.py" for number in range(10)),
            )
        return Observation(
            at=datetime.now(UTC).replace(microsecond=0),
            host_key=SeenHostKey("ssh-ed25519", f"SHA256:{'a' * 43}", "ssh-ed25519 AAAA"),
            type=target.type,
            release="4.20.1",
            debian_version="12.9",
            signature=signature,
            payload_checksums={"md5": signature},
            boot_id="b1",
            booted=True,
            services=tuple(ServiceState(name, "loaded", "active", "running", True, 77, 0) for name in _SERVICES),
            redundancy=None,
            failing_health_checks=(),
            disk_available_bytes=1 << 30,
            memory_available_bytes=1 << 30,
            other_actors=(),
            unfinished=None,
            last_finished=None,
            highest_epoch=0,
            content=content,
            agent_content=None,
            actions=(),
        )

    async def patch(self, target: Target, payload: Payload, order: Order, progress: Progress) -> OperationReport:
        await asyncio.sleep(0)
        self.signatures[target.name] = payload.signature
        with self.done.open("a") as lines:
            lines.write(f"{target.name} {payload.signature}\n")
        return _committed(order.id, payload.revision)

    async def take_back(self, target: Target, order: Order, operation_id: str, progress: Progress) -> OperationReport:
        raise NotImplementedError("nothing fails here")

    async def back_up(self, target: Target, payload: Payload, order: Order) -> OperationReport:
        raise NotImplementedError("no management server is asked here")

    async def report(self, target: Target, operation_id: str) -> OperationReport | None:
        return None


def _committed(operation: str, revision: str) -> OperationReport:
    steps = tuple(
        StepReport(name, done=True, failed=False, seconds=0.1)
        for name in ("Connect", "Probe", "Diff", "Stage", "Build", "Fence", "Switch", "Services", "Verify", "Commit")
    )
    return OperationReport(
        id=operation,
        revision=revision,
        phase=JournalPhase.COMMITTED,
        step="Commit",
        steps=steps,
        services=(),
        bytes_sent=1000,
    )


if __name__ == "__main__":
    settings = Settings.from_environment()
    logs.configure(settings.log_level, settings.log_format)
    asyncio.run(until_told(App(settings, InstantVMs(Path(os.environ[DONE])))))
