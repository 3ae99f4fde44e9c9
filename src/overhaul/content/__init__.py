"""Bytes: chunks, index, packs, deltas, the planner that picks a way and the assembler that walks it."""
