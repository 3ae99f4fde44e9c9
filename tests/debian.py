"""Debian's mirrors as this machine's apt is configured to use them, and a cache of what tests fetched from them."""

import subprocess
import tempfile
from pathlib import Path

from tests.tools import need

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def mirror_sources() -> tuple[str, ...]:
    """Return sources.list lines with `{suite}` for Debian's own release, as apt here reaches it."""
    need("apt-get")
    form = "$(SITE) $(CODENAME) $(COMPONENT) $(ORIGIN)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    sites = {line.split()[0] for line in listed.splitlines() if line.split()[1:] == [suite(), "main", "Debian"]}
    return tuple(f"deb [signed-by={_KEYRING}] {site} {{suite}} main" for site in sorted(sites)[:1])


def suite() -> str:
    """Return the release that this machine runs, so that its mmdebstrap and its keyring know it."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME="))


def cache_directory() -> Path:
    """Return a directory that outlives the test, so that archives are fetched once."""
    directory = Path(tempfile.gettempdir()) / "overhaul-test-debian"
    directory.mkdir(exist_ok=True)
    return directory
