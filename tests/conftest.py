"""What holds for all tests."""

import os
from contextlib import suppress

from hypothesis import HealthCheck, settings

#: New examples are looked for when this says so (see `tests/fuzz/mutations.py`); else every run draws the same, so that
#: only a change can make one fail.
_DRAWS_ANEW = "FUZZ_TIMES" in os.environ

# How long an example takes says how busy the machine is.
settings.register_profile(
    "overhaul", deadline=None, derandomize=not _DRAWS_ANEW, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("overhaul")

if not _DRAWS_ANEW:
    # Hypothesis mixes in the constants of whatever modules are loaded by then, which depends on the order of the tests;
    # it has no setting for that. A version that names this otherwise draws the same examples less often, no more.
    with suppress(ImportError):
        from hypothesis.internal.conjecture import providers

        providers._get_local_constants = lambda: providers._local_constants

# What listens on loopback is asked without the proxy that a machine may have for everything else.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1", "localhost", "::1")))
