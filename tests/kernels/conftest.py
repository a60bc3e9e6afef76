"""Generated examples are the same on every run, and a slow machine is no failure."""

from hypothesis import settings

settings.register_profile("objectives", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("objectives")
