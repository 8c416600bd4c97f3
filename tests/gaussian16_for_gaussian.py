"""A pytest plugin: samplers draw gaussian16 where they would draw gaussian."""

from diffopt import increments
from diffopt.gaussian16 import gaussian16

increments.NOISES["gaussian"] = gaussian16
