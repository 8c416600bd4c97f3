"""A pytest plugin: samplers draw gaussian16 where they would draw gaussian."""

from diffopt.noise import increments
from diffopt.noise.gaussian16 import gaussian16


def pytest_configure():
    """Only as a plugin: the module is also imported to look for doctests."""
    increments.NOISES["gaussian"] = gaussian16
