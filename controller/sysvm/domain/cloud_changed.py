"""Whether the cloud is still the one that a rollout was planned for.

An upgrade of the management server in the middle of a rollout changes what is true of every VM: which commands reach a
router (the gate compares its template with `minreq.sysvmtemplate.version`), what a VM gets at its next start (the
payload of its host), which checksum the server expects. So what was planned and approved was planned and approved for
another cloud, and only a person can say that it still holds.

The facts lie in the plan, so that they are signed with it. Compared are facts, not hosts: fifty hosts that get the same
new payload one after the other are one difference, which is accepted once.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime

from pydantic import Field

from sysvm.api.base import ApiModel
from sysvm.api.rollout import CloudStatus, Rollout
from sysvm.domain.cloud import CloudHost, Snapshot
from sysvm.domain.conditions import bounded

CHANGES_LIMIT = 16


class CloudFacts(ApiModel):
    """What is true of the whole cloud. What the role may not read is missing and is not compared."""

    server_version: str = ""
    minimum_template_versions: dict[str, str] = Field(default_factory=dict)
    """Zone name -> `minreq.sysvmtemplate.version`."""
    host_payloads: dict[str, str] = Field(default_factory=dict)
    """Name of a hypervisor host -> revision of the scripts that it keeps, as the looks at its VMs found it."""


def cloud_facts(snapshot: Snapshot | None, payloads: Mapping[str, str]) -> CloudFacts | None:
    """The facts of a cloud; None of a Static inventory, and before the first sweep. `payloads`: host -> revision."""
    if snapshot is None:
        return None
    zones = {zone.name: zone.min_template_version for zone in snapshot.zones.values()}
    return CloudFacts(
        server_version=snapshot.server_version,
        minimum_template_versions={name: version for name, version in sorted(zones.items()) if version},
        host_payloads=dict(sorted(payloads.items())),
    )


def differences(planned: CloudFacts, now: CloudFacts, told: Iterable[str] = ()) -> tuple[str, ...]:
    """What was and what is, a sentence each; the same facts give the same sentences in the same order. `told`: what was
    found before, of which a payload stays while nobody sees its host."""
    found = []
    if planned.server_version and now.server_version and planned.server_version != now.server_version:
        found.append(f"the management server was {planned.server_version} and is {now.server_version}")
    for zone, was in sorted(planned.minimum_template_versions.items()):
        version = now.minimum_template_versions.get(zone)
        if version is not None and version != was:
            found.append(f"the lowest template version of zone {zone} was {was} and is {version}")
    return (*found, *_other_payloads(planned, now, told))


_LATER = "a host that came later has the payload"


def _other_payloads(planned: CloudFacts, now: CloudFacts, told: Iterable[str]) -> tuple[str, ...]:
    """By payload, not by host. A host that came later is news only if it brings a payload that none had.

    A host is seen through its VMs. When the last one leaves it, nothing has changed: what was told stays, else it would
    have to be accepted again. Which host came later is not remembered, so that is told to the end.
    """
    known = set(planned.host_payloads.values())
    unseen = {was for host, was in planned.host_payloads.items() if host not in now.host_payloads}
    kept = (_LATER, *(f"{_was(was)} " for was in unseen))
    found = {sentence for sentence in told if sentence.startswith(kept)}
    for host, checksum in now.host_payloads.items():
        was = planned.host_payloads.get(host)
        if was is not None and was != checksum:
            found.add(f"{_was(was)} and is {checksum[:12]}")
        elif was is None and known and checksum not in known:
            found.add(f"{_LATER} {checksum[:12]}")
    return tuple(sorted(found))


def _was(payload: str) -> str:
    return f"the payload of hosts was {payload[:12]}"


def word_of(changes: Iterable[str]) -> str:
    """Eight characters that stand for exactly these differences."""
    return hashlib.sha256(json.dumps(list(changes)).encode()).hexdigest()[:8]


def cloud_status(
    rollout: Rollout, planned: CloudFacts | None, current: CloudFacts | None, *, now: datetime
) -> CloudStatus | None:
    """What the rollout says of its cloud; None while nothing ever differed.

    Once something did, it stays, also when the cloud turns back: what was done meanwhile may have met either.
    """
    before = rollout.status.cloud
    if planned is None or current is None:
        return before
    found = differences(planned, current, before.changes if before is not None else ())
    if not found and before is None:
        return None
    word = word_of(found)
    if before is not None and before.word == word:
        return before
    changes = tuple(bounded(change, 253) for change in found[:CHANGES_LIMIT])
    return CloudStatus(word=word, changes=changes, since=before.since if before is not None else now)


# Before an upgrade is rolled out


def warnings(snapshot: Snapshot, payloads: Mapping[str, str]) -> tuple[str, ...]:
    """What should be put in order before VMs are touched, for the plan. None of it stops anything."""
    hosts = sorted(snapshot.hosts.values(), key=lambda host: host.name)
    versions = {host.version for host in hosts if host.version}
    told = (
        _listed("hosts whose agents are not Up", [host for host in hosts if host.state != "Up"]),
        _listed("hosts in maintenance", [host for host in hosts if "Maintenance" in host.resource_state]),
        f"agents of hosts have different versions: {', '.join(sorted(versions))}" if len(versions) > 1 else "",
        f"hosts have {len(set(payloads.values()))} different payloads" if len(set(payloads.values())) > 1 else "",
    )
    return tuple(sentence for sentence in told if sentence)


def _listed(what: str, hosts: list[CloudHost]) -> str:
    if not hosts:
        return ""
    named = ", ".join(host.name for host in hosts[:5])
    return f"{what}: {named}" + (f" and {len(hosts) - 5} more" if len(hosts) > 5 else "")
