"""The kinds that the engine reads and writes, as the cluster layer names them."""

from sysvm.api.base import GROUP, VERSION
from sysvm.kube.objects import Resource

ENDPOINT = Resource(GROUP, VERSION, "cloudstackendpoints", "CloudStackEndpoint")
TEMPLATE = Resource(GROUP, VERSION, "systemvmtemplates", "SystemVMTemplate")
POLICY = Resource(GROUP, VERSION, "patchpolicies", "PatchPolicy")
SYSTEM_VM = Resource(GROUP, VERSION, "systemvms", "SystemVM")
ROLLOUT = Resource(GROUP, VERSION, "rollouts", "Rollout")
APPROVAL = Resource(GROUP, VERSION, "rolloutapprovals", "RolloutApproval")
WINDOW = Resource(GROUP, VERSION, "maintenancewindows", "MaintenanceWindow")
CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap")
SECRET = Resource("", "v1", "secrets", "Secret")

WATCHED = (ENDPOINT, TEMPLATE, POLICY, SYSTEM_VM, ROLLOUT, APPROVAL, WINDOW)
