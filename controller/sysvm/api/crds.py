"""The kinds as CustomResourceDefinitions: their names, what `kubectl get` shows, and what can be selected by field.

Printer columns answer three questions, in this order: is it done, what is it doing, why is it waiting. Conditions are
found by type, never by position.
"""

from dataclasses import dataclass

from pydantic import BaseModel

from sysvm.api.approval import RolloutApproval
from sysvm.api.base import CATEGORY, GROUP, VERSION
from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.policy import PatchPolicy
from sysvm.api.rollout import Rollout
from sysvm.api.schema import JsonObject, kind_schema
from sysvm.api.systemvm import SystemVM
from sysvm.api.template import SystemVMTemplate
from sysvm.api.window import MaintenanceWindow


@dataclass(frozen=True)
class Column:
    """One column of `kubectl get`; a wide one shows with `-o wide` only."""

    name: str
    json_path: str
    type: str = "string"
    wide: bool = False

    def to_dict(self) -> JsonObject:
        """As an entry of `additionalPrinterColumns`."""
        column: JsonObject = {"name": self.name, "type": self.type, "jsonPath": self.json_path}
        return {**column, "priority": 1} if self.wide else column


@dataclass(frozen=True)
class Kind:
    """What a CustomResourceDefinition says beside its schema."""

    model: type[BaseModel]
    plural: str
    short_name: str
    columns: tuple[Column, ...]
    selectable_fields: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as SystemVM."""
        return self.model.__name__

    @property
    def crd_name(self) -> str:
        """Such as systemvms.sysvm.io."""
        return f"{self.plural}.{GROUP}"


_READY_STATUS = '.status.conditions[?(@.type=="Ready")].status'
_READY_REASON = '.status.conditions[?(@.type=="Ready")].reason'
_READY_MESSAGE = '.status.conditions[?(@.type=="Ready")].message'

_READY = Column("Ready", _READY_STATUS)
_REASON = Column("Reason", _READY_REASON)
_AGE = Column("Age", ".metadata.creationTimestamp", "date")
_MESSAGE = Column("Message", _READY_MESSAGE, wide=True)

KINDS: tuple[Kind, ...] = (
    Kind(
        CloudStackEndpoint,
        "cloudstackendpoints",
        "cse",
        (
            _READY,
            Column("Management", ".spec.management"),
            Column("VMs", ".status.counts.systemVMs", "integer"),
            Column("Unreachable", ".status.counts.unreachable", "integer"),
            _REASON,
            _AGE,
            Column("Suspended", ".spec.suspend", "boolean", wide=True),
            _MESSAGE,
        ),
    ),
    Kind(
        SystemVMTemplate,
        "systemvmtemplates",
        "svt",
        (
            _READY,
            Column("Version", ".spec.version"),
            Column("Files", ".status.files", "integer"),
            _REASON,
            _AGE,
            Column("Revision", ".status.revision", wide=True),
            _MESSAGE,
        ),
    ),
    Kind(
        PatchPolicy,
        "patchpolicies",
        "spp",
        (
            _READY,
            Column("Progress", ".status.progress.summary"),
            Column("Updating", ".status.counts.updating", "integer"),
            Column("Failed", ".status.counts.failed", "integer"),
            Column("Template", ".spec.templateRef.name"),
            _REASON,
            _AGE,
            Column("Endpoint", ".spec.endpointRef.name", wide=True),
            Column("Rollout", ".status.lastRollout.name", wide=True),
            Column("Suspended", ".spec.suspend", "boolean", wide=True),
            _MESSAGE,
        ),
    ),
    Kind(
        SystemVM,
        "systemvms",
        "svm",
        (
            Column("Type", ".status.identity.type"),
            Column("State", ".status.state"),
            Column("Method", ".status.plan.method"),
            Column("Step", ".status.operation.step"),
            _REASON,
            Column("Role", ".status.redundancy.role"),
            _AGE,
            Column("Address", ".status.identity.address", wide=True),
            Column("Host", ".status.identity.host", wide=True),
            Column("Template", ".status.observed.template.version", wide=True),
            Column("Rollout", ".spec.operation.rollout", wide=True),
            _MESSAGE,
        ),
        (
            ".spec.endpointRef.name",
            ".spec.operation.rollout",
            ".status.identity.zone",
            ".status.identity.type",
            ".status.identity.host",
            ".status.plan.method",
            ".status.state",
        ),
    ),
    Kind(
        Rollout,
        "rollouts",
        "svr",
        (
            Column("Policy", ".spec.policyRef.name"),
            Column("Phase", ".status.phase"),
            Column("Progress", ".status.summary"),
            Column("Result", ".status.result"),
            _REASON,
            _AGE,
            Column("State", ".spec.state", wide=True),
            Column("Template", ".spec.templateRef.name", wide=True),
            Column("Cause", ".spec.cause", wide=True),
            _MESSAGE,
        ),
        (".spec.policyRef.name", ".spec.endpointRef.name"),
    ),
    Kind(
        MaintenanceWindow,
        "maintenancewindows",
        "svmw",
        (
            Column("Effect", ".spec.effect"),
            Column("Open", ".status.open", "boolean"),
            Column("Next open", ".status.nextOpen"),
            Column("Next close", ".status.nextClose"),
            _REASON,
            _AGE,
            Column("Rule", ".spec.schedule.rrule", wide=True),
            Column("Start", ".spec.schedule.start", wide=True),
            Column("Duration", ".spec.schedule.duration", wide=True),
            Column("Time zone", ".spec.schedule.timeZone", wide=True),
            _MESSAGE,
        ),
    ),
    Kind(
        RolloutApproval,
        "rolloutapprovals",
        "svra",
        (
            Column("Rollout", ".spec.rolloutRef.name"),
            Column("Wave", ".spec.wave"),
            Column("Decision", ".spec.decision"),
            Column("Approver", ".spec.approver"),
            Column("Counts", _READY_STATUS),
            _REASON,
            Column("Expires", ".spec.expiresAt", wide=True),
            _AGE,
            _MESSAGE,
        ),
        (".spec.rolloutRef.name", ".spec.wave"),
    ),
)


def custom_resource_definition(kind: Kind) -> JsonObject:
    """The whole object, ready to be applied."""
    version: JsonObject = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [column.to_dict() for column in kind.columns],
        "schema": {"openAPIV3Schema": kind_schema(kind.model)},
    }
    if kind.selectable_fields:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable_fields]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": [CATEGORY],
            },
            "versions": [version],
        },
    }
