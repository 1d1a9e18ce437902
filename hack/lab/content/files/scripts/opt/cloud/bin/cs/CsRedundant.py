"""A pair of routers: keepalived decides, and each role takes its services with it."""

import os
import shutil

from cs import CsHelper
from cs.CsApp import CsPasswdSvc
from cs.CsFile import ConfigFile
from cs.CsProcess import CsProcess

TEMPLATES = "/opt/cloud/templates"
RAMDISK = "/ramdisk/rrouter"
KEEPALIVED = "/etc/keepalived/keepalived.conf"
CONNTRACKD = "/etc/conntrackd/conntrackd.conf"
HEARTBEAT_CRON = "/etc/cron.d/heartbeat"


class CsRedundant:
    def __init__(self, config):
        self.config = config
        self.cmdline = config.cmdline

    def set(self):
        if self.cmdline.redundant():
            self._redundant_on()
        else:
            self._redundant_off()

    def _redundant_off(self):
        for unit in ("conntrackd", "keepalived"):
            if CsHelper.is_active(unit):
                CsHelper.service(unit, "stop")
        ConfigFile(KEEPALIVED).remove()
        ConfigFile(CONNTRACKD).remove()

    def _redundant_on(self):
        guests = self.config.guests()
        if not guests:
            return
        if not os.path.ismount("/ramdisk"):
            os.makedirs("/ramdisk", exist_ok=True)
            CsHelper.execute("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/ramdisk")
        os.makedirs(RAMDISK, exist_ok=True)
        for name in ("heartbeat.sh", "check_heartbeat.sh", "arping_gateways.sh"):
            if not os.path.exists(os.path.join(RAMDISK, name)):
                shutil.copy(os.path.join(TEMPLATES, name + ".templ"), os.path.join(RAMDISK, name))
                os.chmod(os.path.join(RAMDISK, name), 0o755)
        conntrackd_changed = ConfigFile(CONNTRACKD).write(self._conntrackd(*guests[0]))
        keepalived_changed = ConfigFile(KEEPALIVED).write(self._keepalived(guests))
        ConfigFile(HEARTBEAT_CRON).write(
            "SHELL=/bin/bash\nPATH=/sbin:/bin:/usr/sbin:/usr/bin\n"
            "* * * * * root %s/check_heartbeat.sh >/dev/null 2>&1\n"
            "* * * * * root sleep 30; %s/check_heartbeat.sh >/dev/null 2>&1\n" % (RAMDISK, RAMDISK)
        )
        # By its process, not by systemd: one that is starting runs. A restart would meet it half way.
        if conntrackd_changed or not CsProcess(CONNTRACKD).pids():
            CsHelper.service("conntrackd", "restart")
            CsHelper.service("keepalived", "restart")
        elif keepalived_changed:
            CsHelper.service("keepalived", "reload" if self.cmdline.state() == "PRIMARY" else "restart")

    def _keepalived(self, guests):
        """From the live file if there is one: the template counts only when it is first written."""
        live = ConfigFile(KEEPALIVED)
        if live.exists():
            return live.text()
        addresses = "".join(
            "        %s/%s brd + dev %s\n" % (entry["gateway"], entry["size"], device) for device, entry in guests
        )
        text = ConfigFile(TEMPLATES + "/keepalived.conf.templ").text()
        for token, value in (
            ("[ROUTER_ID]", self.cmdline.get("name")),
            ("[INTERFACE]", guests[0][0]),
            ("[ROUTER_PR]", self.cmdline.get("router_pr", "100")),
            ("[ADVERT_INT]", self.cmdline.get("advert_int", "1")),
            ("[ADDRESSES]", addresses.rstrip("\n")),
        ):
            text = text.replace(token, value)
        return text

    def _conntrackd(self, device, entry):
        text = ConfigFile(TEMPLATES + "/conntrackd.conf.templ").text()
        return (
            text.replace("[INTERFACE]", device)
            .replace("[LINK_IP]", entry["public_ip"])
            .replace(
                "[IGNORE_IP]", "\n".join("            IPv4_address %s" % entry[key] for key in ("public_ip", "gateway"))
            )
        )

    def _public_links(self, state):
        for device in sorted({device for device, _ in self.config.publics()}):
            CsHelper.execute("ip", "link", "set", device, state)

    def set_primary(self):
        self.cmdline.set_state("PRIMARY")
        self._public_links("up")
        for device, entry in self.config.publics():
            if entry["cidr"] not in CsHelper.addresses(device):
                CsHelper.execute("ip", "addr", "add", entry["cidr"], "brd", "+", "dev", device)
            gateway = entry.get("gateway")
            if gateway and gateway != "None":
                CsHelper.execute("ip", "route", "replace", "default", "via", gateway, "dev", device)
        for option in ("-c", "-f", "-R", "-B"):
            CsHelper.execute("conntrackd", "-C", CONNTRACKD, option)
        CsPasswdSvc(self.config).all("restart")
        CsHelper.service("dnsmasq", "restart")
        for device, entry in self.config.publics():
            CsHelper.execute("arping", "-c", "1", "-U", "-I", device, entry["public_ip"])

    def set_backup(self):
        self.cmdline.set_state("BACKUP")
        self._public_links("down")
        CsHelper.service("conntrackd", "restart")
        CsPasswdSvc(self.config).all("stop")
        CsHelper.service("dnsmasq", "stop")

    def set_fault(self):
        self.cmdline.set_state("FAULT")
        self._public_links("down")
        CsPasswdSvc(self.config).all("stop")
        CsHelper.service("dnsmasq", "stop")
