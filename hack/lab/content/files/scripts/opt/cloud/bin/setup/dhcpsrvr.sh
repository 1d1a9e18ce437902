#!/bin/bash
# The router of a shared network: DHCP, DNS and metadata, no forwarding.
. /opt/cloud/bin/setup/common.sh
. /opt/cloud/bin/setup/patch.sh

patch_router
setup_dnsmasq /etc/dnsmasq.conf.tmpl eth0
setup_apache2_common
setup_forwarding 0
services "dnsmasq apache2" "cloud nfs-common conntrackd keepalived haproxy portmap"
