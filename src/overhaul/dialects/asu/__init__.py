"""Attended sysupgrade: images built on demand, in the API of its first years and in today's."""
