"""diffopt: train and sample neural networks with diffusions, as Optax gradient transformations.

- Samplers: `langevin`, `sgld`, `psgld`, `sghmc`, `baoab`, `ubu`, `sgnht`; `replica_exchange` of
  any; one of your own by `sampler`; in 16 bits by `low_precision` (`exact_params` reads it).
- From a loss to a posterior: `find_step_size`, `sample`, then `predictive`, `predictions`,
  `to_arviz`; `gaussian_prior`; less noise in gradients by `control_variate` and `svrg`.
- For a loop of your own: `split_keys`, `collect`, `draws`; `cyclical_schedule`, `sampling_stage`.
- Is it right: `configurational_temperature`, `kinetic_temperature`, `gradient_noise_temperature`.
- What only a diffusion tells: `local_learning_coefficient`, `wbic`.
"""

from .chains import split_keys
from .clash import warn_of_another_diffopt as _warn_of_another_diffopt
from .cyclical import cyclical_schedule, sampling_stage
from .diagnostics import (
    NoiseTemperature,
    Temperature,
    configurational_temperature,
    gradient_noise_temperature,
    kinetic_temperature,
)
from .estimators import ControlVariateState, GradientEstimator, SVRGState, control_variate, svrg
from .frame import SamplerState, sampler
from .increments import Noise
from .learning_coefficient import Estimate, local_learning_coefficient, wbic
from .overdamped import PreconditionedState, langevin, psgld, sgld
from .posterior import (
    CollectState,
    Samples,
    Temperatures,
    collect,
    draws,
    predictions,
    predictive,
    to_arviz,
)
from .priors import GaussianPriorState, gaussian_prior
from .replica import ReplicaState, replica_exchange
from .rounding import LowPrecisionState, exact_params, low_precision
from .sampling import SampleState, sample
from .step_size import StepSizes, find_step_size
from .underdamped import ThermostatState, UnderdampedState, baoab, sghmc, sgnht, ubu

__all__ = [
    "CollectState",
    "ControlVariateState",
    "Estimate",
    "GaussianPriorState",
    "GradientEstimator",
    "LowPrecisionState",
    "Noise",
    "NoiseTemperature",
    "PreconditionedState",
    "ReplicaState",
    "SVRGState",
    "SampleState",
    "SamplerState",
    "Samples",
    "StepSizes",
    "Temperature",
    "Temperatures",
    "ThermostatState",
    "UnderdampedState",
    "baoab",
    "collect",
    "configurational_temperature",
    "control_variate",
    "cyclical_schedule",
    "draws",
    "exact_params",
    "find_step_size",
    "gaussian_prior",
    "gradient_noise_temperature",
    "kinetic_temperature",
    "langevin",
    "local_learning_coefficient",
    "low_precision",
    "predictions",
    "predictive",
    "psgld",
    "replica_exchange",
    "sample",
    "sampler",
    "sampling_stage",
    "sghmc",
    "sgld",
    "sgnht",
    "split_keys",
    "svrg",
    "to_arviz",
    "ubu",
    "wbic",
]

__version__ = "0.1.0"

_warn_of_another_diffopt()
