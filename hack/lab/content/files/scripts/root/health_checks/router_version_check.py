#!/usr/bin/python
"""Template and scripts are the versions in the books of the management server."""

from utility.sharedFunctions import called_for, finish, getHealthChecksData, text_of


def main():
    expected = getHealthChecksData("routerVersion") or {}
    problems = []
    if expected.get("templateVersion") not in (None, text_of("/etc/cloudstack-release").strip()):
        problems.append("template version differs")
    if expected.get("scriptsVersion") not in (None, text_of("/var/cache/cloud/cloud-scripts-signature").strip()):
        problems.append("scripts version differs")
    finish(problems, "Template and scripts versions match")


if __name__ == "__main__" and called_for("basic"):
    main()
