"""OSTree: commits of whole trees, static deltas, and the updater service that deploys them."""
