"""Deltas: one file that turns the image of one release into the image of another.

`format` says what the file looks like, `make` writes it when a release is published, `apply` carries it out on a
device. Only `make` and what it alone uses may import the publisher's libraries.
"""
