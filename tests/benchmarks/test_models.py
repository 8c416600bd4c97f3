from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.lib import models
from benchmarks.lib.training import predict

pytestmark = pytest.mark.slow


def ordinary(conv, x):
    return nnx.relu(nnx.max_pool(conv(x), (2, 2), (2, 2)))


def assert_close(actual, desired, rtol):
    """Elementwise, relative to the largest entry of each array: sums are in another order."""

    def leaf(a, d):
        np.testing.assert_allclose(a, d, rtol=0, atol=rtol * max(float(jnp.abs(d).max()), 1e-3))

    jax.tree.map(leaf, actual, desired)


@pytest.mark.parametrize(
    ("batch", "dtype", "rtol"), [(7, "float64", 1e-13), (1, "float32", 2e-6), (7, "float32", 2e-6)]
)
def test_windows_are_the_convolution_of_nnx_in_value_and_gradient(batch, dtype, rtol):
    images = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))

    def by_windows(conv, x):
        y = models.conv_windows(x, conv.kernel[...]).transpose(5, 3, 1, 4, 0, 2)
        return y.reshape(len(x), 28, 28, 6)

    def by_nnx(conv, x):
        return conv(x)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(convolve, params, x, cotangent):
        y, vjp = jax.vjp(lambda params, x: convolve(nnx.merge(graphdef, params), x), params, x)
        return y, vjp(cotangent)

    with jax.enable_x64(dtype == "float64"):
        conv = partial(nnx.Conv, padding="VALID", use_bias=False, param_dtype=dtype)
        graphdef, params = nnx.split(conv(3, 6, (5, 5), rngs=nnx.Rngs(0)))
        cotangent = jax.random.normal(jax.random.key(2), (len(images), 28, 28, 6), dtype)
        args = params, images.astype(dtype), cotangent
        actual, desired = (value_and_gradients(f, *args) for f in (by_windows, by_nnx))
        assert actual[0].dtype == dtype
        assert_close(actual, desired, rtol)


@pytest.mark.parametrize("kernel_size, width", [((3, 5), 8), ((5, 3), 10)])
def test_windows_of_oblong_kernels_and_images(kernel_size, width):
    conv = nnx.Conv(2, 4, kernel_size, padding="VALID", rngs=nnx.Rngs(0))
    h, w = kernel_size[0] + 3, kernel_size[1] + width - 1
    x = jax.random.normal(jax.random.key(0), (3, h, w, 2))
    ours, usual = jax.jit(lambda x: (models.conv_pool(conv, x), ordinary(conv, x)))(x)
    assert_close(ours, usual, 1e-6)


@pytest.fixture(scope="module")
def network():
    """The graph and the parameters of the CNN on images of three channels."""
    return models.init_cnn(3, 0)


def logits_and_gradients(network, images, labels):
    """Traced and compiled anew at each call."""
    graphdef, params = network

    def loss(params, images):
        logits = nnx.merge(graphdef, params)(images)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -picked.mean(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, images)
    return logits, grads


def test_network_has_the_gradients_of_the_ordinary_one(network, monkeypatch):
    images, labels = jax.random.normal(jax.random.key(1), (7, 32, 32, 3)), jnp.arange(7)
    graphdef, params = network
    biased = nnx.merge(graphdef, params)
    biased.conv1.bias[...] = jnp.linspace(-1, 1, 6)
    blank = jnp.zeros((7, 32, 32, 3))  # where all outputs of a window tie
    cases = (network, images, labels), (nnx.split(biased), blank, labels)
    ours = [logits_and_gradients(*case) for case in cases]
    monkeypatch.setattr(models, "conv_pool", ordinary)
    for case, got in zip(cases, ours, strict=True):
        assert_close(got, logits_and_gradients(*case), 1e-5)


def test_ordinary_convolution_on_accelerators(network, monkeypatch):
    graphdef, params = network
    images = jnp.zeros((7, 32, 32, 3))

    def primitives(backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        return str(jax.make_jaxpr(lambda p, x: nnx.merge(graphdef, p)(x))(params, images))

    assert "conv_general_dilated" not in primitives("cpu")
    for backend in ("gpu", "tpu"):
        assert primitives(backend).count("conv_general_dilated[") == 2


def test_many_networks_at_once_and_in_bfloat16(network):
    images = jax.random.normal(jax.random.key(1), (7, 32, 32, 3))
    graphdef, params = network
    apply = jax.jit(lambda params, images: nnx.merge(graphdef, params)(images))
    _, others = models.init_cnn(3, 1)
    many = jax.vmap(apply, (0, None))(jax.tree.map(lambda *p: jnp.stack(p), params, others), images)
    exact = apply(params, images)
    assert_close(many, jnp.stack([exact, apply(others, images)]), 1e-5)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    logits = apply(half, images.astype(jnp.bfloat16))
    assert logits.dtype == jnp.bfloat16
    assert_close(logits.astype(jnp.float32), exact, 0.05)


@pytest.mark.parametrize("examples", [3, 500, 1203])
def test_predictions_of_the_last_incomplete_batch_too(examples):
    model = nnx.Linear(4, 10, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(1), (examples, 4))
    probs = predict(*nnx.split(model), images)
    assert_close(probs, jax.nn.softmax(model(images)), 1e-6)
