"""Names of the objects that the operator makes: deterministic, so that a restart finds them and makes no second one."""

import hashlib


def system_vm_name(endpoint: str, vm: str) -> str:
    """Name of the SystemVM object: `<endpoint>-<vm>` in lower case."""
    return f"{endpoint}-{vm}".lower()


def rollout_name(policy: str, revision: str, number: int) -> str:
    """`<policy>-<first 8 of the revision>-<n>`."""
    return f"{policy}-{revision[:8]}-{number}"


def plan_name(rollout: str) -> str:
    """Name of the ConfigMap that holds a rollout's plan."""
    return f"{rollout}-plan"


def operation_id(rollout_uid: str, vm_uid: str, attempt: int) -> str:
    """Id of one attempt on one VM: the same inputs give the same id, so that admitting twice is admitting once."""
    seed = f"{rollout_uid}/{vm_uid}/{attempt}".encode()
    return f"op-{hashlib.sha256(seed).hexdigest()[:20]}"
