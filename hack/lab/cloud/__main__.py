"""`python -m lab.cloud --dir RUN_FOLDER`: serves the default cloud of a lab that is up. Started by the lab itself."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from lab.cloud.fleet import default_world, lab_cloud
from lab.hosts import Hosts
from lab.machines import Lab

READY = "cloud.json"
"""Below the run folder: where the server listens and with which keys, written once it answers."""


async def serve(run_dir: Path, release: str) -> None:
    lab = Lab(run_dir, say=lambda line: print(line, flush=True))
    world = default_world(release)
    async with lab_cloud(lab, world, release=release) as (server, _):
        ready = run_dir / READY
        partial = ready.with_suffix(".partial")
        partial.write_text(
            json.dumps(
                {
                    "url": server.url,
                    "users": {user.name: {"key": user.api_key, "secret": user.secret} for user in world.users},
                    "hosts": {
                        host.name: {"address": str(host.address), "port": host.port, "user": host.user}
                        for host in Hosts(lab).all()
                    },
                    "host_key": str(Hosts(lab).private_key),
                },
                indent=1,
            )
        )
        partial.replace(ready)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--release", default="old")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.dir.absolute(), arguments.release))


if __name__ == "__main__":
    main()
