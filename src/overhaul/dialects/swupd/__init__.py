"""swupd: versions made of bundles, per-file updates, and their client."""
