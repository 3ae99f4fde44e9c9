"""Comparisons with the peers: each is a ratio of medians from one run on one machine."""
