"""This operating system: processes, atomic files, locks, D-Bus, loop devices."""
