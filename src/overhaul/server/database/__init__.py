"""The server's database: what devices reported. Releases are files of the repository and never live here."""
