"""Whole rollouts on virtual time: the real engine, a small API server in memory, and system VMs that are values.

Hours of soak and windows pass in milliseconds, every life of the operator can be ended at any write, and the same
scenario gives the same log to the letter. What is simulated here is proven elsewhere against the real thing: the API
server in tests/integration, the VMs in tests/system.
"""
