#!/bin/sh
# Dracut reads this into its own shell.
/usr/lib/overhaul/overhaul-mount-etc "$NEWROOT" || warn "The configuration of this slot was not laid over /etc."
