"""The sentence about a VM whose operation did not succeed: it names VM, step and output, and is written once."""

from collections.abc import Sequence

from sysvm.api.operation import OperationResult, StepResult
from sysvm.domain.conditions import bounded
from sysvm.domain.facts import VMFacts

OUTPUT_LIMIT = 600
"""Characters of one VM's failure inside a sentence."""

_VERBS = {
    OperationResult.ROLLED_BACK: "was rolled back after step {step} failed",
    OperationResult.FAILED: "failed in step {step}",
    OperationResult.INCONSISTENT: "is neither old nor new: rolling back failed in step {step}",
}


def failure_of(facts: VMFacts) -> str:
    """`r-101-VM was rolled back after step Services failed: ...`. Empty if its last operation did not fail."""
    operation = facts.operation
    if operation is None or operation.result is None or operation.result is OperationResult.SUCCEEDED:
        return ""
    failed = next((step for step in operation.steps if step.result is StepResult.FAILED), None)
    step = (failed.name if failed else operation.step) or "Connect"
    told = operation.message
    if failed is not None and failed.message and failed.message not in told:
        told = f"{failed.message}. {told}" if told else failed.message
    sentence = f"{facts.vm} {_VERBS[operation.result].format(step=step)}"
    return f"{sentence}: {bounded(told, OUTPUT_LIMIT)}" if told else sentence


def failures_of(failed: Sequence[VMFacts]) -> str:
    """The first failure in full, the others by name."""
    if not failed:
        return ""
    first, others = failure_of(failed[0]), [facts.vm for facts in failed[1:]]
    if not others:
        return first
    named = ", ".join(others[:10]) + (f" and {len(others) - 10} more" if len(others) > 10 else "")
    return f"{first} Also failed: {named}"
