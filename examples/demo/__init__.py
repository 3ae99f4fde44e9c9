"""The demonstration behind `make demo`: the whole life of a release on a virtual device with two slots."""
