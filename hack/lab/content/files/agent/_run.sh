#!/bin/bash
# What cloud.service starts. There is no Java in the lab: a small Python process stands for the agent. It reads the same
# properties and depends on the same files (every *.jar of this folder), connects to the management server and says
# nothing there. A jar that begins with `exits` or `silent` is a broken one.
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
    status = "agent %s ready, %d jars %s" % (config.get("name", "?"), len(jars), digest.hexdigest()[:12])
    with open("/run/cloud-agent.status", "w", encoding="utf-8") as target:
        target.write("%s\npid %d\n" % (status, os.getpid()))
    log(status)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if has(jars, b"exits"):
        time.sleep(1)
        log("a class is missing")
        return 1
    while True:
        if not has(jars, b"silent"):
            stay_connected(config.get("host", "localhost").split("@")[0].split(",")[0], int(config.get("port", 8250)))
        time.sleep(0.5)


def has(jars, word):
    return any(open(name, "rb").read(len(word)) == word for name in jars)


def stay_connected(host, port):
    """As long as the other end wants it."""
    try:
        with socket.create_connection((host, port), 5) as connection:
            connection.settimeout(None)
            log("connected to %s:%d" % (host, port))
            while connection.recv(4096):
                pass
    except OSError:
        return
    log("the management server has closed the connection")


if __name__ == "__main__":
    sys.exit(main())
AGENT
