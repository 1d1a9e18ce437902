#!/bin/bash
# The host asks with this whether the scripts of an SSVM or CPVM have arrived.
ls -lrt /opt/cloud/bin/keystore* >/dev/null 2>&1
