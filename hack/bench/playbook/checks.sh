#!/bin/sh
# Names of the health checks that fail now.
for check in /root/health_checks/*.py; do
    [ -x "$check" ] || continue
    case $check in */router_version_check.py) continue ;; esac
    for kind in basic advanced; do
        said=$("$check" $kind 2>/dev/null) || { [ -z "$said" ] || echo "$check"; }
    done
done | sort -u
