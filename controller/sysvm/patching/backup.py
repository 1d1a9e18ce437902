"""A backup of a VM before CloudStack's own live patch changes it: that patch can neither go back nor tell what it did.

It is an operation of the VM under the order's id, so that going back from it is what it is after a patch over SSH. What
it has to hold is known from the payload, because CloudStack unpacks all of it over the VM (CloudStack 4.21
patch-sysvms.sh), also the files that a patch of ours would merge or leave alone.
"""

from dataclasses import replace

from sysvm.api.endpoint import SystemVMType
from sysvm.api.reasons import Reason
from sysvm.patching import order_words, protocol
from sysvm.patching.diff import AGENT_RUNTIME, AGENT_TREE, SCRIPTS_TREE, Change, ChangeKind, Difference
from sysvm.patching.errors import PatchingError, Refused
from sysvm.patching.observing import Look, PreviousPayloads, compare_files
from sysvm.patching.orders import archive_of, order_for_vm
from sysvm.patching.ownership import Owner, rule_for
from sysvm.patching.packages import links_to_look_at
from sysvm.patching.payload import Payload
from sysvm.patching.results import Order, Target
from sysvm.patching.session import RemoteFailure, Session

SECONDS = 120.0
"""For all of it. The most is a copy of a few hundred small files."""
_ROOM = 3
"""So often the payload's size must be free: CloudStack copies it there, zips the agent that it replaces, packs /etc,
/var, /opt and /root, and unpacks (CloudStack 4.21 patch-sysvms.sh)."""


async def back_up(
    session: Session, target: Target, payload: Payload, order: Order, look: Look, previous: PreviousPayloads
) -> protocol.Report:
    """Makes it, or finds it made. Returns a report whose phase is Committed, or that of an operation that had this id.

    Raises `Refused`: there is no backup, and nothing was changed.
    """
    compared = await compare_files(session, look, payload, target.type, previous, known=True)
    difference = compared.difference
    if difference is None:
        raise PatchingError("a comparison has no result")
    args = keep_args(order, target, payload, compared, difference)
    try:
        kept = await session.request("keep", {**args}, protocol.KeepResult, timeout=SECONDS)
    except RemoteFailure as failure:
        raise Refused(
            f"no backup of {target.name} could be made: {failure}",
            reason=failure.reason,
            retryable=failure.retryable or failure.reason in (Reason.OTHER_ACTOR, Reason.LOCK_HELD),
        ) from failure
    return kept["report"]


def keep_args(order: Order, target: Target, payload: Payload, look: Look, difference: Difference) -> protocol.KeepArgs:
    """Everything that CloudStack's patch writes, and what has to be done with units when it is gone back to."""
    vm_type = target.type
    names = [name for name in payload.scripts.entries if not f"/{name}".startswith(f"{SCRIPTS_TREE}/")]
    runtime = {name for name in names if rule_for(name, vm_type).owner is Owner.RUNTIME}
    # CloudStack installs Debian packages too: they stay, but the scripts of before need the Python that they had.
    links = links_to_look_at(payload, look.probe["debian_version"])
    return {
        "order": _order(order, target, payload, look, difference),
        "paths": [*(f"/{name}" for name in sorted(names) if name not in runtime), *links],
        "runtime": {f"/{name}": payload.scripts.entries[name].sha256 for name in sorted(runtime)},
        # Of every type: CloudStack unpacks agent.zip there for a moment also where no agent runs.
        "trees": [
            {"path": SCRIPTS_TREE, "copied": ["*"]},
            {"path": AGENT_TREE, "copied": [*AGENT_RUNTIME, "certs/*"]},
        ],
    }


def _order(order: Order, target: Target, payload: Payload, look: Look, difference: Difference) -> order_words.Order:
    folders = difference.single_folders()
    overwritten = Difference(
        scripts=(*difference.scripts, *_left_alone_by_us(payload, target.type, difference)),
        agent=_agent(target.type),
        kept=(),
        contents={},
        revision=payload.revision,
        vm_type=target.type,
    )
    made = order_for_vm(order, target, payload, replace(look, difference=overwritten), archive_of(payload))
    made["trees"], made["files"], made["remove"], made["payload"], made["databags"] = [], [], [], None, []
    made["folders"] = folders
    made["reserve_bytes"] = _ROOM * (
        payload.scripts_size_bytes + (payload.agent.size_bytes if payload.agent is not None else 0)
    )
    return made


def _left_alone_by_us(payload: Payload, vm_type: SystemVMType, difference: Difference) -> list[Change]:
    """CloudStack writes over them too: their units have to read the old ones again."""
    changed = {change.path for change in difference.scripts}
    return [
        Change(f"/{name}", ChangeKind.CHANGED, None, rule)
        for name in sorted(payload.scripts.entries)
        if (rule := rule_for(name, vm_type)).owner is not Owner.PACKAGE and f"/{name}" not in changed
    ]


def _agent(vm_type: SystemVMType) -> tuple[Change, ...] | None:
    """Its folder is always removed and made anew."""
    return (Change(AGENT_TREE, ChangeKind.CHANGED, None, None),) if vm_type.runs_agent else None
