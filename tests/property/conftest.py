"""How long generated tests look: little at every run, the same in CI each time, and long when asked to."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "lsmpy",
    max_examples=1000 if os.environ.get("LSMPY_LONG") == "1" else 25,
    deadline=None,  # a busy machine is no mistake
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lsmpy")
