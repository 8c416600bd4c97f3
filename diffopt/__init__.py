"""diffopt: train and sample neural networks with diffusions, as Optax gradient transformations."""

from .chains import split_keys as split_keys
from .clash import warn_of_another_diffopt as _warn_of_another_diffopt
from .cyclical import cyclical_schedule as cyclical_schedule
from .cyclical import sampling_stage as sampling_stage
from .diagnostics import NoiseTemperature as NoiseTemperature
from .diagnostics import Temperature as Temperature
from .diagnostics import configurational_temperature as configurational_temperature
from .diagnostics import gradient_noise_temperature as gradient_noise_temperature
from .diagnostics import kinetic_temperature as kinetic_temperature
from .estimators import ControlVariateState as ControlVariateState
from .estimators import GradientEstimator as GradientEstimator
from .estimators import SVRGState as SVRGState
from .estimators import control_variate as control_variate
from .estimators import svrg as svrg
from .frame import SamplerState as SamplerState
from .frame import sampler as sampler
from .increments import Noise as Noise
from .learning_coefficient import Estimate as Estimate
from .learning_coefficient import local_learning_coefficient as local_learning_coefficient
from .learning_coefficient import wbic as wbic
from .overdamped import PreconditionedState as PreconditionedState
from .overdamped import langevin as langevin
from .overdamped import psgld as psgld
from .overdamped import sgld as sgld
from .posterior import CollectState as CollectState
from .posterior import Samples as Samples
from .posterior import Temperatures as Temperatures
from .posterior import collect as collect
from .posterior import draws as draws
from .posterior import predictions as predictions
from .posterior import predictive as predictive
from .posterior import to_arviz as to_arviz
from .priors import GaussianPriorState as GaussianPriorState
from .priors import gaussian_prior as gaussian_prior
from .replica import ReplicaState as ReplicaState
from .replica import replica_exchange as replica_exchange
from .rounding import LowPrecisionState as LowPrecisionState
from .rounding import exact_params as exact_params
from .rounding import low_precision as low_precision
from .sampling import SampleState as SampleState
from .sampling import sample as sample
from .step_size import StepSizes as StepSizes
from .step_size import find_step_size as find_step_size
from .underdamped import ThermostatState as ThermostatState
from .underdamped import UnderdampedState as UnderdampedState
from .underdamped import baoab as baoab
from .underdamped import sghmc as sghmc
from .underdamped import sgnht as sgnht
from .underdamped import ubu as ubu

__version__ = "0.1.0"

_warn_of_another_diffopt()
