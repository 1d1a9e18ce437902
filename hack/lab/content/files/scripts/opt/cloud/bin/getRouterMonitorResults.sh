#!/bin/bash
# Results of the health checks as the management server reads them; with "true" the checks run first.
if [ "$1" = true ]; then
  /usr/bin/python /root/monitorServices.py basic >/dev/null 2>&1
  /usr/bin/python /root/monitorServices.py advanced >/dev/null 2>&1
fi
echo "FAILING CHECKS:"
cat /root/basic_failing_health_checks /root/advanced_failing_health_checks 2>/dev/null | tr '\n' ' '
echo
echo "MONITOR RESULTS:"
cat /root/basic_monitor_results.json /root/advanced_monitor_results.json 2>/dev/null
exit 0
