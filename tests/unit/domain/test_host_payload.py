"""What a hypervisor host keeps, against what its VMs are brought to."""

from __future__ import annotations

import pytest
from tests.unit.domain.builders import (
    NEW_SIGNATURE,
    facts,
    observed,
    release,
    up_to_date,
)

from sysvm.api.policy import HostPayloadRule, LivePatchOptions, Method
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import Observed, ObservedHostPayload
from sysvm.api.template import Signature
from sysvm.domain.facts import Release
from sysvm.domain.host_payload import host_mismatch, is_build_of
from sysvm.domain.method import decide

OURS, ANOTHERS = "5c" * 32, "0b" * 32
RELEASE = release().model_copy(update={"scripts_revision": OURS})
BUILD = Signature(algorithm="sha512", value="cc" * 64)
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
