"""Whether a pair of routers has exactly one PRIMARY: the proof that every patch of a pair begins and ends with.

A router's own word proves nothing (CloudStack 4.21 checkrouter.sh counts addresses, and the management server's view is
up to half a minute old), and neither does one look: a failover may lie between the looks at two routers. So both are
seen within seconds of each other, three times, and every fact must tell the same story. Values in, values out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sysvm.api.observed import PairSample, RedundancyRole
from sysvm.api.reasons import Reason

SAMPLES = 3
PAUSE_SECONDS = 5.0
TOGETHER = timedelta(seconds=4)
"""Times in a status have whole seconds, so what is 4 s apart there may be almost 5."""
FRESH = timedelta(seconds=60)
"""A proof that is older says what the pair was."""
MISSING_FLOWS, MISSING_SHARE = 50, 0.1
"""A BACKUP may lack so many of the PRIMARY's connections, or so large a part: they come and go between two counts."""


@dataclass(frozen=True, slots=True)
class Router:
    """One router of the pair, as it was seen. `samples` oldest first."""

    name: str
    samples: tuple[PairSample, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """Exactly one is PRIMARY."""

    primary: str
    at: datetime
    """When the last facts of it were seen, on the router that was seen first."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why it is not proven."""

    reason: Reason
    sentence: str


def one_primary(routers: Sequence[Router], *, now: datetime) -> Proof | Trouble:
    """The proof over all samples, or the first thing that stands against it."""
    few = [router.name for router in routers if len(router.samples) < SAMPLES]
    if few or not routers:
        return Trouble(Reason.PAIR_NOT_SEEN, f"the roles must be seen {SAMPLES} times: {_names(few)}")
    last = min(router.samples[-1].at for router in routers)
    if now - last > FRESH:
        return Trouble(Reason.PAIR_NOT_SEEN, "the roles were seen too long ago and must be seen again")
    primaries: list[str] = []
    for number in range(SAMPLES):
        for router in routers:
            moment = _moment(router, router.samples[-SAMPLES + number], routers)
            if moment is None:
                return Trouble(Reason.PAIR_NOT_SEEN, "the routers were not seen within 5 s of each other")
            found = _primary_at(moment)
            if isinstance(found, Trouble):
                return found
            primaries.append(found)
    if len(set(primaries)) > 1:
        return Trouble(Reason.NO_SINGLE_PRIMARY, f"the role PRIMARY moved while it was looked at: {_names(primaries)}")
    return _not_synced(primaries[0], routers) or Proof(primaries[0], last)


def primary_now(routers: Sequence[Router]) -> str | Trouble | None:
    """The PRIMARY by the last sample of each, whenever it was taken; None: a router was never sampled."""
    if not all(router.samples for router in routers):
        return None
    return _primary_at({router.name: router.samples[-1] for router in routers})


def _moment(router: Router, sample: PairSample, routers: Sequence[Router]) -> dict[str, PairSample] | None:
    """What was seen on all of them together with this sample."""
    moment = {router.name: sample}
    for other in routers:
        if other.name == router.name:
            continue
        nearest = min(other.samples, key=lambda each: abs(each.at - sample.at))
        if abs(nearest.at - sample.at) > TOGETHER:
            return None
        moment[other.name] = nearest
    return moment


def _primary_at(moment: Mapping[str, PairSample]) -> str | Trouble:
    """Who has the gateways at one moment, if everything agrees."""
    silent = [name for name, sample in moment.items() if not sample.keepalived or not sample.gateways]
    if silent:
        return Trouble(Reason.NO_SINGLE_PRIMARY, f"keepalived does not run, or has no gateway: {_names(silent)}")
    split = [name for name, sample in moment.items() if len({gateway.held for gateway in sample.gateways}) > 1]
    if split:
        return Trouble(Reason.NO_SINGLE_PRIMARY, f"some gateways and not the others are on {_names(split)}")
    holders = [name for name, sample in moment.items() if sample.gateways[0].held]
    if len(holders) > 1:
        return Trouble(Reason.DUPLICATE_PRIMARY, f"the guest gateway is on {_names(holders)}")
    if not holders:
        return Trouble(Reason.NO_SINGLE_PRIMARY, f"the guest gateway is on none of {_names(moment)}")
    primary = holders[0]
    for check in (_wrong_answers, _wrong_public_side, _wrong_word):
        trouble = check(primary, moment)
        if trouble is not None:
            return trouble
    return primary


def _wrong_answers(primary: str, moment: Mapping[str, PairSample]) -> Trouble | None:
    """Every other router, and nobody else, hears the PRIMARY's MAC."""
    macs = {gateway.address: gateway.mac for gateway in moment[primary].gateways}
    for name, sample in moment.items():
        for gateway in sample.gateways:
            where = f"{gateway.address} in the guest network of {name}"
            expected = () if name == primary else (macs.get(gateway.address, ""),)
            if not gateway.asked:
                return Trouble(Reason.PAIR_NOT_SEEN, f"nobody could be asked for {where}")
            if gateway.answers == expected:
                continue
            if not gateway.answers:
                return Trouble(Reason.NO_SINGLE_PRIMARY, f"nobody answers for {where}")
            said = ", ".join(gateway.answers)
            return Trouble(Reason.DUPLICATE_PRIMARY, f"{said} answers for {where}, and {primary} has the gateway")
    return None


def _wrong_public_side(primary: str, moment: Mapping[str, PairSample]) -> Trouble | None:
    up = [name for name, sample in moment.items() if name != primary and sample.public_up]
    if up:
        text = f"{primary} has the gateway, and the public interface is up on {_names(up)} too"
        return Trouble(Reason.DUPLICATE_PRIMARY, text)
    if moment[primary].public_up is False:
        return Trouble(Reason.NO_SINGLE_PRIMARY, f"{primary} has the gateway, and its public interface is down")
    return None


def _wrong_word(primary: str, moment: Mapping[str, PairSample]) -> Trouble | None:
    """What the scripts wrote down, and what each router needs to take over."""
    for name, sample in moment.items():
        role = RedundancyRole.PRIMARY if name == primary else RedundancyRole.BACKUP
        if sample.state is not role:
            said = sample.state or RedundancyRole.UNKNOWN
            return Trouble(Reason.NO_SINGLE_PRIMARY, f"by its gateway {name} is {role}, by its redundant_state {said}")
        if not sample.heartbeat:
            return Trouble(Reason.NO_SINGLE_PRIMARY, f"keepalived on {name} has not written its heartbeat for 10 s")
        if not sample.conntrackd:
            return Trouble(Reason.PAIR_NOT_SYNCED, _silence(name, sample.conntrackd_lock))
    return None


def _silence(name: str, left_lock: str | None) -> str:
    if left_lock is None:
        return f"conntrackd does not answer on {name}"
    return (
        f"conntrackd does not start on {name}: one that was killed has left its lock file {left_lock}. Remove that "
        "file there and start conntrackd"
    )


def _not_synced(primary: str, routers: Sequence[Router]) -> Trouble | None:
    """The BACKUPs know the PRIMARY's connections, by their last counts."""
    last = {router.name: router.samples[-1] for router in routers}
    flows = last[primary].flows or 0
    for name, sample in last.items():
        missing = flows - (sample.replicated or 0)
        if name != primary and missing > max(MISSING_FLOWS, MISSING_SHARE * flows):
            text = f"{name} knows {sample.replicated or 0} of the {flows} connections of {primary}"
            return Trouble(Reason.PAIR_NOT_SYNCED, text)
    return None


def _names(names: Sequence[str] | Mapping[str, PairSample]) -> str:
    return ", ".join(sorted(set(names)))
