"""The machine of a call to the management server: it ends or says why, and never calls twice on a guess."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.domain.builders import NOW

from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.domain import group_operation as machine
from sysvm.domain.api_patch import LONGEST_PATCH
from sysvm.domain.calls import (
    HOLDS,
    Call,
    Command,
    Event,
    Job,
    JobState,
    JobTold,
    Look,
    Looked,
    NoAnswer,
    NotMade,
    NotTold,
    Refused,
    Submitted,
    Verdict,
    broken,
    not_yet,
)
from sysvm.domain.cloud import CloudVM, CloudVMState
from sysvm.domain.facts import VMFacts
from sysvm.domain.group_operation import Limits, Todo

LIMITS = Limits(step=timedelta(minutes=10), vm=timedelta(minutes=30))
CALL = Call(Command.RESTART_NETWORK, "n-1", ("cleanup",))


def router(number: int, state: CloudVMState = CloudVMState.RUNNING, job: str | None = None) -> CloudVM:
    return CloudVM(
        id=f"id-{number}", name=f"r-{number}-VM", type=SystemVMType.ROUTER, state=state, zone_id="z", zone="ams-1",
        network_id="n-1", job_id=job,
    )  # fmt: skip


def look(*vms: CloudVM, at: datetime = NOW, jobs: tuple[Job, ...] = (), known: tuple[VMFacts, ...] = ()) -> Look:
    return Look(taken_at=at, vms=vms, jobs=jobs, known=known)


class Replaces:
    """A judge of the least: the one router is another one afterwards."""

    def call(self, operation: GroupOperation) -> Call:
        return CALL

    def before(self, operation: GroupOperation, seen: Look) -> Verdict:
        return HOLDS if seen.vms else broken(Reason.VM_GONE, "no router")

    def is_done(self, seen: Look, vm: CloudVM) -> bool:
        return False

    def changed(self, operation: GroupOperation, seen: Look) -> bool | None:
        return {vm.id for vm in seen.vms} != {vm.id for vm in operation.before}

    def after(self, operation: GroupOperation, seen: Look) -> Verdict:
        if self.changed(operation, seen):
            return HOLDS
        if operation.job_failure:
            return broken(Reason.CLAIM_NOT_VERIFIED, "nothing was replaced")
        return not_yet(Reason.CLAIM_NOT_VERIFIED, "nothing was replaced")


JUDGE = Replaces()


def begun() -> GroupOperation:
    return machine.begun("network/n-1", Method.RECREATE, CALL, router(1), ["op-1"], NOW)


def after(operation: GroupOperation, *events: Event, now: datetime = NOW) -> GroupOperation:
    for event in events:
        operation = machine.apply(operation, event, JUDGE, LIMITS, now)
    return operation


SUBMITTING = after(begun(), Looked(look(router(1))))
RUNNING = after(SUBMITTING, Submitted("job-1"))
UNKNOWN = after(SUBMITTING, NoAnswer("the connection broke"))
VERIFYING = after(RUNNING, JobTold(JobState.SUCCEEDED))
ONCE_MORE = after(
    UNKNOWN.model_copy(update={"submitted_at": NOW - machine.EXPIRES - machine.QUIET, "since": NOW - machine.QUIET}),
    Looked(look(router(1))),
)
"""Its first call was lost, and had changed nothing."""


def test_the_vms_as_they_are_are_stored_before_the_call() -> None:
    assert SUBMITTING.phase is GroupPhase.SUBMITTING
    assert [vm.id for vm in SUBMITTING.before] == ["id-1"]
    assert SUBMITTING.submissions == 1


@pytest.mark.parametrize(
    ("operation", "event", "phase", "result"),
    [
        (begun(), Refused(Reason.ON_HOLD, "held"), GroupPhase.DONE, OperationResult.FAILED),
        (begun(), Looked(look()), GroupPhase.DONE, OperationResult.FAILED),
        (begun(), NotTold("503"), GroupPhase.PREPARING, None),
        (SUBMITTING, Submitted("job-1"), GroupPhase.RUNNING, None),
        (SUBMITTING, Refused(Reason.API_ERROR, "431"), GroupPhase.DONE, OperationResult.FAILED),
        (SUBMITTING, NoAnswer("cut"), GroupPhase.UNKNOWN, None),
        (SUBMITTING, NotMade("not the leader"), GroupPhase.PREPARING, None),
        (RUNNING, JobTold(JobState.PENDING), GroupPhase.RUNNING, None),
        (RUNNING, JobTold(JobState.SUCCEEDED), GroupPhase.VERIFYING, None),
        (RUNNING, JobTold(JobState.FAILED, "530"), GroupPhase.VERIFYING, None),
        (RUNNING, JobTold(JobState.LOST, "cut by a restart"), GroupPhase.UNKNOWN, None),
        (RUNNING, NotTold("the server does not answer"), GroupPhase.RUNNING, None),
        (VERIFYING, Looked(look(router(1))), GroupPhase.VERIFYING, None),
        (VERIFYING, Looked(look(router(2))), GroupPhase.DONE, OperationResult.SUCCEEDED),
        (UNKNOWN, Looked(look(router(2))), GroupPhase.UNKNOWN, None),
        # What comes late says nothing.
        (VERIFYING, JobTold(JobState.LOST), GroupPhase.VERIFYING, None),
        (RUNNING, Submitted("job-2"), GroupPhase.RUNNING, None),
        (UNKNOWN, Submitted("job-2"), GroupPhase.UNKNOWN, None),
    ],
)
def test_each_event_leads_to_one_state(
    operation: GroupOperation, event: Event, phase: GroupPhase, result: OperationResult | None
) -> None:
    found = after(operation, event)
    assert (found.phase, found.result) == (phase, result)


def test_a_call_found_submitting_after_a_restart_is_not_made_again() -> None:
    found = machine.after_restart(SUBMITTING, NOW)
    assert found.phase is GroupPhase.UNKNOWN
    assert machine.todo(found) is Todo.LOOK


def test_a_call_that_was_not_made_counts_as_none() -> None:
    found = after(SUBMITTING, NotMade("another process leads"))
    assert (found.submissions, found.before, found.submitted_at) == (0, (), None)
    assert found.message == "another process leads"


def test_an_unknown_call_is_judged_only_after_three_minutes_in_which_nothing_moved() -> None:
    late = NOW + timedelta(minutes=2, seconds=59)
    moving = after(UNKNOWN, Looked(look(router(1, CloudVMState.STOPPING))), now=late)
    assert moving.message == "lost the job; r-1-VM is Stopping"
    still = after(moving, Looked(look(router(1))), now=late)
    assert still.message == "lost the job; nothing moves any more"
    assert after(still, Looked(look(router(1))), now=late + machine.QUIET - timedelta(seconds=1)) == still
    assert after(still, Looked(look(router(1))), now=late + machine.QUIET).phase is GroupPhase.PREPARING
    soon = after(UNKNOWN, Looked(look(router(1))), now=NOW + machine.QUIET)
    assert (soon.phase, soon.message) == (
        GroupPhase.UNKNOWN,
        "nothing has changed; the call may still be on its way",
    )
    assert after(still, Looked(look(router(2))), now=late + machine.QUIET).phase is GroupPhase.VERIFYING


def test_while_any_job_that_may_be_ours_runs_nothing_is_judged() -> None:
    job = Job(id="j-9", command="RestartNetworkCmd", created=NOW)
    found = after(UNKNOWN, Looked(look(router(1), jobs=(job,))), now=NOW + timedelta(hours=5))
    assert found.phase is GroupPhase.UNKNOWN
    assert found.message == "lost the job; job j-9 (RestartNetworkCmd) runs since 2026-11-22T12:00:00Z"


def test_a_lost_call_that_works_while_the_next_is_prepared_is_not_made_again() -> None:
    """Nobody is replaced twice."""
    held_up = after(ONCE_MORE, Looked(look(router(1, CloudVMState.MIGRATING))))
    assert held_up.phase is GroupPhase.PREPARING
    late = after(held_up, Looked(look(router(2))))
    assert (late.phase, late.submissions) == (GroupPhase.VERIFYING, 1)
    assert after(late, Looked(look(router(2)))).result is OperationResult.SUCCEEDED


def test_a_second_call_that_cannot_be_made_leaves_nobody_who_went() -> None:
    ended = after(ONCE_MORE, Looked(look(router(1, CloudVMState.MIGRATING))), now=NOW + LIMITS.step)
    assert (ended.result, ended.before, ended.submitted_at) == (OperationResult.FAILED, (), None)


def test_a_second_call_that_is_lost_too_ends_it() -> None:
    quiet = machine.EXPIRES + machine.QUIET
    again = after(UNKNOWN, Looked(look(router(1))), Looked(look(router(1))), now=NOW + quiet)
    assert (again.phase, again.submissions) == (GroupPhase.SUBMITTING, 2)
    lost = after(again, NoAnswer("the connection broke"), now=NOW + quiet)
    ended = after(lost, Looked(look(router(1))), now=NOW + 2 * quiet)
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.JOB_LOST)
    assert ended.message == "the connection broke; nothing has changed after 2 calls"


def test_a_job_that_failed_is_told_with_what_there_is_now() -> None:
    verifying = after(RUNNING, JobTold(JobState.FAILED, "Unable to create a deployment for VM instance"))
    ended = after(verifying, Looked(look(router(1))))
    assert ended.result is OperationResult.FAILED
    assert ended.message == (
        "restartNetwork: Unable to create a deployment for VM instance; nothing was replaced"
    )  # fmt: skip


def test_a_job_that_failed_and_did_everything_is_still_a_failure() -> None:
    ended = after(RUNNING, JobTold(JobState.FAILED, "timeout"), Looked(look(router(2))))
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.JOB_FAILED)


def test_a_failure_remembers_who_went_with_it_and_nobody_who_stayed() -> None:
    failed = after(RUNNING, JobTold(JobState.FAILED, "530"))
    assert after(failed, Looked(look(router(1)))).before == ()
    assert [vm.name for vm in after(failed, Looked(look(router(2)))).before] == ["r-1-VM"]
    assert after(SUBMITTING, Refused(Reason.API_ERROR, "431")).before == ()


def test_a_job_that_hangs_is_told_and_never_called_again() -> None:
    late = after(RUNNING, JobTold(JobState.PENDING), now=NOW + timedelta(days=6))
    assert late.phase is GroupPhase.RUNNING
    assert late.message == "job job-1 runs longer than timeouts.vm: look at the management server"


def test_what_waits_too_long_before_the_call_ends_with_nothing_changed() -> None:
    moving = Looked(look(router(1, CloudVMState.MIGRATING)))
    waits = after(begun(), moving)
    assert (waits.phase, waits.message) == (GroupPhase.PREPARING, "r-1-VM is Migrating")
    ended = after(waits, moving, now=NOW + LIMITS.step)
    assert (ended.reason, ended.message) == (Reason.JOB_RUNNING, "r-1-VM is Migrating; nothing was changed")


@pytest.mark.parametrize(
    ("held_up", "told"),
    [
        ((NotTold("the server does not answer"),), "the server does not answer; nothing was changed"),
        (
            (Looked(look(router(1))), NotMade("not called, no backup of r-1-VM")),
            "not called, no backup of r-1-VM; nothing was changed",
        ),
    ],
)
def test_a_call_that_could_not_be_made_in_the_time_of_a_step_is_not_made_later(
    held_up: tuple[Event, ...], told: str
) -> None:
    """Its order was given for now: later may be another window, or another cloud."""
    waits, well = after(begun(), *held_up), Looked(look(router(1)))
    assert waits.phase is GroupPhase.PREPARING
    assert after(waits, well, now=NOW + LIMITS.step - timedelta(seconds=1)).phase is GroupPhase.SUBMITTING
    ended = after(waits, well, now=NOW + LIMITS.step)
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.TIMED_OUT)
    assert (ended.message, ended.submissions, ended.before) == (told, 0, ())


def test_what_is_not_as_it_should_be_in_time_ends_with_the_reason() -> None:
    ended = after(VERIFYING, Looked(look(router(1))), now=NOW + LIMITS.vm)
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.CLAIM_NOT_VERIFIED)


# Nobody answers


class Mute(Replaces):
    """A judge that sees nothing: its VMs let nobody in."""

    def before(self, operation: GroupOperation, seen: Look) -> Verdict:
        return not_yet(Reason.NOT_OBSERVED, "r-1-VM must be looked at first")

    def changed(self, operation: GroupOperation, seen: Look) -> bool | None:
        return None

    def after(self, operation: GroupOperation, seen: Look) -> Verdict:
        return not_yet(Reason.NOT_OBSERVED, "r-1-VM was not looked at since the job ended")


def silent(now: datetime) -> Event:
    return NotTold("the server answers 503")


def mute(now: datetime) -> Event:
    return Looked(look(router(1), at=now))


def stuck(now: datetime) -> Event:
    return Looked(look(router(1, CloudVMState.STOPPING), at=now))


def lived(operation: GroupOperation, events: Sequence[Callable[[datetime], Event]], gap: timedelta) -> GroupOperation:
    """The operation as it has ended after these events, one a gap, again and again."""
    now = NOW
    for event in itertools.islice(itertools.cycle(events), 5_000):
        if operation.result is not None:
            return operation
        operation = machine.apply(operation, event(now), Mute(), LIMITS, now)
        now += gap
    raise AssertionError(f"it lasts for ever: {operation}")


@pytest.mark.parametrize("limits", [LIMITS, Limits(step=timedelta(seconds=10), vm=timedelta(seconds=10))])
def test_no_call_is_given_up_while_a_host_may_still_be_at_it(limits: Limits) -> None:
    assert limits.silence >= LONGEST_PATCH
    assert limits.silence > machine.EXPIRES + machine.QUIET


@pytest.mark.parametrize(
    ("operation", "events", "limit", "reason"),
    [
        (begun(), [silent], LIMITS.step, Reason.TIMED_OUT),
        (begun(), [mute], LIMITS.step, Reason.NOT_OBSERVED),
        (begun(), [stuck], LIMITS.step, Reason.JOB_RUNNING),
        (ONCE_MORE, [silent], LIMITS.step, Reason.JOB_LOST),
        (RUNNING, [silent], LIMITS.silence, Reason.JOB_LOST),
        (UNKNOWN, [silent], LIMITS.silence, Reason.JOB_LOST),
        (UNKNOWN, [mute], LIMITS.silence, Reason.JOB_LOST),
        (UNKNOWN, [stuck], LIMITS.silence, Reason.JOB_LOST),
        (VERIFYING, [silent], LIMITS.vm, Reason.CLAIM_NOT_VERIFIED),
        (VERIFYING, [mute], LIMITS.vm, Reason.NOT_OBSERVED),
        (VERIFYING, [stuck], LIMITS.vm, Reason.JOB_RUNNING),
        (after(RUNNING, JobTold(JobState.FAILED, "530")), [silent], LIMITS.vm, Reason.JOB_FAILED),
    ],
)
@pytest.mark.parametrize("gap", [timedelta(seconds=2), timedelta(seconds=15), timedelta(minutes=7)])
def test_every_phase_ends_by_itself_when_nobody_answers(
    operation: GroupOperation,
    events: list[Callable[[datetime], Event]],
    limit: timedelta,
    reason: Reason,
    gap: timedelta,
) -> None:
    ended = lived(operation, events, gap)
    assert (ended.phase, ended.result, ended.reason) == (GroupPhase.DONE, OperationResult.FAILED, reason)
    assert ended.message
    assert ended.finished_at is not None
    assert limit <= ended.finished_at - NOW < limit + gap


@given(
    operation=st.sampled_from([begun(), ONCE_MORE, SUBMITTING, UNKNOWN, VERIFYING]),
    events=st.lists(st.sampled_from([silent, mute]), min_size=1, max_size=6),
    gap=st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(minutes=20)),
)
def test_whatever_does_not_answer_in_whatever_order_it_ends(
    operation: GroupOperation, events: list[Callable[[datetime], Event]], gap: timedelta
) -> None:
    ended = lived(machine.after_restart(operation, NOW), events, gap)
    assert (ended.result, bool(ended.reason), bool(ended.message)) == (OperationResult.FAILED, True, True)
    assert ended.finished_at is not None
    assert ended.finished_at - NOW < LIMITS.step + LIMITS.silence + LIMITS.vm + 3 * gap


def test_a_job_that_is_told_of_again_is_followed_on() -> None:
    """One question without an answer after hours of answers ends nothing."""
    hours = NOW + timedelta(hours=5)
    held = after(RUNNING, JobTold(JobState.PENDING), NotTold("503"), now=hours)
    assert (held.phase, held.silent_since, held.message) == (GroupPhase.RUNNING, hours, "503")
    soon = hours + LIMITS.silence - timedelta(seconds=1)
    told = after(held, JobTold(JobState.PENDING), now=soon)
    assert (told.phase, told.silent_since) == (GroupPhase.RUNNING, None)
    assert after(told, NotTold("503"), now=soon + timedelta(seconds=1)).phase is GroupPhase.RUNNING


def test_a_job_that_nobody_tells_of_may_still_run_and_keeps_the_next_call_back() -> None:
    given_up = lived(RUNNING, [silent], timedelta(minutes=1))
    assert given_up.message == (
        "job job-1 may still run, look at the management server, which was asked in vain: the server answers 503"
    )
    assert [vm.name for vm in given_up.before] == ["r-1-VM"], "who went with it is not known"
    later = begun().model_copy(update={"since": given_up.since, "started_at": given_up.since})
    waits = after(later, Looked(look(router(1), jobs=(Job(id="job-1"),))), now=given_up.since)
    assert (waits.phase, waits.reason) == (GroupPhase.PREPARING, Reason.JOB_RUNNING)


def test_what_cannot_be_seen_after_a_lost_call_names_who_does_not_answer() -> None:
    ended = lived(UNKNOWN, [mute], timedelta(minutes=1))
    assert ended.message == "lost the job; what it did could not be seen: r-1-VM cannot be reached"
    assert ended.before == ()


def test_what_moves_for_ever_with_no_job_is_told_and_given_up() -> None:
    ended = lived(UNKNOWN, [stuck], timedelta(minutes=1))
    assert ended.message == (
        "lost the job; r-1-VM is Stopping, and no job works on it: look at the management server"
    )  # fmt: skip
    job = Job(id="j-9", command="RestartNetworkCmd")
    busy = Looked(look(router(1, CloudVMState.STOPPING), jobs=(job,)))
    worked = after(UNKNOWN, busy, busy, now=NOW + timedelta(days=2))
    assert worked.phase is GroupPhase.UNKNOWN, "as long as a job is at it nobody gives it up"


# A server that fails at any point


@dataclass
class Server:
    """One router and one job. What a call does, and what becomes of its request and its job, is drawn."""

    now: datetime = NOW
    router: int = 1
    effect_at: datetime | None = None
    """When the router will be another one, whatever becomes of the job; None: never."""
    job: str | None = None
    job_ends: datetime = NOW
    ending: str = "succeeded"
    arrivals: int = 0
    held_up: list[tuple[datetime, str, str]] = field(default_factory=list)
    """Requests on their way: until when, and what becomes of their job."""
    broken: list[str] = field(default_factory=list)

    def pass_time(self, span: timedelta) -> None:
        self.now += span
        for arrives, effect, ending in [each for each in self.held_up if each[0] <= self.now]:
            self.held_up.remove((arrives, effect, ending))
            self.take(effect, ending)
        if self.effect_at is not None and self.effect_at <= self.now:
            self.router, self.effect_at = self.router + 1, None

    @property
    def at_work(self) -> bool:
        return self.effect_at is not None or (self.job is not None and self.now < self.job_ends)

    def take(self, effect: str, ending: str) -> str:
        """A call arrives."""
        if self.at_work:
            self.broken.append("a call arrived while the server was at work")
        if self.router != 1:
            self.broken.append("a call arrived after the router had been replaced")
        self.arrivals += 1
        self.job, self.ending = f"job-{self.arrivals}", ending
        self.job_ends = self.now + timedelta(seconds=8)
        if effect == "done":
            self.effect_at = self.now + timedelta(seconds=6)
        elif effect == "goes on":  # on the host, although the server was restarted
            self.effect_at = self.now + timedelta(seconds=170)
        return self.job

    def submit(self, request: str, effect: str, ending: str) -> Event:
        if request == "refused":
            return Refused(Reason.API_ERROR, "431")
        if request == "lost":
            return NoAnswer("the connection broke")
        if request == "held up":  # a request expires after two minutes
            self.held_up.append((self.now + timedelta(seconds=119), effect, ending))
            return NoAnswer("no answer in time")
        job = self.take(effect, ending)
        return NoAnswer("the answer was lost") if request == "no answer" else Submitted(job)

    def told(self) -> JobTold:
        if self.now < self.job_ends:
            return JobTold(JobState.PENDING)
        return JobTold({"succeeded": JobState.SUCCEEDED, "failed": JobState.FAILED, "cut": JobState.LOST}[self.ending])

    def seen(self) -> Look:
        running = self.job is not None and self.now < self.job_ends
        return look(router(self.router), at=self.now, jobs=(Job(id=self.job or ""),) if running else ())


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["answered", "answered", "no answer", "lost", "held up", "refused"]),
        st.sampled_from(["done", "nothing", "goes on"]),
        st.sampled_from(["succeeded", "failed", "cut"]),
    ),
    min_size=machine.SUBMISSIONS,
    max_size=machine.SUBMISSIONS,
)


@given(
    calls=CALLS,
    restarts=st.sets(st.integers(0, 40), max_size=6),
    silent=st.sets(st.integers(0, 40), max_size=10),
)
def test_it_always_ends_and_never_calls_beside_its_own_call(
    calls: list[tuple[str, str, str]], restarts: set[int], silent: set[int]
) -> None:
    """A process that ends before or after any write, a server that fails at any point."""
    server, stored = Server(), begun()
    drawn = iter(calls)
    for step in range(4000):
        if stored.result is not None:
            break
        todo = machine.todo(stored)
        if todo is Todo.SUBMIT:
            # The call is made only by who has just written Submitting. It may end right before or right after it.
            restart = step in restarts
            event: Event | None = None
            if not restart or step % 2:
                event = server.submit(*next(drawn))
            if restart:
                stored = machine.after_restart(stored, server.now)
                continue
        elif step in silent:
            event = NotTold("the server does not answer")
        else:
            event = server.told() if todo is Todo.ASK_JOB else Looked(server.seen())
        assert event is not None
        stored = machine.apply(stored, event, JUDGE, LIMITS, server.now)
        if machine.todo(stored) is not Todo.SUBMIT:
            server.pass_time(machine.pause(stored, server.now))
    assert not server.broken
    assert stored.result is not None, stored
    assert server.router <= 2
    assert stored.result is OperationResult.FAILED or server.router == 2
    assert stored.result is OperationResult.SUCCEEDED or stored.message
