"""Pure decisions: versions, compatibility, drift, method, selection, plans, admission, and what every status says.

Data in, data out. No I/O, clock, randomness, environment or logger, and nothing of kopf, Kubernetes or SSH: whatever a
decision needs is an argument, so that the same arguments give the same answer in the operator, in the command line and
in a test. A new rule is a new checker in a list. Every sentence that a person reads about a decision is written here.
"""
