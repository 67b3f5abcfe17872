"""How much is tried where a test tries at random: little by default, and much in one part of CI.

`HYPOTHESIS_PROFILE=large` sets it for hypothesis (see `conftest.py`) and for everything else.
"""

import os
from typing import Final

LARGE: Final = os.environ.get("HYPOTHESIS_PROFILE") == "large"
