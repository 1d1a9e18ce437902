"""How many examples a property is tried on: few in the inner loop, many where there is time.

`HYPOTHESIS_PROFILE=thorough make test-unit` tries eight times as many. Tests name no number of their own, so that one
word changes all of them; a deadline only where an example that takes long is itself the defect.
"""

import os

from hypothesis import settings

settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=400, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
