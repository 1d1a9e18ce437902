"""Condition types, reasons and event reasons: an API that programs match on, so each exists once.

`docs/reference/reasons.md` lists them; a test holds docs and code together.
"""

from enum import StrEnum


class ConditionType(StrEnum):
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    REACHABLE = "Reachable"
    ACCEPTED = "Accepted"
    CONSISTENT = "Consistent"
    TEMPLATE_OUTDATED = "TemplateOutdated"
    POLICY_CHANGED = "PolicyChanged"


class Reason(StrEnum):
    """Why a condition has its status, why a VM has its method, why an operation ended as it did."""

    # Any kind
    PENDING = "Pending"
    SUSPENDED = "Suspended"
    INVALID_SPEC = "InvalidSpec"
    ENDPOINT_NOT_FOUND = "EndpointNotFound"
    TEMPLATE_NOT_FOUND = "TemplateNotFound"
    TEMPLATE_NOT_READY = "TemplateNotReady"

    # CloudStackEndpoint
    REACHABLE = "Reachable"
    VMS_UNREACHABLE = "VMsUnreachable"
    CREDENTIALS_MISSING = "CredentialsMissing"
    CREDENTIALS_UNREADABLE = "CredentialsUnreadable"
    KNOWN_HOSTS_MISSING = "KnownHostsMissing"
    NAME_CONFLICT = "NameConflict"
    DISCOVERING = "Discovering"

    # SystemVMTemplate
    PAYLOAD_READY = "PayloadReady"
    PAYLOAD_NOT_FOUND = "PayloadNotFound"
    PAYLOAD_FETCH_FAILED = "PayloadFetchFailed"
    DIGEST_MISMATCH = "DigestMismatch"
    PAYLOAD_UNREADABLE = "PayloadUnreadable"
    PAYLOAD_UNSAFE = "PayloadUnsafe"
    PAYLOAD_TOO_LARGE = "PayloadTooLarge"

    # PatchPolicy and Rollout
    CONVERGED = "Converged"
    ROLLING_OUT = "RollingOut"
    OBSERVE_ONLY = "ObserveOnly"
    DRIFTED = "Drifted"
    NO_VMS = "NoVMs"
    CONFLICT = "Conflict"
    PLAN_COMPUTED = "PlanComputed"
    VM_FAILED = "VMFailed"
    ROLLBACK_FAILED = "RollbackFailed"
    PAUSED = "Paused"
    ABORTED = "Aborted"
    SUPERSEDED = "Superseded"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    NO_WAY_BACK = "NotRetried"
    VMS_HELD = "VMsHeld"

    # SystemVM, method and blockers
    UP_TO_DATE = "UpToDate"
    SCRIPTS_OUTDATED = "ScriptsOutdated"
    SIGNATURE_ONLY = "SignatureOnly"
    CONTENT_DRIFTED = "ContentDrifted"
    SIGNATURE_MISMATCH = "SignatureMismatch"
    PARTIAL_PATCH = "PartialPatch"
    NOT_OBSERVED = "NotObserved"
    EXCLUDED = "Excluded"
    ON_HOLD = "OnHold"
    NOT_COMPATIBLE = "NotCompatible"
    VERSION_UNKNOWN = "VersionUnknown"
    TYPE_MISMATCH = "TypeMismatch"
    METHOD_NOT_ALLOWED = "MethodNotAllowed"
    WAITING_FOR_GROUP = "WaitingForGroup"
    WAITING_FOR_SLOT = "WaitingForSlot"
    WAITING_FOR_HOST = "WaitingForHost"
    LAST_OF_ZONE = "LastOfZone"
    NO_SINGLE_PRIMARY = "NoSinglePrimary"
    TEMPLATE_OUTDATED = "TemplateOutdated"
    AGENT_OUTDATED = "AgentOutdated"

    # SystemVM, reaching it
    SSH_UNREACHABLE = "SSHUnreachable"
    SSH_TIMEOUT = "SSHTimeout"
    SSH_AUTHENTICATION_FAILED = "SSHAuthenticationFailed"
    HOST_KEY_CHANGED = "HostKeyChanged"
    HOST_KEY_UNKNOWN = "HostKeyUnknown"
    CONNECTION_LOST = "ConnectionLost"
    NOT_A_SYSTEM_VM = "NotASystemVM"
    PROTOCOL_ERROR = "ProtocolError"

    # SystemVM, operation
    IN_WORK = "InWork"
    VM_BUSY = "VMBusy"
    LOCK_HELD = "LockHeld"
    EPOCH_REFUSED = "EpochRefused"
    OPERATION_REPEATED = "OperationRepeated"
    DISK_FULL = "DiskFull"
    MEMORY_LOW = "MemoryLow"
    OTHER_ACTOR = "OtherActor"
    STAGE_FAILED = "StageFailed"
    BUILD_FAILED = "BuildFailed"
    SWITCH_FAILED = "SwitchFailed"
    SERVICE_FAILED = "ServiceFailed"
    VERIFY_FAILED = "VerifyFailed"
    ROLLED_BACK = "RolledBack"
    INCONSISTENT = "Inconsistent"
    INTERRUPTED = "Interrupted"
    RECOVERED_AT_BOOT = "RecoveredAtBoot"
    TIMED_OUT = "TimedOut"


class EventReason(StrEnum):
    """Reasons of Kubernetes Events: what a person wants to be told."""

    ROLLOUT_STARTED = "RolloutStarted"
    ROLLOUT_SUCCEEDED = "RolloutSucceeded"
    ROLLOUT_FAILED = "RolloutFailed"
    ROLLOUT_ENDED = "RolloutEnded"
    PATCH_STARTED = "PatchStarted"
    PATCHED = "Patched"
    ROLLED_BACK = "RolledBack"
    INCONSISTENT = "Inconsistent"
    HELD = "Held"
    UNREACHABLE = "Unreachable"
    REACHABLE = "ReachableAgain"
    HOST_KEY_CHANGED = "HostKeyChanged"
    DRIFTED = "Drifted"
    PAYLOAD_READY = "PayloadReady"
    PAYLOAD_REFUSED = "PayloadRefused"
    FINALIZER_DROPPED = "FinalizerDropped"
    LEADER = "Leading"
