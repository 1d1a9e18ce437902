#!/bin/bash
# Console proxy VM: eth0 control, eth1 management, eth2 public.
. /opt/cloud/bin/setup/common.sh
. /opt/cloud/bin/setup/patch.sh

patch_sshd_config
setup_forwarding 0
port=${VNCPORT:-8080}
echo "$port" >/root/vncport
load_rules consoleproxy
sed -i "s/8080/$port/" /etc/iptables/rules.v4
rm -f /etc/logrotate.d/cloud
mkdir -p /var/log/cloud
services "cloud" "haproxy dnsmasq apache2 nfs-common portmap"
