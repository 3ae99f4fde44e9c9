"""Overhaul builds, signs, publishes, serves and installs operating-system updates for Linux devices."""

__version__ = "0.1.0"
