"""What a look found, as the status keeps it.

A time of observation alone is not worth a write: ten thousand idle VMs would write ten thousand statuses an interval.
So the old time stays while nothing else changed and it is not old, unless somebody waits for a newer one.
"""

from datetime import datetime, timedelta

from sysvm.api.observed import (
    ContentState,
    Observed,
    ObservedContent,
    ObservedHostPayload,
    ObservedService,
    ObservedTemplate,
    Obstacle,
    Redundancy,
)
from sysvm.api.operation import OperationStatus
from sysvm.api.systemvm import HostKey
from sysvm.api.template import Signature
from sysvm.domain.rules import data_bags
from sysvm.patching.results import ContentReport, Observation

_ALGORITHMS = {32: "md5", 128: "sha512"}
"""Hex digits of the signature: MD5 up to CloudStack 4.21, SHA-512 from 4.22 on."""


def observed_from(
    old: Observed | None,
    found: Observation,
    *,
    force_time: bool,
    refresh: timedelta,
    operation: OperationStatus | None,
) -> Observed:
    """The observation as status keeps it; content that was not compared this time is the old one.

    `operation`: the one in work, or the last. A time from before its end says nothing about the VM as it is now.
    """
    ended = operation.finished_at if operation is not None else None
    new = Observed(
        at=found.at,
        template=ObservedTemplate(version=found.release) if found.release else None,
        signature=_signature(found.signature),
        payload_checksum=_payload_checksum(found),
        content=_content(old, found, force_time=force_time, refresh=refresh, ended=ended),
        services=tuple(
            ObservedService(name=service.name, active=service.active, sub=service.sub)
            for service in found.services
            if service.load not in ("not-found", "masked")
        )[:64],
        boot_id=found.boot_id or None,
        host_payload=_host_payload(found),
        booted=found.booted,
        data_bags=data_bags(
            old,
            held=found.data_bags,
            boot_id=found.boot_id,
            booted=found.booted,
            at=found.at,
            operation=operation,
            rules=found.rules or {},
        ),
        management=old.management if old is not None else None,
    )
    if old is None or force_time or found.at - old.at >= refresh or (ended is not None and old.at <= ended):
        return new
    return new.model_copy(update={"at": old.at}) if _same(old, new) else new


def redundancy_from(
    old: Redundancy | None, found: Observation, peers: tuple[str, ...], *, force_time: bool, refresh: timedelta
) -> Redundancy | None:
    if found.redundancy is None:
        return None
    new = Redundancy(role=found.redundancy, peers=peers, observed_at=found.at, samples=found.pair_samples[-3:])
    if old is None or force_time or len(new.samples) > 1 or found.at - old.observed_at >= refresh:
        # Several samples are taken only for somebody who wants to know of this very moment.
        return new
    return old if _story(old) == _story(new) else new


def _story(redundancy: Redundancy) -> object:
    """What a sample says of the role, without what is another number every time."""
    last = tuple(
        sample.model_copy(update={"at": redundancy.observed_at, "flows": None, "replicated": None})
        for sample in redundancy.samples[-1:]
    )
    return redundancy.role, redundancy.peers, tuple(sample.model_dump(exclude={"at"}) for sample in last)


def seen_host_key(old: HostKey | None, found: Observation, now: datetime) -> HostKey:
    """The key that the VM must show from now on; the time is of its first sight."""
    seen = found.host_key
    if old is not None and old.public_key == seen.public_key:
        return old
    return HostKey(type=seen.type, fingerprint=seen.fingerprint, public_key=seen.public_key, seen_at=now)


def _content(
    old: Observed | None, found: Observation, *, force_time: bool, refresh: timedelta, ended: datetime | None
) -> ObservedContent | None:
    before = old.content if old is not None else None
    reports = [report for report in (found.content, found.agent_content) if report is not None]
    if found.content is None:
        return before
    new = ObservedContent(
        state=_worst(reports),
        revision=found.content.revision,
        changed=sum(report.changed for report in reports),
        missing=sum(report.missing for report in reports),
        extra=sum(report.extra for report in reports),
        paths=tuple(path[:512] for report in reports for path in report.paths)[:10],
        obstacles=tuple(
            Obstacle(reason=str(obstacle.reason), message=obstacle.message[:1024])
            for report in reports
            for obstacle in report.obstacles
        )[:4],
        observed_at=found.at,
    )
    if force_time or before is None or before.observed_at is None or found.at - before.observed_at >= refresh:
        return new
    if ended is not None and before.observed_at <= ended:
        return new
    unchanged = before.model_copy(update={"observed_at": None}) == new.model_copy(update={"observed_at": None})
    return before if unchanged else new


def _worst(reports: list[ContentReport]) -> ContentState:
    order = (ContentState.DRIFTED, ContentState.UNKNOWN, ContentState.MATCHES)
    return next(state for state in order if any(report.state is state for report in reports))


def _signature(text: str | None) -> Signature | None:
    if text is None:
        return None
    hexadecimal = bool(text) and all(character in "0123456789abcdef" for character in text)
    algorithm = _ALGORITHMS.get(len(text), "unknown") if hexadecimal else "unknown"
    return Signature(algorithm=algorithm, value=text[:256])


def _payload_checksum(found: Observation) -> str | None:
    signature = _signature(found.signature)
    wanted = signature.algorithm if signature is not None and signature.algorithm != "unknown" else "sha512"
    checksum = found.payload_checksums.get(wanted)
    return f"{wanted}:{checksum}"[:140] if checksum else None


def _host_payload(found: Observation) -> ObservedHostPayload | None:
    kept, signature = found.host_payload, _signature(found.signature)
    if kept is None:
        return None
    algorithm = (
        signature.algorithm if signature is not None and signature.algorithm in kept.files.checksums else "sha512"
    )
    return ObservedHostPayload(
        host=kept.host[:253],
        checksum=f"{algorithm}:{kept.files.checksums[algorithm]}",
        checksums=tuple(f"{name}:{value}" for name, value in sorted(kept.files.checksums.items()))[:4],
        revision=kept.scripts_revision,
    )


def _same(old: Observed, new: Observed) -> bool:
    return old.model_copy(update={"at": new.at}) == new
