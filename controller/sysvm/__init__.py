"""sysvm-operator: brings Apache CloudStack system VMs to a declared release, one transaction a VM.

The layers, and who may import whom, are contracts in `pyproject.toml` (import-linter):
`operator -> engine -> {patching, cloudstack, kube} -> domain -> api`.
"""

__version__ = "0.1.0"
