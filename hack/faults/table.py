"""The table: one row a fault, the sums last."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


class End(enum.StrEnum):
    """What a VM is after a fault and its recovery."""

    OLD = "old"
    NEW = "new"
    THEIRS = "theirs"
    """Wholly what somebody else wrote over it meanwhile, under his own signature."""
    INCONSISTENT = "inconsistent"
    """It says loudly that a person has to look, and its signature is zeros. Only in rows that destroy the way back."""
    NEITHER = "neither"


@dataclass(frozen=True)
class Result:
    """How one trial ended.

    Attributes:
        fault: name of the row.
        where: at which place of the work, for people.
        end: what the VM is.
        detail: what differs, if it is NEITHER.
    """

    fault: str
    where: str
    end: End
    detail: str = ""


@dataclass
class Table:
    """Counts by row, in the order of their first appearance, and the failures with their places."""

    loud: frozenset[str] = frozenset()
    """Rows in which INCONSISTENT is an allowed end."""
    foreign: frozenset[str] = frozenset()
    """Rows in which THEIRS is one."""
    rows: dict[str, Counter[End]] = field(default_factory=dict)
    failures: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count a trial; an end that its row does not allow is a failure."""
        self.rows.setdefault(result.fault, Counter())[result.end] += 1
        if not self.allows(result):
            self.failures.append(result)

    def allows(self, result: Result) -> bool:
        """Whether a trial of this row may end so."""
        if result.end is End.INCONSISTENT:
            return result.fault in self.loud
        if result.end is End.THEIRS:
            return result.fault in self.foreign
        return result.end is not End.NEITHER

    def text(self, names: Iterable[str] = ()) -> str:
        """For the terminal and the docs (Markdown), rows in the order of `names`, then as they came."""
        order = [name for name in names if name in self.rows]
        order += [name for name in self.rows if name not in order]
        width = max([len(name) for name in order] + [5])
        head = ["trials", *(str(end) for end in End)]
        lines = [f"| {'fault':<{width}} | " + " | ".join(f"{word:>12}" for word in head) + " |"]
        lines.append(f"|{'-' * (width + 2)}|" + "|".join("-" * 13 + ":" for _ in head) + "|")
        total: Counter[End] = Counter()
        for name in order:
            lines.append(_row(name, width, self.rows[name]))
            total.update(self.rows[name])
        lines.append(_row("sum", width, total))
        return "\n".join(lines)


def _row(name: str, width: int, counts: Counter[End]) -> str:
    cells = [counts.total(), *(counts[end] for end in End)]
    return f"| {name:<{width}} | " + " | ".join(f"{cell:>12}" for cell in cells) + " |"
