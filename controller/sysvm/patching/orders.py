"""The complete order for one VM: everything that it needs to end a patch without the operator."""

from dataclasses import dataclass, field

from sysvm.patching import order_words, packages
from sysvm.patching.databags import databag_order
from sysvm.patching.diff import Difference
from sysvm.patching.errors import PatchingError
from sysvm.patching.observing import PAYLOAD_PATH, Look
from sysvm.patching.payload import Payload
from sysvm.patching.results import Order, Target
from sysvm.patching.services import SERVICES, UnitAction, order_for, plain

_RESERVE_BYTES = 64 << 20
_RESERVE_INODES = 500
_MIN_MEMORY_BYTES = 96 << 20
"""A system VM that runs out of memory panics (CloudStack 4.21 sysctl.conf, vm.panic_on_oom), so it is asked before."""


_DPKG_LOCK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Archive:
    """The cloud-scripts.tgz that stays on the VM, and its checksum as the signature file has it."""

    content: bytes = field(repr=False)
    sha256: str
    signature: str


def archive_of(payload: Payload) -> Archive:
    return Archive(payload.scripts_archive, payload.scripts_sha256, payload.signature)


def order_for_vm(order: Order, target: Target, payload: Payload, look: Look, archive: Archive) -> order_words.Order:
    """`archive`: what stays on the VM in /usr/share/cloud. Raises `PatchingError` if its files were not compared."""
    difference = look.difference
    if difference is None:
        raise PatchingError("an order needs a comparison")
    seconds = order.step_timeout_seconds
    may_fail_over = order.may_fail_over if look.probe["redundancy"] is not None else None
    in_place = look.probe["payload_checksums"].get(payload.signature_algorithm) == archive.signature
    return {
        "id": order.id,
        "epoch": order.epoch,
        "revision": payload.revision,
        "vm_type": target.type.value,
        "trees": difference.trees(),
        "files": difference.single_files(),
        "folders": difference.single_folders(),
        "remove": difference.single_removals(),
        "packages": _packages(order, difference),
        "payload": None
        if in_place
        else {
            "path": PAYLOAD_PATH,
            "sha256": archive.sha256,
            "size": len(archive.content),
        },
        "signature": archive.signature,
        "daemon_reload": difference.daemon_reload,
        "services": [
            order_for(unit, action, look.boot, target.type, seconds, may_fail_over=may_fail_over)
            for unit, action in _services(look)
        ],
        "databags": _databags(order, look, difference),
        "run_checks": target.type.is_router,
        "ignored_checks": list(order.ignored_checks),
        "settle_seconds": order.settle_seconds,
        "step_timeout_seconds": seconds,
        "timeout_seconds": order.vm_timeout_seconds,
        "keep_backups": order.keep_backups,
        "reserve_bytes": _RESERVE_BYTES,
        "reserve_inodes": _RESERVE_INODES,
        "min_memory_bytes": _MIN_MEMORY_BYTES,
    }


def _packages(order: Order, difference: Difference) -> order_words.PackagesOrder | None:
    """None where neither a package nor the program that scripts run with changes."""
    wanted = difference.packages
    if not wanted.install and not wanted.links:
        return None
    script = f"/{packages.CONFIGURE}"
    return {
        "debs": [
            {"name": deb.name, "version": deb.version, "sha256": deb.sha256, "size": deb.size} for deb in wanted.install
        ],
        "remove": list(wanted.remove),
        "keep": list(wanted.keep),
        "imports": [script],
        "lock_seconds": min(_DPKG_LOCK_SECONDS, order.step_timeout_seconds / 2),
        "timeout_seconds": order.step_timeout_seconds,
    }


def _databags(order: Order, look: Look, difference: Difference) -> list[order_words.DatabagOrder]:
    """None on a router of a pair: every run of configure.py ends with what may make it a failover."""
    if not order.apply_databags or look.probe["redundancy"] is not None:
        return []
    return [databag_order(bag, order.step_timeout_seconds) for bag in difference.databags]


def _services(look: Look) -> list[tuple[str, UnitAction]]:
    """Every unit of the table that this VM has, in the table's order, with its action or none: all are watched."""
    actions = look.actions
    present = [
        unit["unit"] for unit in look.probe["units"] if unit["load"] == "loaded" and unit["active"] != "inactive"
    ]
    place = {service.unit: number for number, service in enumerate(SERVICES)}

    def rank(unit: str) -> int:
        name = plain(unit)
        return place.get(name, place.get(f"{name.partition('@')[0]}@*", len(place)))

    units = sorted(present, key=rank)
    if look.has_gateway and {"keepalived", "conntrackd"} <= set(units):
        # The gateway goes to a router that knows all connections: what this one replicates is forgotten only then.
        units.remove("keepalived")
        units.insert(units.index("conntrackd"), "keepalived")
    return [(unit, actions.get(unit, UnitAction.NOTHING)) for unit in units]
