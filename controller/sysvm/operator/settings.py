"""What the environment says. The chart sets these; every value has a default that suits one process on a laptop."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

LEVELS = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """A variable has a value that cannot be used. The message names it and says what is allowed."""


@dataclass(frozen=True)
class Settings:
    """`SYSVM_...` variables, read once."""

    namespace: str = "sysvm-system"
    """Own namespace: the Lease lives there."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all."""
    log_level: str = "info"
    log_format: Literal["json", "text"] = "json"
    http_port: int = 8080
    """/healthz, /readyz, /metrics. 0: a free one, printed in the log."""
    http_host: str = "0.0.0.0"  # probes and scrapes come from outside of the Pod
    workers: int = 8
    """Keys in work at once."""
    operations: int = 50
    """VMs in work at once."""
    looks: int = 32
    """VMs looked at at once."""
    payloads_dir: Path = Path("/payloads")
    cache_dir: Path = Path("/tmp/sysvm")  # an emptyDir in the Pod; content is checked by digest
    kubeconfig: Path | None = None
    """None: the Pod's service account."""
    lease_seconds: int = 15
    admission_policies: bool = False
    """Whether the chart's ValidatingAdmissionPolicies are installed. Without them nothing proves who approved or broke
    the glass, and neither counts."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Raises `SettingsError`."""
        read = _Reader(environment)
        form = read.choice("SYSVM_LOG_FORMAT", ("json", "text"), "json")
        kubeconfig = read.text("SYSVM_KUBECONFIG", "") or read.text("KUBECONFIG", "")
        return cls(
            namespace=read.text("SYSVM_NAMESPACE", cls.namespace),
            watch_namespaces=tuple(
                name.strip() for name in read.text("SYSVM_WATCH_NAMESPACES", "").split(",") if name.strip()
            ),
            log_level=read.choice("SYSVM_LOG_LEVEL", LEVELS, cls.log_level),
            log_format="text" if form == "text" else "json",
            http_port=read.number("SYSVM_HTTP_PORT", cls.http_port, 0, 65535),
            http_host=read.text("SYSVM_HTTP_HOST", cls.http_host),
            workers=read.number("SYSVM_WORKERS", cls.workers, 1, 256),
            operations=read.number("SYSVM_OPERATIONS", cls.operations, 1, 1000),
            looks=read.number("SYSVM_LOOKS", cls.looks, 1, 1000),
            payloads_dir=Path(read.text("SYSVM_PAYLOADS_DIR", str(cls.payloads_dir))),
            cache_dir=Path(read.text("SYSVM_CACHE_DIR", str(cls.cache_dir))),
            kubeconfig=Path(kubeconfig) if kubeconfig else None,
            admission_policies=read.choice("SYSVM_ADMISSION_POLICIES", ("true", "false"), "false") == "true",
            lease_seconds=read.number("SYSVM_LEASE_SECONDS", cls.lease_seconds, 5, 300),
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    environment: Mapping[str, str]

    def text(self, name: str, default: str) -> str:
        return self.environment.get(name) or default

    def choice(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.text(name, default).lower()
        if value not in allowed:
            raise SettingsError(f"{name}={value}: allowed are {', '.join(allowed)}")
        return value

    def number(self, name: str, default: int, low: int, high: int) -> int:
        value = self.text(name, str(default))
        if not value.isdecimal() or not low <= int(value) <= high:
            raise SettingsError(f"{name}={value}: a whole number from {low} to {high} is needed")
        return int(value)
