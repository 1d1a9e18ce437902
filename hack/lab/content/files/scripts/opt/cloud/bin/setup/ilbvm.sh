#!/bin/bash
# A load balancer and nothing else.
. /opt/cloud/bin/setup/common.sh
. /opt/cloud/bin/setup/patch.sh

patch_router
setup_forwarding 0
services "haproxy" "cloud dnsmasq conntrackd keepalived apache2 nfs-common portmap"
