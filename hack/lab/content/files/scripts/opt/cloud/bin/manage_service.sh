#!/bin/bash
# manage_service.sh <operation> <service>
[ $# = 2 ] || exit 1
systemctl "$1" "$2"
