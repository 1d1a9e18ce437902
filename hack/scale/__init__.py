"""What ten thousand system VMs cost the operator: memory, processor, writes, time, on a real API server.

The VMs answer at once and take no time, so that what is measured is the operator and not SSH.
"""
