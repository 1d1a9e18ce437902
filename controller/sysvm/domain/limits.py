"""A count or a percentage as a number of VMs. The direction of rounding is a promise, so it has one place."""

from sysvm.api.base import IntOrPercent


def rounded_down(limit: IntOrPercent, of: int) -> int:
    """For what must not be exceeded: a percentage is rounded down, and is at least 1, or nothing could ever go on."""
    return max(1, limit if isinstance(limit, int) else of * _percent(limit) // 100)


def rounded_up(limit: IntOrPercent, of: int) -> int:
    """For what a wave adds: 10% of 5 VMs is one VM, not none."""
    return limit if isinstance(limit, int) else -(-of * _percent(limit) // 100)


def _percent(limit: str) -> int:
    return int(limit.rstrip("%"))
