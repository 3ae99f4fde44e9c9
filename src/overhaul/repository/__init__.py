"""The published tree: storage seam, layout, journal, verification, retention."""
