#!/bin/bash
# The "biglock" of the older shell scripts: getLockFile NAME TIMEOUT prints nothing, sets $? to 0 with the lock held.
# A lock is /tmp/<name>-<pid>-<time>.lock; the oldest one holds it.

getLockFile() {
  local name=$1 timeout=${2:-30} mine oldest waited=0
  mine="/tmp/$(date +%s%N)-$$-$name.lock"
  echo $$ >"$mine"
  while :; do
    oldest=$(ls /tmp/*-"$name".lock 2>/dev/null | sort | head -1)
    [ "$oldest" = "$mine" ] && return 0
    [ -n "$oldest" ] && ! kill -0 "$(cat "$oldest" 2>/dev/null)" 2>/dev/null && rm -f "$oldest" && continue
    [ $waited -lt "$timeout" ] || { rm -f "$mine"; return 1; }
    sleep 1
    waited=$((waited + 1))
  done
}

releaseLockFile() {
  rm -f /tmp/*-$$-"$1".lock
}
