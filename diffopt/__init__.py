"""diffopt: train and sample neural networks with diffusions, as Optax gradient transformations."""

from .overdamped import langevin as langevin
from .overdamped import sgld as sgld

__version__ = "0.1.0"
