"""The management server: API client, jobs, inventory, the calls that change something.

It returns what a cloud says as the plain values of `sysvm.domain.cloud` and knows no Kubernetes object and no SSH.
"""
