"""What runs on a device; never imports what only a server needs."""
