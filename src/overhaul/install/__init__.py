"""This device: facts, slots, boot control, health, state, reboot."""
