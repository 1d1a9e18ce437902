#!/usr/bin/python
"""The load balancer listens where it should, with the members it should have."""

from utility.sharedFunctions import called_for, finish, getHealthChecksData, text_of


def main():
    lines = [" ".join(line.split()) for line in text_of("/etc/haproxy/haproxy.cfg").splitlines()]
    problems = []
    for rule in getHealthChecksData("haproxyData") or []:
        bind = "bind %s:%s" % (rule["sourceIp"], rule["sourcePort"])
        if bind not in lines:
            problems.append("no " + bind)
        for member in rule["vmIps"]:
            if not any(line.startswith("server ") and " %s:%s" % (member, rule["destPort"]) in line for line in lines):
                problems.append("no server %s:%s" % (member, rule["destPort"]))
    finish(problems, "All load balancer rules are there")


if __name__ == "__main__" and called_for("advanced"):
    main()
