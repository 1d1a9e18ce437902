"""A real Kubernetes API server on loopback, for the lab and for the tests.

etcd, kube-apiserver and the few controllers without which garbage is not collected and namespaces never end. No
kubelet and no scheduler: a Deployment is stored here, never run. Nothing in this package knows a system VM.
"""

from lab.controlplane.binaries import Tool, Unavailable
from lab.controlplane.disposable import disposable
from lab.controlplane.server import ControlPlane, ControlPlaneError, KubectlError

__all__ = ["ControlPlane", "ControlPlaneError", "KubectlError", "Tool", "Unavailable", "disposable"]
