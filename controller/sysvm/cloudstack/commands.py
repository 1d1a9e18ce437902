"""Which of the management server's commands the operator may send, and which of them change something.

Two closed sets, so that what only looks can never change a cloud: a read refuses every name that is not in `READS`, and
a changing call refuses every name that is not in `CHANGES` (a prefix would not do: `getDiagnosticsData` and
`getUploadParamsForTemplate` change things). `preflight` and the page of permissions speak of the same names.
"""

READS = frozenset(
    {
        "listApis",
        "listAsyncJobs",
        "listCapabilities",
        "listCapacity",
        "listConfigurations",
        "listEgressFirewallRules",
        "listFirewallRules",
        "listHosts",
        "listInternalLoadBalancerVMs",
        "listLoadBalancerRules",
        "listManagementServers",
        "listNetworkACLs",
        "listNetworks",
        "listOsTypes",
        "listPortForwardingRules",
        "listPublicIpAddresses",
        "listRouters",
        "listSystemVms",
        "listTemplates",
        "listVPCs",
        "listZones",
        "queryAsyncJobResult",
    }
)
"""Safe to repeat: none of them changes anything."""

CHANGES = frozenset(
    {
        "destroySystemVm",
        "patchSystemVm",
        "rebootRouter",
        "rebootSystemVm",
        "registerTemplate",
        "restartNetwork",
        "restartVPC",
        "updateConfiguration",
        "updateTemplate",
    }
)
"""Sent once, and only with the power to change."""
