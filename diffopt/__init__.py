"""diffopt: train and sample neural networks with diffusions, as Optax gradient transformations.

- Samplers: `langevin`, `sgld`, `psgld`, `lattice_walk`, `sghmc`, `baoab`, `ubu`, `mclmc`, `sgnht`.
  `replica_exchange` runs any of them at several temperatures, `low_precision` in 16 bits
  (`exact_params` reads those parameters). `sampler` makes your own.
- From a loss to a posterior: `find_step_size`, `sample`, then `predictive`, `predictions`,
  `agreement`, `to_arviz`. Priors: `gaussian_prior` (`fan_in_variance`), `hierarchical_prior`.
  Gradients with less noise: `control_variate`, `svrg`.
- For your own loop: `split_keys`, `collect`, `draws`; `cyclical_schedule`, `sampling_stage`.
- To check a chain: `configurational_temperature`, `kinetic_temperature`,
  `gradient_noise_temperature`.
- To train with noise: `ivon` and `weight_noise` take the gradient at `perturbed` weights;
  `label_noise`.
- To measure a minimum: `local_learning_coefficient`, `wbic`, `influence`; `take_part` gives a part
  of a network.
"""

from ._clash import warn_of_another_diffopt as _warn_of_another_diffopt
from ._types import Noise
from .estimate.influence import Influence, influence
from .estimate.learning_coefficient import Estimate, local_learning_coefficient, wbic
from .estimate.step_size import StepSizes, find_step_size
from .perturb.ivon import IvonState, ivon
from .perturb.label_noise import label_noise
from .perturb.perturbed import perturbed
from .perturb.weight_noise import WeightNoiseState, weight_noise
from .run.agreement import Agreement, agreement
from .run.chains import split_keys
from .run.collect import CollectState, collect, draws
from .run.gradients import (
    ControlVariateState,
    GradientEstimator,
    SVRGState,
    control_variate,
    svrg,
)
from .run.loop import RunState
from .run.part import take_part
from .run.predict import predictions, predictive
from .run.results import Average, Samples, Temperatures, to_arviz
from .run.sample import sample
from .samplers.baoab import baoab
from .samplers.base import SamplerState, sampler
from .samplers.cyclical import cyclical_schedule, sampling_stage
from .samplers.fan_in_variance import fan_in_variance
from .samplers.gaussian_prior import GaussianPriorState, gaussian_prior
from .samplers.hierarchical_prior import HierarchicalPriorState, hierarchical_prior
from .samplers.langevin import langevin
from .samplers.lattice_walk import lattice_walk
from .samplers.low_precision import LowPrecisionState, exact_params, low_precision
from .samplers.mclmc import MicrocanonicalState, mclmc
from .samplers.psgld import PreconditionedState, psgld
from .samplers.replica_exchange import ReplicaState, replica_exchange
from .samplers.sghmc import sghmc
from .samplers.sgld import sgld
from .samplers.sgnht import ThermostatState, sgnht
from .samplers.ubu import ubu
from .samplers.underdamped import UnderdampedState
from .temperature import (
    NoiseTemperature,
    Temperature,
    configurational_temperature,
    gradient_noise_temperature,
    kinetic_temperature,
)

__all__ = [
    "Agreement",
    "Average",
    "CollectState",
    "ControlVariateState",
    "Estimate",
    "GaussianPriorState",
    "GradientEstimator",
    "HierarchicalPriorState",
    "Influence",
    "IvonState",
    "LowPrecisionState",
    "MicrocanonicalState",
    "Noise",
    "NoiseTemperature",
    "PreconditionedState",
    "ReplicaState",
    "RunState",
    "SVRGState",
    "SamplerState",
    "Samples",
    "StepSizes",
    "Temperature",
    "Temperatures",
    "ThermostatState",
    "UnderdampedState",
    "WeightNoiseState",
    "agreement",
    "baoab",
    "collect",
    "configurational_temperature",
    "control_variate",
    "cyclical_schedule",
    "draws",
    "exact_params",
    "fan_in_variance",
    "find_step_size",
    "gaussian_prior",
    "gradient_noise_temperature",
    "hierarchical_prior",
    "influence",
    "ivon",
    "kinetic_temperature",
    "label_noise",
    "langevin",
    "lattice_walk",
    "local_learning_coefficient",
    "low_precision",
    "mclmc",
    "perturbed",
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
    "take_part",
    "to_arviz",
    "ubu",
    "wbic",
    "weight_noise",
]

__version__ = "0.1.0"

_warn_of_another_diffopt()
