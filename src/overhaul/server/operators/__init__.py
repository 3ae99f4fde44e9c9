"""Operators: who may look at the fleet and change what channels offer, and the record of what they did."""
