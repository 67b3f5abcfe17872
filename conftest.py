"""What all tests share: eight virtual CPU devices, and how hard hypothesis tries.

The environment is set here, at the top of the tree, since JAX reads it when it is imported.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# XLA's threads: as many as this machine has cores are too few for JAX 0.8, where devices that
# wait for each other hold threads that a large matrix product needs, and nothing ever ends.
os.environ["NPROC"] = "32"

import hypothesis

_COMMON = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("quick", max_examples=20, **_COMMON)
hypothesis.settings.register_profile("large", max_examples=400, **_COMMON)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
