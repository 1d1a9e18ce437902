#!/bin/bash
# Secondary storage VM: eth0 control, eth1 management, eth2 public; apache2 serves downloads, the agent does the rest.
. /opt/cloud/bin/setup/common.sh
. /opt/cloud/bin/setup/patch.sh

patch_sshd_config
setup_apache2_common
setup_forwarding 0
vhost=/etc/apache2/sites-enabled/vhost-$ETH2IP.conf
[ -z "$ETH2IP" ] || [ -f "$vhost" ] || sed "s/10\.1\.1\.1/$ETH2IP/g" /etc/apache2/vhost.template >"$vhost"
load_rules secstorage
rm -f /etc/logrotate.d/cloud # the agent rotates its log itself
mkdir -p /var/log/cloud /var/www/html/userdata
chown www-data:www-data /var/www/html/userdata
services "cloud apache2 nfs-common portmap" "conntrackd keepalived haproxy dnsmasq"
