"""What is watched: services for monitorServices.py, expectations for the health checks, and when."""

import json

from cs.CsDatabag import CsDataBag
from cs.CsFile import ConfigFile


class CsMonitor(CsDataBag):
    def __init__(self, config):
        super().__init__("monitorservice")
        self.config = config

    def process(self):
        pushed = self.bag.get("config")
        if not pushed:
            return
        sections = []
        for entry in pushed.get("services", []):
            sections.append(
                "[%s]\nprocessname=%s\nservicename=%s\npidfile=%s\n"
                % (entry["name"], entry["processname"], entry["servicename"], entry["pidfile"])
            )
        ConfigFile("/etc/monitor.conf").write("".join(sections))
        ConfigFile("/root/health_checks_data.json").write(
            json.dumps(pushed.get("health_checks_data", {}), indent=1) + "\n"
        )
        lines = ["SHELL=/bin/bash", "PATH=/sbin:/bin:/usr/sbin:/usr/bin"]
        for kind in ("basic", "advanced"):
            minutes = int(pushed.get("interval_" + kind, 0))
            if minutes > 0:
                lines.append("*/%d * * * * root /usr/bin/python /root/monitorServices.py %s" % (minutes, kind))
        ConfigFile("/etc/cron.d/process").write("\n".join(lines) + "\n")
