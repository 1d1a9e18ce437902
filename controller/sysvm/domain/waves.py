"""Wave after wave: which may take VMs now, and how far each one is.

A wave's phase is stored before anything relies on it. Admission opens a wave only when the status in the cluster says
that those before it are Done, and `soakUntil` is written before its end is waited for: a process that ends in between
leaves a wave that is still Running or Soaking, and the next one goes on from there.
"""

from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise

from sysvm.api.base import format_time
from sysvm.api.rollout import Rollout, WavePhase, WaveStatus
from sysvm.api.strategy import WaveSpec
from sysvm.domain.conditions import bounded
from sysvm.domain.drift import drift_of
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.members import RolloutView, WaveView, changed_here, has_begun

MESSAGE_LIMIT = 512


def current_wave(rollout: Rollout, view: RolloutView) -> WaveView | None:
    """The first one that the stored status does not call Done; None: all are."""
    done = {wave.name for wave in rollout.status.waves if wave.phase is WavePhase.DONE}
    return next((wave for wave in view.waves if wave.name not in done), None)


def open_waves(rollout: Rollout, view: RolloutView) -> tuple[WaveView, ...]:
    """Those that may take VMs: the current one, and the ones before it for VMs that come back late."""
    current = current_wave(rollout, view)
    names = [wave.name for wave in view.waves]
    return view.waves if current is None else view.waves[: names.index(current.name) + 1]


def progressed(
    rollout: Rollout,
    view: RolloutView,
    release: Release,
    *,
    now: datetime,
    halted: bool,
    skips_soak: Iterable[str] = (),
) -> tuple[WaveStatus, ...]:
    """The status of every wave now. `halted`: nothing goes on, so no wave ends and none begins. `skips_soak`: waves
    whose approval says that they need not wait until the one before has soaked."""
    stored = {wave.name: wave for wave in rollout.status.waves}
    specs = {spec.name: spec for spec in rollout.spec.snapshot.strategy.waves}
    hurried = _hurried(view, frozenset(skips_soak))
    found: list[WaveStatus] = []
    turn = True
    for wave in view.waves:
        before = stored.get(wave.name, WaveStatus(name=wave.name, digest=wave.digest))
        status = _counted(rollout, wave, before)
        if turn and not halted and before.phase is not WavePhase.DONE:
            hurry = wave.name in hurried
            status = _advanced(rollout, wave, status, specs.get(wave.name), release, now=now, hurry=hurry)
        found.append(status)
        turn = turn and status.phase is WavePhase.DONE
    return tuple(found)


def _hurried(view: RolloutView, skips_soak: frozenset[str]) -> frozenset[str]:
    """Waves that need not soak, because the next one with VMs in it was approved with skipSoak."""
    with_vms = [wave.name for wave in view.waves if wave.size]
    return frozenset(name for name, following in pairwise(with_vms) if following in skips_soak)


def _counted(rollout: Rollout, wave: WaveView, before: WaveStatus) -> WaveStatus:
    return before.model_copy(
        update={
            "digest": wave.digest,
            "size": wave.size,
            "done": len(wave.done),
            "in_work": len(wave.in_work),
            "failed": len(wave.failed),
            "skipped": len(wave.skipped) + len(wave.held) + len(wave.stuck) + len(wave.missing),
            "returned": len(wave.returned),
            "appended": wave.appended,
            "started_at": before.started_at or _first_start(rollout.metadata.name, wave),
            "message": wave.note,
        }
    )


def _advanced(
    rollout: Rollout,
    wave: WaveView,
    status: WaveStatus,
    spec: WaveSpec | None,
    release: Release,
    *,
    now: datetime,
    hurry: bool,
) -> WaveStatus:
    if wave.unfinished:
        phase = WavePhase.WAITING if status.started_at is None else WavePhase.RUNNING
        return status.model_copy(update={"phase": phase, "soak_until": None})
    changed = changed_here(rollout.metadata.name, wave)
    if spec is None or not spec.soak or not changed or hurry:
        return _ended(status, now)
    if status.phase is not WavePhase.SOAKING or status.soak_until is None:
        return status.model_copy(update={"phase": WavePhase.SOAKING, "soak_until": now + spec.soak})
    unwell = next((told for facts in changed if (told := _ailment(facts, release)) is not None), None)
    if now < status.soak_until:
        return status if unwell is None else _told(status, f"soaking, but {unwell}")
    if unwell is None:
        return _ended(status, now)
    return _told(status, f"has soaked since {format_time(status.soak_until)} and cannot end: {unwell}")


def _told(status: WaveStatus, message: str) -> WaveStatus:
    return status.model_copy(update={"message": bounded(message, MESSAGE_LIMIT)})


def _ended(status: WaveStatus, now: datetime) -> WaveStatus:
    return status.model_copy(update={"phase": WavePhase.DONE, "finished_at": now})


def _ailment(facts: VMFacts, release: Release) -> str | None:
    """What keeps a changed VM from counting as one that has stayed well."""
    if facts.ailment is not None:
        return f"{facts.vm} {facts.ailment}"
    if not facts.looked_at_after_operation():
        return f"{facts.vm} was not looked at since it was patched"
    if facts.pair_trouble:
        return facts.pair_trouble.sentence
    drift = drift_of(facts, release)
    return f"{facts.vm} is not at the release any more" if drift.certain and drift.kinds else None


def _first_start(rollout: str, wave: WaveView) -> datetime | None:
    begun = [
        facts.operation.started_at
        for facts in (*wave.in_work, *wave.done, *wave.failed, *wave.returned, *wave.retrying, *wave.waiting)
        if has_begun(rollout, facts) and facts.operation is not None and facts.operation.rollout == rollout
    ]
    return min(begun, default=None)


def soaking(waves: Iterable[WaveStatus]) -> WaveStatus | None:
    return next((wave for wave in waves if wave.phase is WavePhase.SOAKING), None)
