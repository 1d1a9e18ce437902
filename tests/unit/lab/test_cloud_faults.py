"""The switches of the stand-in, as `lab cloud faults NAME=VALUE` sets them: each does what it says, or is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from lab import cli
from lab.cloud import Answer, CutJob, Faults, Patch, World, cloud_server
from lab.cloud.process import CloudProcess


@pytest.mark.parametrize(
    ("name", "value", "means"),
    [
        ("patch", "first-only", Patch.FIRST_ONLY),
        ("cut_job", "work-goes-on", CutJob.WORK_GOES_ON),
        ("answer", "html", Answer.HTML),
        ("keep_old_router", True, True),
        ("keep_old_router", 1, True),
        ("half_lists", False, False),
        ("throttle", 3, 3),
        ("delay_seconds", 2, 2.0),
        ("clock_ahead_seconds", -90.5, -90.5),
        ("commands", "listRouters", {"listRouters"}),
        ("commands", "listRouters,listSystemVms", {"listRouters", "listSystemVms"}),
        ("commands", "listRouters, listZones ", {"listRouters", "listZones"}),
        ("commands", ["listRouters"], {"listRouters"}),
        ("commands", "", set()),
    ],
)
def test_a_switch_is_set_to_what_was_written(name: str, value: object, means: object) -> None:
    faults = Faults()
    faults.set_from({name: value})
    assert getattr(faults, name) == means
    assert type(getattr(faults, name)) is type(means)
    others = {each.name for each in fields(faults)} - {name}
    assert all(getattr(faults, other) == getattr(Faults(), other) for other in others)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("sunspots", 1, "no fault 'sunspots'; there are patch, "),
        ("patch", "sometimes", "patch is one of works, nothing, first-only, fails, not 'sometimes'"),
        ("answer", 4, "answer is one of "),
        ("keep_old_router", "no", "keep_old_router is true or false, not 'no'"),
        ("throttle", "three", "throttle is a count, not 'three'"),
        ("throttle", 2.5, "throttle is a count"),
        ("throttle", True, "throttle is a count"),
        ("delay_seconds", "2s", "delay_seconds is a number, not '2s'"),
        ("commands", 5, "commands are names with commas between them, not 5"),
        ("commands", ["listZones", 5], "commands are names with commas between them"),
    ],
)
def test_a_value_that_would_not_do_what_it_says_is_refused_and_nothing_is_set(
    name: str, value: object, told: str
) -> None:
    faults = Faults()
    with pytest.raises(ValueError, match=told):
        faults.set_from({"errors": 7, name: value})
    assert faults == Faults()


def test_a_fault_of_some_commands_concerns_those_and_no_other() -> None:
    faults = Faults()
    assert faults.concerns("listRouters")
    faults.set_from({"commands": "listRouters,listZones"})
    assert [name for name in ("listRouters", "listZones", "listHosts") if faults.concerns(name)] == [
        "listRouters",
        "listZones",
    ]


async def test_commands_are_told_in_any_case_and_only_those_there_are() -> None:
    world = World()
    async with cloud_server(world) as url, aiohttp.ClientSession() as session:
        control = url.replace("/client/api", "/lab/faults")
        async with session.post(control, json={"answer": "html", "commands": "listrouters"}) as done:
            assert done.status == 200
        assert world.faults.concerns("listRouters")
        async with session.post(control, json={"answer": "empty", "commands": "listRuoters"}) as refused:
            assert refused.status == 400
            assert "no command 'listRuoters'; there are " in (await refused.json())["error"]
    assert (world.faults.answer, world.faults.commands) == (Answer.HTML, {"listRouters"})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], {}),
        (["answer=html", "commands=listRouters"], {"answer": "html", "commands": "listRouters"}),
        (["commands=listRouters,listZones"], {"commands": "listRouters,listZones"}),
        (
            ["throttle=3", "half_lists=true", "delay_seconds=1.5"],
            {"throttle": 3, "half_lists": True, "delay_seconds": 1.5},
        ),
    ],
)
def test_the_command_line_says_it_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: dict[str, object]
) -> None:
    said: list[dict[str, object]] = []

    class Server:
        def tell(self, control: str, values: dict[str, object]) -> dict[str, object]:
            assert control == "faults"
            Faults().set_from(values)
            said.append(values)
            return {}

    monkeypatch.setattr(CloudProcess, "attach", lambda _lab: Server())
    done = CliRunner().invoke(cli.main, ["--dir", str(tmp_path), "cloud", "faults", *words])
    assert done.exit_code == 0, done.output
    assert said == [told]
