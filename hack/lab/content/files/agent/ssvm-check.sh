#!/bin/bash
# A quick look at a secondary storage VM: agent process, certificate folder, web server.
systemctl is-active --quiet cloud && echo "Good: agent is running" || echo "ERROR: agent is not running"
[ -d /usr/local/cloud/systemvm/certs ] && echo "Good: certificates are there" || echo "ERROR: no certificates"
systemctl is-active --quiet apache2 && echo "Good: apache2 is running" || echo "ERROR: apache2 is not running"
