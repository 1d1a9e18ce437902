"""The page about the management server says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from sysvm.cloudstack.commands import CHANGES, READS
from sysvm.cloudstack.preflight import COMMANDS, Feature

PAGE = (Path(__file__).resolve().parents[3] / "docs/cloudstack.md").read_text()
TABLE = PAGE.partition("| feature | commands |")[2].partition("\n\n")[0]
ROWS = re.findall(r"^\| `([^`]+)` \| (.+) \|$", TABLE, re.MULTILINE)


def test_the_page_lists_the_commands_of_every_feature() -> None:
    listed = {feature: tuple(re.findall(r"`(\w+)`", commands)) for feature, commands in ROWS}
    expected = {str(feature): commands for feature, commands in COMMANDS.items()}
    expected[str(Feature.OBSERVE)] = ("listApis", *expected[str(Feature.OBSERVE)])
    assert listed == expected


def test_no_other_command_can_leave_the_operator() -> None:
    listed = {command for _, commands in ROWS for command in re.findall(r"`(\w+)`", commands)}
    assert listed == READS | CHANGES
