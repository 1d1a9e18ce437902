"""Live patch of one VM: payload, SSH transport, the program on the VM, the operator's side of the transaction.

Knows no Kubernetes object and no management server. It returns typed results and raises `PatchingError`; it never logs
a decision and never imports telemetry.
"""
