#!/bin/bash
# What cloud.service starts. There is no Java in the lab: a small Python process stands for the agent. It reads the same
# properties and depends on the same files (every *.jar of this folder), but talks to nobody.
cd "$(dirname "$0")" || exit 1
exec /usr/bin/python3 - <<'AGENT'
"""Stands for the agent of an SSVM or CPVM: checks what it would load, says that it is ready, and stays."""
import glob
import hashlib
import os
import signal
import socket
import sys
import time

LOG = "/var/log/cloud.log"


def properties(path):
    with open(path, encoding="utf-8") as source:
        pairs = (line.strip().split("=", 1) for line in source if "=" in line and not line.startswith("#"))
        return {key: value for key, value in pairs}


def log(text):
    line = "%s agent: %s" % (time.strftime("%Y-%m-%d %H:%M:%S"), text)
    print(line, flush=True)
    with open(LOG, "a", encoding="utf-8") as target:
        target.write(line + "\n")


def main():
    config = properties("conf/agent.properties")
    if "type" not in config:
        log("conf/agent.properties says no type: not the file of a VM that was set up")
        return 1
    jars = sorted(glob.glob("*.jar"))
    digest = hashlib.sha256()
    for name in jars:
        with open(name, "rb") as source:
            digest.update(name.encode() + b"\0" + source.read())
    if not jars:
        log("no jars")
        return 1
    server = socket.create_server(("127.0.0.1", 8250))
    status = "agent %s ready, %d jars %s" % (config.get("name", "?"), len(jars), digest.hexdigest()[:12])
    with open("/run/cloud-agent.status", "w", encoding="utf-8") as target:
        target.write("%s\npid %d\n" % (status, os.getpid()))
    log(status)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(status.encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
AGENT
