"""Whose host key is believed after our own call: in one place, because each mistake has another victim.

Too little, and a router that our reboot has just started is held for a person. Too much, and whoever answers at the
address of a VM that went is taken for it. Only `Reboot` gives a VM that stays who it is another key. What `Recreate`
makes are other VMs, with objects of their own; the address of one that went may be another's before the job has ended,
so the old ones go on being asked for the key that is known, to the end of their objects.
"""

from datetime import datetime, timedelta

from sysvm.api.methods import Method
from sysvm.api.operation import OperationResult, OperationStatus
from sysvm.api.systemvm import SystemVMStatus
from sysvm.domain.group_operation import STARTED_ANEW

LATE_START = timedelta(hours=1)
"""So long after a reboot was given up its VM may still come up, and show another host key."""


def may_show_another_key(status: SystemVMStatus, now: datetime) -> bool:
    """Our own call may have started it with another disk, and no key was seen since that call but the one of before.

    So another key is taken once: it was first seen after the call.
    """
    since, known = new_key_since(status.operation, now), status.host_key
    return since is not None and known is not None and known.seen_at <= since


def goes_unseen(status: SystemVMStatus) -> bool:
    """Our own call replaces a VM that has never shown a key. Who answers at its address meanwhile may be the other one,
    and there is nothing to tell them apart by."""
    mirror = status.operation
    if mirror is None or mirror.method is not Method.RECREATE or status.host_key is not None:
        return False
    return mirror.submitted_at is not None and mirror.result is None


def new_key_since(mirror: OperationStatus | None, now: datetime) -> datetime | None:
    """The moment from which another host key of a VM is of our own making; None: it is a stranger's.

    `mirror`: of the VM's last operation, in its own status; the rollout may have forgotten the call, or be gone.
    """
    if mirror is None or mirror.method is not Method.REBOOT or mirror.submitted_at is None:
        return None
    if mirror.result is None:
        return mirror.submitted_at if mirror.step in STARTED_ANEW else None
    ended = mirror.finished_at if mirror.result is OperationResult.FAILED else None
    return mirror.submitted_at if ended is not None and now < ended + LATE_START else None
