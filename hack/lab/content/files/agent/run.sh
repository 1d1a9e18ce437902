#!/bin/bash
exec "$(dirname "$0")/_run.sh"
