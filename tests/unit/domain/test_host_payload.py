"""What a hypervisor host keeps, against what its VMs are brought to."""

from __future__ import annotations

import pytest
from tests.unit.domain.builders import (
    NEW_SIGNATURE,
    NOW,
    facts,
    observed,
    policy,
    release,
    system_vm,
    template,
    up_to_date,
)
from tests.unit.domain.test_policy_status import situation

from sysvm.api.methods import HostPayloadRule, LivePatchOptions, Method
from sysvm.api.observed import Observed, ObservedHostPayload
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import VMState
from sysvm.api.template import Signature
from sysvm.domain.facts import Reach, Release
from sysvm.domain.host_payload import host_mismatch, is_build_of
from sysvm.domain.method import decide
from sysvm.domain.policy_status import policy_status
from sysvm.domain.system_vm_status import system_vm_truth

OURS, ANOTHERS = "5c" * 32, "0b" * 32
RELEASE = release().model_copy(update={"scripts_revision": OURS})
BUILD = Signature(algorithm="sha512", value="cc" * 64)
REACHED = Reach(True, Reason.REACHABLE)
WARN = LivePatchOptions(host_payload=HostPayloadRule.WARN)


def behind(seen: Observed, revision: str | None, checksum: str = f"sha512:{'dd' * 64}") -> Observed:
    kept = ObservedHostPayload(host="kvm-1", checksum=checksum, revision=revision)
    return seen.model_copy(update={"host_payload": kept})


@pytest.mark.parametrize("seen", [observed(), up_to_date()], ids=["outdated", "at the release"])
@pytest.mark.parametrize("revision", [ANOTHERS, None], ids=["another", "unreadable"])
def test_a_vm_that_its_host_would_take_back_is_held(seen: Observed, revision: str | None) -> None:
    decision = decide(facts(observed=behind(seen, revision)), RELEASE)
    assert (decision.method, decision.reason) == (Method.HOLD, Reason.HOST_PAYLOAD_MISMATCH)
    assert not decision.converged
    for word in ("kvm-1", "r-101-VM", "4.20.2", "sha512 dddddddd", "livePatch.hostPayload"):
        assert word in decision.message


def test_with_warn_it_is_patched_and_told() -> None:
    decision = decide(facts(observed=behind(observed(), ANOTHERS)), RELEASE, live_patch=WARN)
    assert decision.method is Method.LIVE_PATCH
    assert any("kvm-1" in warning and "stop and start" in warning for warning in decision.warnings)
    assert decide(facts(observed=behind(up_to_date(), ANOTHERS)), RELEASE, live_patch=WARN).converged


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (behind(observed(), OURS), RELEASE),
        (observed(), RELEASE),
        (behind(observed(), ANOTHERS), release()),
    ],
    ids=["another build of it", "no host on the way", "release read by an older operator"],
)
def test_what_does_not_differ_or_is_not_known_holds_nobody(seen: Observed, wanted: Release) -> None:
    assert host_mismatch(facts(observed=seen), wanted) is None
    assert decide(facts(observed=seen), wanted).method is Method.LIVE_PATCH


def test_the_hosts_build_is_the_release_and_not_another_signature() -> None:
    seen = behind(up_to_date(signature=BUILD), OURS, f"sha512:{BUILD.value}")
    assert is_build_of(facts(observed=seen), RELEASE)
    decision = decide(facts(observed=seen), RELEASE)
    assert decision.reason is Reason.UP_TO_DATE
    elsewhere = behind(up_to_date(signature=BUILD), OURS, f"sha512:{NEW_SIGNATURE.value}")
    assert decide(facts(observed=elsewhere), RELEASE).reason is Reason.SIGNATURE_ONLY


def test_a_file_changed_by_hand_under_the_hosts_build_is_drift() -> None:
    seen = behind(observed(signature=BUILD), OURS, f"sha512:{BUILD.value}")
    decision = decide(facts(observed=seen), RELEASE)
    assert decision.drift.was_at_release
    assert decision.reason is Reason.DRIFTED


def test_a_policy_waits_for_the_host_and_says_so() -> None:
    wanted = template()
    wanted = wanted.model_copy(update={"status": wanted.status.model_copy(update={"scripts_revision": OURS})})
    ahead = facts("r-1-VM", observed=behind(up_to_date(), ANOTHERS))
    good = facts("r-2-VM", observed=behind(up_to_date(), OURS))
    status = policy_status(situation(ahead, good, template=wanted), now=NOW)
    ready = next(condition for condition in status.conditions if condition.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "HostPayloadMismatch")
    assert "r-1-VM" in ready.message
    assert status.counts is not None
    assert (status.counts.held, status.counts.converged) == (1, 1)
    assert not any(condition.type in ("Stalled", "Reconciling") for condition in status.conditions)
    allowed = situation(ahead, good, template=wanted, policy=policy(livePatch={"hostPayload": "Warn"}))
    ready = next(each for each in policy_status(allowed, now=NOW).conditions if each.type == "Ready")
    assert ready.reason == "Converged"


def test_a_system_vm_tells_the_mismatch_while_it_lasts() -> None:
    seen = behind(up_to_date(), ANOTHERS)
    vm = system_vm("r-1-VM", observed=seen)
    told = system_vm_truth(vm, reach=REACHED, release=RELEASE, decision=decide(facts(observed=seen), RELEASE), now=NOW)
    condition = next(each for each in told.conditions if each.type == "HostPayloadMismatch")
    assert (condition.status, condition.reason) == ("True", "HostPayloadMismatch")
    assert told.state is VMState.HELD
    seen = behind(up_to_date(), OURS)
    vm = system_vm("r-1-VM", observed=seen)
    told = system_vm_truth(vm, reach=REACHED, release=RELEASE, decision=decide(facts(observed=seen), RELEASE), now=NOW)
    assert not any(each.type == "HostPayloadMismatch" for each in told.conditions)
