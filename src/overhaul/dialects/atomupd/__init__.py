"""SteamOS atomic updates: image pools, the query protocol and its static form, and their client."""
