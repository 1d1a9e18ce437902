"""The judge of CloudStack's own live patch: when the call may be made, whether it had an effect, what proves it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method
from sysvm.api.observed import ApiCommand, ApiPatchCall, ObservedHostPayload, ObservedManagement, RedundancyRole
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.domain.api_patch import ApiPatch, aim_of
from sysvm.domain.calls import Command, Job, Look, Looked, Standing, Verdict
from sysvm.domain.cloud import CloudHost, CloudVM, CloudVMState, CloudZone
from sysvm.domain.facts import VMFacts
from sysvm.domain.gate import ServerPayload
from sysvm.domain.group_operation import Limits, after_restart, apply, begun
from sysvm.domain.rule_counts import ListedRules

from . import builders as b

SINCE = b.ago(minutes=2)
CHECKSUM = "bb" * 64
RELEASE = b.release().model_copy(update={"scripts_revision": b.NEW})
ZONE = CloudZone(id="z1", name="ams-1", min_template_version="4.20.1", version_check=True, recreating_checks=())
HOST = CloudHost(id="h1", name="kvm-1", address="192.0.2.9", zone_id="z1", hypervisor="KVM")
OTHER_HOST = replace(HOST, id="h2", name="kvm-2")
OTHER = ObservedHostPayload(host="kvm-2", checksum=f"sha512:{CHECKSUM}", revision=b.NEW)
CALL = ApiPatchCall(command=ApiCommand.RESTART_NETWORK, id="n1", name="blue", vms=("r-1-VM", "r-2-VM"))
JUDGE = ApiPatch(release=RELEASE, server=ServerPayload(CHECKSUM, "read"), server_version="4.21.0.0", zones={"z1": ZONE})


def router(name: str = "r-1-VM", **values: Any) -> CloudVM:
    """As the books have it after a patch that was noted: below the minimum, with the server's scripts."""
    known: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "type": SystemVMType.ROUTER,
        "state": CloudVMState.RUNNING,
        "zone_id": "z1",
        "zone": "ams-1",
        "host_id": "h1",
        "host": "kvm-1",
        "hypervisor": "KVM",
        "network_id": "n1",
        "template_version": "4.19.1",
        "scripts_version": CHECKSUM,
        "software_version": "4.21.0.0",
    }
    return CloudVM(**{**known, **values})


def known(name: str = "r-1-VM", *, at: datetime | None = None, patched: bool = True, **values: Any) -> VMFacts:
    at = at or b.ago(minutes=1)
    role = values.pop("role", None)
    inside = {name: values.pop(name) for name in ("failed_services", "signature", "payload") if name in values}
    host = values.pop("host_payload", ObservedHostPayload(host="kvm-1", checksum=f"sha512:{CHECKSUM}", revision=b.NEW))
    make = b.up_to_date if patched else b.observed
    books = ObservedManagement(at=at, api_patch=values.pop("api_patch", CALL))
    observed = make(at=at, **inside).model_copy(update={"host_payload": host, "management": books})
    return b.facts(name, observed=observed, hypervisor="KVM", role=role, **values)


def look(*vms: CloudVM, facts: tuple[VMFacts, ...] = (), at: datetime = b.NOW, **values: Any) -> Look:
    values = {"hosts": (HOST,), "rules": ListedRules({}), **values}
    return Look(taken_at=at, vms=vms, known=facts, zone=ZONE, **values)


def operation(phase: GroupPhase = GroupPhase.VERIFYING, *, since: datetime = SINCE, **values: Any) -> GroupOperation:
    aim = aim_of(CALL, "r-1-VM", "blue")
    made = begun(aim.group, Method.LIVE_PATCH, aim.call, router(), ["op-1"], since)
    marks = ({"id": "id-r-1-VM", "name": "r-1-VM"},)
    return GroupOperation.model_validate(
        {**made.to_dict(), "phase": phase, "before": marks, "submittedAt": since, "submissions": 1, **values}
    )


def test_a_network_or_vpc_is_one_call_and_an_ssvm_is_forced() -> None:
    aim = aim_of(CALL, "r-1-VM", "blue")
    assert (aim.group, str(aim.call), aim.whole_group) == ("blue", "restartNetwork id=n1 livepatch=true", True)
    ssvm = ApiPatchCall(command=ApiCommand.PATCH_SYSTEM_VM, id="s1", name="s-1-VM")
    aim = aim_of(ssvm, "s-1-VM", "secstorage@ams-1")
    assert (aim.group, str(aim.call), aim.whole_group) == ("s-1-VM", "patchSystemVm id=s1 forced=true", False)
    assert JUDGE.call(operation()).command is Command.RESTART_NETWORK


@pytest.mark.parametrize(
    ("seen", "standing", "reason"),
    [
        (look(router(), facts=(known(patched=False),)), Standing.HOLDS, None),
        (look(), Standing.BROKEN, Reason.VM_GONE),
        (look(router(), facts=(known(),), jobs=(Job(id="j", command="RestartNetworkCmd"),)), Standing.NOT_YET, "Job"),
        (look(router(job_id="j"), facts=(known(),)), Standing.NOT_YET, Reason.JOB_RUNNING),
        (look(router(state=CloudVMState.MIGRATING), facts=(known(),)), Standing.NOT_YET, Reason.JOB_RUNNING),
        (look(router(state=CloudVMState.STOPPED), facts=(known(),)), Standing.BROKEN, Reason.VM_NOT_RUNNING),
        (
            look(router(), router("r-2-VM", state=CloudVMState.STOPPED), facts=(known(), known("r-2-VM"))),
            Standing.BROKEN,
            Reason.VM_NOT_RUNNING,
        ),
        (look(router(), facts=(known(),), hosts=()), Standing.NOT_YET, Reason.HOST_NOT_READY),
        (look(router(), facts=(known(),), hosts=(replace(HOST, state="Down"),)), Standing.NOT_YET, "Host"),
        (look(router(), facts=(known(host_payload=None),)), Standing.NOT_YET, Reason.NOT_OBSERVED),
        (
            look(
                router(),
                facts=(known(host_payload=ObservedHostPayload(host="kvm-1", checksum="md5:aa", revision=b.OLD)),),
            ),
            Standing.BROKEN,
            Reason.HOST_PAYLOAD_MISMATCH,
        ),
        (
            look(router(host_id="h2", host="kvm-2"), facts=(known(patched=False),), hosts=(HOST, OTHER_HOST)),
            Standing.NOT_YET,
            Reason.NOT_OBSERVED,
        ),
        (
            look(
                router(host_id="h2", host="kvm-2"),
                facts=(known(patched=False, host_payload=OTHER),),
                hosts=(HOST, OTHER_HOST),
            ),
            Standing.HOLDS,
            None,
        ),
        (
            look(router(), facts=(known(api_patch=CALL.model_copy(update={"patches": 3})),)),
            Standing.BROKEN,
            Reason.TOO_MANY_API_PATCHES,
        ),
    ],
)
def test_before_the_call_everything_stands_still_and_every_host_holds_the_release(
    seen: Look, standing: Standing, reason: str | None
) -> None:
    verdict = JUDGE.before(operation(GroupPhase.PREPARING), seen)
    assert verdict.standing is standing
    assert reason is None or str(verdict.reason).startswith(reason)


@pytest.mark.parametrize(
    ("seen", "standing"),
    [
        (look(router(), facts=(known(),)), Standing.NEEDLESS),
        (look(router(scripts_version="aa" * 64), facts=(known(),)), Standing.HOLDS),
        (look(router(scripts_version=None), facts=(known(),)), Standing.HOLDS),
        (look(router(), router("r-2-VM"), facts=(known(), known("r-2-VM", patched=False))), Standing.HOLDS),
        (look(router(), facts=(known(at=b.ago(minutes=3)),)), Standing.NOT_YET),
    ],
)
def test_no_call_is_made_where_nothing_is_left_to_do(seen: Look, standing: Standing) -> None:
    """Who was patched before a process ended may be ordered once more from books of before: gate and files decide."""
    preparing = operation(GroupPhase.PREPARING, submittedAt=None, submissions=0, before=())
    verdict = JUDGE.before(preparing, seen)
    assert verdict.standing is standing, verdict
    found = apply(preparing, Looked(seen), JUDGE, Limits(step=timedelta(minutes=9), vm=timedelta(hours=1)), b.NOW)
    if standing is Standing.NEEDLESS:
        assert (found.phase, found.result, found.submissions) == (GroupPhase.DONE, OperationResult.SUCCEEDED, 0)
        assert found.reason == Reason.UP_TO_DATE
        assert found.message == "r-1-VM had the release and took commands already: restartNetwork was not called"
    else:
        assert found.phase is (GroupPhase.SUBMITTING if standing is Standing.HOLDS else GroupPhase.PREPARING)


def test_a_lost_call_that_worked_late_is_verified_and_not_made_again() -> None:
    limits = Limits(step=timedelta(minutes=9), vm=timedelta(hours=1))
    found = apply(operation(GroupPhase.PREPARING), Looked(look(router(), facts=(known(),))), JUDGE, limits, b.NOW)
    assert (found.phase, found.submissions) == (GroupPhase.VERIFYING, 1)


@pytest.mark.parametrize(
    ("seen", "standing", "said"),
    [
        (look(router(), facts=(known(),)), Standing.HOLDS, ""),
        (look(router(), facts=(known(at=b.ago(minutes=3)),)), Standing.NOT_YET, "not compared since"),
        (look(router(), facts=(known(reach=b.UNREACHABLE),)), Standing.NOT_YET, "no answer within 10 s"),
        (look(router(), facts=(known(patched=False),)), Standing.BROKEN, "its files are not those of the release"),
        (
            look(router(scripts_version="aa" * 64), facts=(known(),)),
            Standing.BROKEN,
            "the management server sends no command to r-1-VM",
        ),
        (look(router(software_version="4.20.2.0"), facts=(known(),)), Standing.BROKEN, "at 4.20.2.0, not 4.21.0.0"),
        (look(router(), facts=(known(failed_services=("haproxy",)),)), Standing.BROKEN, "services failed: haproxy"),
        (look(router("r-9-VM"), facts=(known("r-9-VM"),)), Standing.BROKEN, "not those that were patched: r-9-VM"),
    ],
)
def test_success_counts_only_if_vm_and_books_agree(seen: Look, standing: Standing, said: str) -> None:
    verdict = JUDGE.after(operation(), seen)
    assert verdict.standing is standing, verdict
    assert said in verdict.sentence
    assert standing is not Standing.BROKEN or verdict.reason is Reason.CLAIM_NOT_VERIFIED


def test_books_and_services_may_take_a_minute_and_files_may_not() -> None:
    soon = SINCE + timedelta(seconds=30)
    at = SINCE + timedelta(seconds=10)

    def after(vm: CloudVM, facts: VMFacts) -> Verdict:
        return JUDGE.after(operation(), look(vm, facts=(facts,), at=soon))

    assert after(router(scripts_version="aa" * 64), known(at=at)).standing is Standing.NOT_YET
    assert after(router(), known(at=at, failed_services=("dnsmasq",))).standing is Standing.NOT_YET
    assert after(router(), known(at=at, patched=False)).standing is Standing.BROKEN


def test_the_signature_must_be_that_of_the_hosts_build() -> None:
    other = ObservedHostPayload(host="kvm-1", checksum=f"sha512:{'cc' * 64}", revision=b.NEW)
    verdict = JUDGE.after(operation(), look(router(), facts=(known(host_payload=other),)))
    assert (verdict.standing, verdict.reason) == (Standing.BROKEN, Reason.CLAIM_NOT_VERIFIED)
    assert "its signature is bbbbbbbb, not cccccccc" in verdict.sentence


def test_a_pair_must_have_one_primary_afterwards() -> None:
    pair = (router("r-1-VM", redundant=True), router("r-2-VM", redundant=True))
    both = operation(before=[{"id": vm.id, "name": vm.name} for vm in pair])
    backups = tuple(known(vm.name, group="blue", role=RedundancyRole.BACKUP) for vm in pair)
    verdict = JUDGE.after(both, look(*pair, facts=backups))
    assert (verdict.standing, verdict.reason) == (Standing.BROKEN, Reason.CLAIM_NOT_VERIFIED)
    well = (known("r-1-VM", role=RedundancyRole.PRIMARY), known("r-2-VM", role=RedundancyRole.BACKUP))
    assert JUDGE.after(both, look(*pair, facts=well)).standing is Standing.HOLDS


@pytest.mark.parametrize(
    ("minutes", "facts", "vm", "changed"),
    [
        (5, known(), router(), True),
        (5, known(patched=False), router(), None),
        (20, known(patched=False), router(), False),
        (20, known(), router(scripts_version="aa" * 64), False),
        (20, known(at=b.ago(minutes=30), patched=False), router(), None),
        (20, known(reach=b.UNREACHABLE), router(), None),
    ],
)
def test_a_lost_call_is_only_then_without_effect_when_no_host_can_still_be_at_it(
    minutes: int,
    facts: VMFacts,
    vm: CloudVM,
    changed: bool | None,
) -> None:
    lost = operation(GroupPhase.UNKNOWN, submittedAt=b.ago(minutes=minutes))
    assert JUDGE.changed(lost, look(vm, facts=(facts,))) is changed


PAIR = (router("r-1-VM"), router("r-2-VM"))
LIMITS = Limits(step=timedelta(minutes=9), vm=timedelta(hours=1))


def lost(*before: VMFacts, minutes: int, vms: tuple[CloudVM, ...] = PAIR) -> GroupOperation:
    """The process ended right after it had stored that it is about to call, so long ago, with the VMs like this."""
    began = b.ago(minutes=minutes)
    preparing = operation(GroupPhase.PREPARING, since=b.ago(hours=1), submittedAt=None, submissions=0, before=())
    stored = apply(preparing, Looked(look(*vms, facts=before, at=began)), JUDGE, LIMITS, preparing.started_at)
    assert stored.phase is GroupPhase.SUBMITTING, stored
    stored = GroupOperation.model_validate({**stored.to_dict(), "submittedAt": began})
    return after_restart(stored, began)


def found(unknown: GroupOperation, *now: VMFacts, vms: tuple[CloudVM, ...] = PAIR) -> GroupOperation:
    return apply(unknown, Looked(look(*vms, facts=now)), JUDGE, LIMITS, b.NOW)


def test_a_router_that_was_at_the_release_before_proves_nothing_of_a_call_that_was_lost() -> None:
    half = known("r-1-VM"), known("r-2-VM", patched=False)
    assert [vm.done for vm in lost(*half, minutes=5).before] == [True, False]
    waits = found(lost(*half, minutes=5), *half)
    assert (waits.phase, waits.submissions) == (GroupPhase.UNKNOWN, 1), "a host may still be at it"
    again = found(lost(*half, minutes=20), *half)
    assert (again.phase, again.submissions) == (GroupPhase.PREPARING, 1)
    assert again.message == "lost the job; nothing has changed: once more"
    worked = found(lost(*half, minutes=5), known("r-1-VM"), known("r-2-VM"))
    assert worked.phase is GroupPhase.VERIFYING


@pytest.mark.parametrize(
    ("before", "vm"),
    [
        (known(), router(scripts_version="aa" * 64)),
        (known(signature=b.ZEROS), router()),
        (known(signature=b.OLD_SIGNATURE, payload="sha512:" + "cc" * 64), router()),
    ],
    ids=["the books", "an unfinished patch", "another archive"],
)
def test_files_that_match_are_not_all_that_the_call_brings(before: VMFacts, vm: CloudVM) -> None:
    unknown = lost(before, minutes=20, vms=(vm,))
    assert [each.done for each in unknown.before] == [False]
    assert found(unknown, before, vms=(vm,)).phase is GroupPhase.PREPARING
    assert found(unknown, known(), vms=(router(),)).phase is GroupPhase.VERIFYING


def test_a_patch_after_which_services_fail_was_made_and_is_not_made_again() -> None:
    unknown = lost(known(patched=False), minutes=20, vms=(router(),))
    assert found(unknown, known(failed_services=("haproxy",)), vms=(router(),)).phase is GroupPhase.VERIFYING


def test_a_call_for_services_that_failed_is_without_effect_while_they_do() -> None:
    failed = known(failed_services=("haproxy",))
    unknown = lost(failed, minutes=20, vms=(router(),))
    again = found(unknown, failed, vms=(router(),))
    assert again.phase is GroupPhase.PREPARING
    assert found(unknown, known(), vms=(router(),)).phase is GroupPhase.PREPARING
    later = b.NOW + timedelta(seconds=9)
    works = Looked(look(router(), facts=(known(at=b.NOW + timedelta(seconds=5)),), at=later))
    assert apply(again, works, JUDGE, LIMITS, later).phase is GroupPhase.VERIFYING, "it is seen before the next call"
