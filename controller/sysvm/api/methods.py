"""How a difference is closed: the methods, the two ways of a live patch, and what a policy says about it."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from sysvm.api.base import ApiModel


class Method(StrEnum):
    """How a difference is closed."""

    LIVE_PATCH = "LivePatch"
    REBOOT = "Reboot"
    RECREATE = "Recreate"
    HOLD = "Hold"
    NONE = "None"

    @property
    def is_work(self) -> bool:
        """It changes a VM: what an order may ask for."""
        return self in (Method.LIVE_PATCH, Method.REBOOT, Method.RECREATE)


class AllowedMethod(StrEnum):
    """LivePatch: changed files are put in place while the VM runs. Reboot and Recreate: by the management server."""

    LIVE_PATCH = "LivePatch"
    REBOOT = "Reboot"
    RECREATE = "Recreate"


class HostPayloadRule(StrEnum):
    REQUIRE = "Require"
    WARN = "Warn"


class LivePatchRoute(StrEnum):
    AUTO = "Auto"
    SSH = "SSH"
    API = "API"


class Route(StrEnum):
    """The way that a live patch takes."""

    SSH = "SSH"
    API = "API"


class ServicesScope(StrEnum):
    AFFECTED = "Affected"


class Databags(StrEnum):
    NEVER = "Never"
    NEEDED = "Needed"


class PlannedFailover(StrEnum):
    NEVER = "Never"
    ALLOWED = "Allowed"


class LivePatchOptions(ApiModel):
    """How a live patch works."""

    route: LivePatchRoute = LivePatchRoute.AUTO
    """Auto: over SSH where the management server sends commands to the VM; where its command gate is closed, by
    CloudStack's own live patch (patchSystemVm, or restartNetwork and restartVPC with livepatch=true) if that can work,
    else the VM is held. SSH: only over SSH; a closed gate stays closed and the policy is not Ready. API: only by
    CloudStack's own live patch, which restarts every service, takes the hypervisor host's payload and does not go back
    by itself; the operator has every VM keep a backup before it."""
    max_api_patches_per_router: Annotated[int, Field(ge=1, le=50)] = 2
    """How often one call may patch the same router: CloudStack patches every router of a VPC once for each tier, with
    all of its restarts. A VPC with more tiers than this is not patched by the API route."""
    services: ServicesScope = ServicesScope.AFFECTED
    """Affected: only services whose files changed get an action, the least one that makes the change effective."""
    databags: Databags = Databags.NEVER
    """Never: CloudStack's configure.py is not run; a changed file that only it applies takes effect at the next command
    of the management server. Needed: it is run for exactly the data bag concerned, on single routers; addresses and
    firewall rules are then set anew, and new outbound connections may fail for a moment, which the plan says."""
    host_payload: HostPayloadRule = HostPayloadRule.REQUIRE
    """Require: a VM whose hypervisor host keeps another payload than the release is held, for its next stop and start
    would undo the patch. Warn: the condition HostPayloadMismatch tells it and the VM is patched. It counts where the
    host is on the way to the VM (spec.ssh.routes via Host of the endpoint)."""
    planned_failover: PlannedFailover = PlannedFailover.NEVER
    """Never: the PRIMARY of a pair of routers is held where its keepalived would have to be restarted. Allowed: it is
    restarted once the BACKUP is patched and exactly one PRIMARY is proven, and the other router takes over: tenants
    lose what the plan names."""
    keep_backups: Annotated[int, Field(ge=0, le=10)] = 2
    """Backups of earlier patches kept on the VM, beside the one of the patch in work. They use at most 10 % of the
    disk."""
