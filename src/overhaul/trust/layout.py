"""Where signed files lie below the public root of a repository.

```
metadata/timestamp.json                      the only file that changes under its name
metadata/N.ROLE.json                         version N of a role; once referenced it never changes
targets/DIRECTORY/SHA256.BASENAME            a target, named by its digest beside its path
```
"""

TIMESTAMP_KEY = "metadata/timestamp.json"


def metadata_key(role: str, version: int) -> str:
    """Return the key of version `version` of `role`."""
    return f"metadata/{version}.{role}.json"


def target_key(path: str, sha256: str) -> str:
    """Return the key of the target `path` with the digest `sha256`."""
    directory, slash, name = path.rpartition("/")
    return f"targets/{directory}{slash}{sha256}.{name}"
