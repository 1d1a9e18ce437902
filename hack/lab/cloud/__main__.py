"""`python -m lab.cloud --dir RUN_FOLDER`: serves the default cloud of a lab. Started by `lab.cloud.process`."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from lab.cloud.fleet import default_world, lab_cloud
from lab.cloud.process import ready_file
from lab.hosts import Hosts
from lab.machines import Lab


async def serve(run_dir: Path, release: str) -> None:
    """Makes hosts and VMs, says where it listens, and serves until it is killed."""
    lab = Lab(run_dir, say=lambda line: print(line, flush=True))
    world = default_world(release)
    async with lab_cloud(lab, world, release=release) as (server, _):
        hosts = Hosts(lab)
        known = {
            "url": server.url,
            "users": {user.name: {"key": user.api_key, "secret": user.secret} for user in world.users},
            "hosts": {host.name: f"{host.address}:{host.port}" for host in hosts.all()},
            "host_key": str(hosts.private_key),
        }
        partial = ready_file(lab).with_suffix(".partial")
        partial.write_text(json.dumps(known, indent=1))
        partial.replace(ready_file(lab))
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="The lab's management server; started by the lab itself.")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--release", default="old")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.dir.absolute(), arguments.release))


if __name__ == "__main__":
    main()
