"""apache2's virtual hosts and the password servers, one for each guest address."""

import glob

from cs import CsHelper
from cs.CsFile import ConfigFile


class CsApache:
    TEMPLATE = "/etc/apache2/vhost.template"
    FOLDER = "/etc/apache2/sites-enabled"

    def __init__(self, config):
        self.config = config

    def _addresses(self):
        found = []
        for _, entry in self.config.guests():
            found.append(entry["public_ip"])
            gateway = entry.get("gateway")
            if self.config.cmdline.redundant() and gateway and gateway not in found:
                found.append(gateway)
        return found

    def setup(self):
        """A virtual host that exists is never renewed from the template."""
        changed = False
        wanted = self._addresses()
        for address in wanted:
            vhost = ConfigFile("%s/vhost-%s.conf" % (self.FOLDER, address))
            if not vhost.exists():
                changed |= vhost.write(ConfigFile(self.TEMPLATE).text().replace("10.1.1.1", address))
        for path in glob.glob(self.FOLDER + "/vhost-*.conf"):
            if path[len(self.FOLDER) + len("/vhost-") : -len(".conf")] not in wanted:
                changed |= ConfigFile(path).remove()
        if changed:
            CsHelper.service("apache2", "restart")


class CsPasswdSvc:
    """On a pair only the PRIMARY runs it, and it answers on both addresses."""

    def __init__(self, config):
        self.config = config

    def instances(self):
        for _, entry in self.config.guests():
            address, gateway = entry["public_ip"], entry.get("gateway")
            if self.config.cmdline.redundant() and gateway and gateway != address:
                yield "cloud-password-server@%s,%s" % (gateway, address)
            else:
                yield "cloud-password-server@%s" % address

    def all(self, operation):
        for instance in self.instances():
            CsHelper.service(instance, operation)

    def setup(self):
        if self.config.holds_traffic():
            self.all("start")
