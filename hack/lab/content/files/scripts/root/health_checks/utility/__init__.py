# Shared by the checks.
