"""Control variates and SVRG: how much less gradient noise, and how much better a posterior.

    python -m benchmarks.gradient_variance [--out DIR]

Part one is a logistic regression with 100,000 synthetic rows: the variance of a minibatch gradient
at draws of the posterior, measured and by theory. Part two has known posteriors, of that regression
(by Laplace's approximation) and of a linear one on the diabetes data: the variance along each
eigen-direction over the exact one. Samplers take equal numbers of gradients of examples, each at
the step size, out of a few, at which one chain errs least in its worst direction. Batches come as
in `diffopt.sample`, in epochs of random order, or are drawn independently at each step. Two recipes
are not in the library: SGHMC whose friction covers the measured covariance of the noise, as a
matrix or as its diagonal (Shang et al. 2015, https://arxiv.org/abs/1510.08692, without the
thermostat).
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes

import diffopt

from .lib import cli, files, machine
from .lib.problems import logistic_loss, logistic_rows

ROWS, WEIGHTS = 100_000, 10  # of the logistic regression
NOISE = 0.5  # variance of the diabetes data about the line


class Problem(NamedTuple):
    """A regression with its posterior at T = 1/N."""

    name: str
    loss: Callable[..., jax.Array]
    data: tuple[np.ndarray, np.ndarray]
    mode: np.ndarray
    covariance: np.ndarray
    batch_size: int
    sizes: tuple[float, ...]  # steps to try: h of `baoab`, η = h² of the others


class Way(NamedTuple):
    """A sampler, where its gradients come from, and how many of examples a step costs."""

    sampler: str
    gradient: str
    epochs: bool  # or independent batches
    batch_size: int
    cost: float
    make: Callable[..., Any]
    estimator: diffopt.GradientEstimator


def linear_loss(w: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The mean of -log p of a batch, up to a constant."""
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / (2 * NOISE)


def logistic_regression() -> Problem:
    """100,000 synthetic rows, and the posterior by Laplace's approximation."""
    x, sign, w, curvature = logistic_rows(np.random.default_rng(0), ROWS, WEIGHTS)
    sizes = (1.0, 0.3, 0.1, 0.03, 0.01)
    return Problem("logistic", logistic_loss, (x, sign), w, np.linalg.inv(curvature), 100, sizes)


def diabetes() -> Problem:
    """Linear regression on the diabetes data, standardized."""
    x, y = ((a - a.mean(0)) / a.std(0) for a in load_diabetes(return_X_y=True))
    covariance = np.linalg.inv(x.T @ x / NOISE)
    mode = np.linalg.lstsq(x, y)[0]
    sizes = (0.3, 0.1, 0.05, 0.02, 0.01)
    return Problem("diabetes", linear_loss, (x, y), mode, covariance, 32, sizes)


def arrays(problem: Problem) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The mode and the data in float32."""
    mode, *data = (jnp.asarray(a, jnp.float32) for a in (problem.mode, *problem.data))
    return mode, tuple(data)


def gradient_variances(problem: Problem, draws: int, batches: int) -> dict[str, dict[str, float]]:
    """The trace of the covariance of a batch's gradient, mean over draws; and what theory says."""
    x, sign = problem.data
    n, rng = problem.batch_size, np.random.default_rng(1)
    half = rng.multivariate_normal(np.zeros(WEIGHTS), problem.covariance, size=draws // 2)
    away = np.concatenate([half, -half])
    p = 1 / (1 + np.exp(-x @ problem.mode))
    one = x * (p - (sign == 1))[:, None]  # gradients of the examples at the mode
    change = [x * (p * (1 - p) * (x @ d))[:, None] for d in away]  # to first order in θ - c
    spread = lambda g: np.sum(np.var(g, axis=0)) / n
    theory = {"plain": spread(one), "control_variate": np.mean([spread(g) for g in change])}

    center, data = arrays(problem)
    grad = jax.grad(problem.loss)
    estimator = diffopt.control_variate(grad, center, data)

    @jax.jit
    def measure(theta: jax.Array, key: jax.Array, data: Any) -> Any:
        state = estimator.init(center)

        def batch_of(key: jax.Array) -> Any:
            index = jax.random.randint(key, (n,), 0, ROWS)
            batch = jax.tree.map(lambda a: a[index], data)
            return grad(theta, batch), estimator.update(theta, batch, state)[0]

        exact = grad(theta, data)
        gradients = jax.lax.map(batch_of, jax.random.split(key, batches), batch_size=100)
        return [jnp.mean(jnp.sum((g - exact) ** 2, axis=1)) for g in gradients]

    keys = jax.random.split(jax.random.key(0), len(away))
    thetas = jnp.asarray(problem.mode + away, jnp.float32)
    traces = np.array([measure(t, k, data) for t, k in zip(thetas, keys, strict=True)])
    return {
        name: {"measured": float(np.mean(column)), "theory": float(theory[name])}
        for name, column in zip(theory, traces.T, strict=True)
    }


def minibatch_gradient(grad: Callable[..., Any]) -> diffopt.GradientEstimator:
    """The gradient of the batch, as an estimator without state."""
    return diffopt.GradientEstimator(
        lambda params: (), lambda p, batch, state: (grad(p, batch), ())
    )


class CoveredState(NamedTuple):
    """State of `covered_sghmc`: the gradient of the step before, and the noise's covariance."""

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    velocity: jax.Array
    gradient: jax.Array
    covariance: jax.Array


def covered_sghmc(
    learning_rate: Any, temperature: float, *, momentum: float, diagonal: bool, key: Any = 0
) -> Any:
    """SGHMC on a vector with the friction (1 - m) I + B that noise of covariance C asks for.

    B = ηC/(2T), and C is half the mean square of the differences of successive gradients. Solved
    for the velocity at the end of the step, it is stable for every B::

        (I + B) v ← m v - ηg + √(2(1 - m)ηT) ξ
    """

    def init(params: jax.Array, count: jax.Array, key: jax.Array) -> CoveredState:
        zero = jnp.zeros_like(params)
        return CoveredState(count, key, zero, zero, jnp.zeros((params.size, params.size)))

    def step(g: jax.Array, xi: jax.Array, state: CoveredState) -> Any:
        change = g - state.gradient
        weight = jnp.where(state.count == 0, 0, jnp.maximum(1 / jnp.maximum(state.count, 1), 1e-3))
        square = jnp.outer(change, change) / 2
        if diagonal:
            square = jnp.diag(jnp.diag(square))
        covariance = state.covariance + weight * (square - state.covariance)
        friction = jnp.eye(g.size) + learning_rate / (2 * temperature) * state.covariance
        pushed = momentum * state.velocity - learning_rate * g
        pushed += jnp.sqrt(2 * (1 - momentum) * learning_rate * temperature) * xi
        velocity = jnp.linalg.solve(friction, pushed)
        return velocity, CoveredState(state.count, state.key, velocity, g, covariance)

    return diffopt.sampler(step, init, key=key)


def ways(problem: Problem) -> list[Way]:
    """What is compared, at the gradients of as many examples as `batch_size` in each step."""
    mode, data = arrays(problem)
    number, batch_size = len(data[1]), problem.batch_size
    T = 1 / number
    grad = jax.grad(problem.loss)
    half, quarter = batch_size // 2, batch_size // 4
    every = round(number / (batch_size - 2 * quarter))
    cost = 2 * quarter + number / every
    cv = diffopt.control_variate(grad, mode, data)
    follow = diffopt.svrg(grad, data, every)
    samplers: dict[str, Callable[..., Any]] = {
        "sgld": lambda h, key: diffopt.sgld(h**2, T, key=key),
        "baoab": lambda h, key: diffopt.baoab(h, T, friction=0.3, key=key),
    }
    by_gradient = []
    for name, make in samplers.items():
        by_gradient += [
            Way(name, "minibatch", True, batch_size, batch_size, make, minibatch_gradient(grad)),
            Way(name, "control_variate", True, half, 2 * half, make, cv),
            Way(name, f"svrg, every {every}", True, quarter, cost, make, follow),
        ]
    if problem.name != "diabetes":
        return by_gradient
    others: list[tuple[str, bool, Callable[..., Any]]] = [
        ("sghmc", True, lambda h, key: diffopt.sghmc(h**2, T, momentum=0.9, key=key)),
        ("sgnht", True, lambda h, key: diffopt.sgnht(h**2, T, momentum=0.9, key=key)),
    ]
    covered = lambda diagonal: (
        lambda h, key: covered_sghmc(h**2, T, momentum=0.9, diagonal=diagonal, key=key)
    )
    others += [
        ("friction covers the covariance", True, covered(False)),
        ("friction covers the covariance", False, covered(False)),
        ("friction covers the diagonal", False, covered(True)),
    ]
    return by_gradient + [
        Way(name, "minibatch", epochs, batch_size, batch_size, make, minibatch_gradient(grad))
        for name, epochs, make in others
    ]


def variances(problem: Problem, way: Way, steps: int, chains: int) -> np.ndarray:
    """Variance along each direction over the exact one, `[size, chain, direction]`.

    Chains start at the mode; the later half of the steps counts.
    """
    mode, data = arrays(problem)
    number = len(data[1])
    in_epoch = min(number // way.batch_size, steps)
    exact, directions = np.linalg.eigh(problem.covariance)
    rotation = jnp.asarray(directions, jnp.float32)

    def run(h: jax.Array, key: jax.Array, data: Any, estimator: Any) -> jax.Array:
        noise_key, key = jax.random.split(key)
        tx = way.make(h, noise_key)

        def step(carry: Any, where: Any) -> Any:
            params, state, opt_state, total = carry
            t, index = where
            batch = jax.tree.map(lambda a: a[index], data)
            grads, state = estimator.update(params, batch, state)
            updates, opt_state = tx.update(grads, opt_state, params)
            square = jnp.square((params - mode) @ rotation)
            total += jnp.where((t >= steps // 2) & (t < steps), square, 0)
            return (params + updates, state, opt_state, total), None

        def epoch(e: jax.Array, carry: Any) -> Any:
            epoch_key = jax.random.fold_in(key, e)
            shape = in_epoch, way.batch_size
            if way.epochs:
                order = jax.random.permutation(epoch_key, number)[: np.prod(shape)]
            else:
                order = jax.random.randint(epoch_key, shape, 0, number)
            times = e * in_epoch + jnp.arange(in_epoch)
            return jax.lax.scan(step, carry, (times, order.reshape(shape)))[0]

        carry = mode, estimator.init(mode), tx.init(mode), jnp.zeros_like(mode)
        total = jax.lax.fori_loop(0, -(-steps // in_epoch), epoch, carry)[-1]
        return total / (steps - steps // 2)

    keys = jax.random.split(jax.random.key(1), (len(problem.sizes), chains)).reshape(-1)
    sizes = jnp.repeat(jnp.asarray(problem.sizes, jnp.float32), chains)
    every = jax.jit(jax.vmap(run, (0, 0, None, None)))
    squares = every(sizes, keys, data, jax.tree.map(_bound, way.estimator))
    return np.asarray(squares, float).reshape(len(problem.sizes), chains, -1) / exact


def _bound(leaf: Any) -> Any:
    """A function in a tree for `jax.jit`."""
    return jax.tree_util.Partial(leaf) if callable(leaf) else leaf


def row(problem: Problem, way: Way, ratios: np.ndarray, steps: int) -> dict[str, Any]:
    """What is told of one way: all step sizes, and the best."""
    mean = ratios.mean(1)
    one_chain = np.sqrt(np.square(ratios - 1).mean(1)).max(1)  # in its worst direction
    best = int(np.argmin(np.nan_to_num(one_chain, nan=np.inf)))
    worst = int(np.abs(mean[best] - 1).argmax())
    return {
        "problem": problem.name,
        "sampler": way.sampler,
        "gradient": way.gradient,
        "batches": "epochs" if way.epochs else "independent",
        "batch_size": way.batch_size,
        "gradients_per_step": way.cost,
        "steps": steps,
        "best_step": problem.sizes[best],
        "error_of_one_chain": float(one_chain[best]),
        "lowest": float(mean[best].min()),
        "highest": float(mean[best].max()),
        "standard_error": float(ratios[best, :, worst].std(ddof=1) / np.sqrt(ratios.shape[1])),
        "lowest_and_highest_of_all": {
            f"{h:g}": [float(m.min()), float(m.max())]
            for h, m in zip(problem.sizes, mean, strict=True)
        },
    }


@cli.program("gradient_variance")
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure, show."""
    parser = cli.parser("gradient_variance", __doc__)
    whole = cli.at_least_one
    parser.add_argument(
        "--steps", type=whole, nargs=2, default=(8000, 50_000), metavar=("LOGISTIC", "DIABETES"),
        help="steps with plain minibatches; others take as many gradients (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--chains", type=cli.at_least(2), default=8, help="default %(default)s")
    parser.add_argument(
        "--batches",
        type=whole,
        default=2000,
        help="for each variance (default %(default)s)",
    )
    args = parser.parse_args(argv)
    out = cli.make_folder(args.out)

    problems = logistic_regression(), diabetes()
    noise = gradient_variances(problems[0], 16, args.batches)
    for name, value in noise.items():
        print(f"variance of {name:16} {value['measured']:.4g}, by theory {value['theory']:.4g}")
    factor = noise["plain"]["measured"] / noise["control_variate"]["measured"]
    print(f"lower by a factor of {factor:.0f}, of {ROWS:,} rows and {WEIGHTS} weights")

    rows = []
    for problem, plain_steps in zip(problems, args.steps, strict=True):
        for way in ways(problem):
            steps = round(plain_steps * problem.batch_size / way.cost)
            ratios = variances(problem, way, steps, args.chains)
            rows.append(row(problem, way, ratios, steps))
            last = rows[-1]
            print(
                f"{problem.name}: {way.sampler}, {way.gradient}, {last['batches']} of"
                f" {way.batch_size}: {last['lowest']:.2f} to {last['highest']:.2f} ±"
                f" {last['standard_error']:.2f}, one chain ± {last['error_of_one_chain']:.2f},"
                f" at {last['best_step']:g}"
            )
    about = machine.describe()
    print(machine.line(about))
    config = {name: value for name, value in vars(args).items() if name != "out"}
    command = "python -m benchmarks.gradient_variance"
    result = {"command": command, "config": config, "machine": about, "gradient_variance": noise}
    files.write_json(out / "gradient_variance.json", result | {"posterior": rows})
    print(f"Wrote {out / 'gradient_variance.json'}")


if __name__ == "__main__":
    sys.exit(main())
