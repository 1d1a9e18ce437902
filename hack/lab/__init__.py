"""The lab: a small CloudStack on one machine, made of real parts.

A real API server, system VMs with real systemd and sshd, real payload archives. It may import ``sysvm.api`` (the contract) and nothing
else of the product, so that a stand-in never shares the product's mistakes.
"""
