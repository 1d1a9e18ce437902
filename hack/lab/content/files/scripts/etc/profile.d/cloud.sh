# System VM tools are on the path of login shells.
export PATH="$PATH:/opt/cloud/bin"
