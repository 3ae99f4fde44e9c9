"""Giving neighbours pieces of the releases that this device has: off unless its owner turns it on."""
