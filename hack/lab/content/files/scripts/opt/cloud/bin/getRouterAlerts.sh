#!/bin/bash
# Lines of the service monitor's log that are newer than the given "YYYY-MM-DD HH:MM:SS".
if [ -s /var/log/routerServiceMonitor.log ]; then
  awk -v since="$1" 'substr($0, 1, 19) > since' /var/log/routerServiceMonitor.log
fi
exit 0
