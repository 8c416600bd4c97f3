from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import models
from benchmarks.training import predict


def ordinary(conv, x):
    return nnx.relu(nnx.max_pool(conv(x), (2, 2), (2, 2)))


def assert_close(actual, desired, rtol):
    """Elementwise, relative to the largest entry of each array: sums are in another order."""

    def leaf(a, d):
        np.testing.assert_allclose(a, d, rtol=0, atol=rtol * max(float(jnp.abs(d).max()), 1e-3))

    jax.tree.map(leaf, actual, desired)


@pytest.fixture(params=[1, 7])
def images(request):
    return jax.random.normal(jax.random.key(1), (request.param, 32, 32, 3))


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-13), ("float32", 2e-6)])
def test_windows_are_the_convolution_of_nnx_in_value_and_gradient(images, dtype, rtol):
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
    assert_close(models.conv_pool(conv, x), ordinary(conv, x), 1e-6)


def gradients(model, images, labels):
    def loss(model, images):
        logits = model(images)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -picked.mean()

    return nnx.jit(nnx.grad(loss, argnums=(0, 1)))(model, images)


def test_network_has_the_gradients_of_the_ordinary_one(images, monkeypatch):
    model = models.CNN(3, rngs=nnx.Rngs(0))
    labels = jnp.arange(len(images)) % 10
    logits, grads = model(images), gradients(model, images, labels)
    monkeypatch.setattr(models, "conv_pool", ordinary)
    assert_close(logits, model(images), 1e-5)
    assert_close(grads, gradients(model, images, labels), 1e-5)


def test_blank_images_tie_everywhere_and_still_have_the_same_gradients(monkeypatch):
    model = models.CNN(3, rngs=nnx.Rngs(0))
    model.conv1.bias[...] = jnp.linspace(-1, 1, 6)
    x, labels = jnp.zeros((4, 32, 32, 3)), jnp.arange(4)
    grads = gradients(model, x, labels)
    monkeypatch.setattr(models, "conv_pool", ordinary)
    assert_close(grads, gradients(model, x, labels), 1e-5)


def test_ordinary_convolution_on_accelerators(images, monkeypatch):
    def primitives(backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        model = models.CNN(3, rngs=nnx.Rngs(0))
        return str(jax.make_jaxpr(lambda x: model(x))(images))

    assert "conv_general_dilated" not in primitives("cpu")
    for backend in ("gpu", "tpu"):
        assert primitives(backend).count("conv_general_dilated[") == 2


def test_many_networks_at_once(images):
    @jax.jit
    def logits(key):
        return models.CNN(3, rngs=nnx.Rngs(params=key))(images)

    keys = jax.random.split(jax.random.key(0), 2)
    many = jax.vmap(logits)(keys)
    assert_close(many, jnp.stack([logits(key) for key in keys]), 1e-5)


def test_bfloat16(images):
    model = models.CNN(3, rngs=nnx.Rngs(0))
    exact = model(images)
    graphdef, params = nnx.split(model)
    half = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    logits = half(images.astype(jnp.bfloat16))
    assert logits.dtype == jnp.bfloat16
    assert_close(logits.astype(jnp.float32), exact, 0.05)


@pytest.mark.parametrize("examples", [3, 500, 1203])
def test_predictions_of_the_last_incomplete_batch_too(examples):
    model = nnx.Linear(4, 10, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(1), (examples, 4))
    probs = predict(*nnx.split(model), images)
    assert_close(probs, jax.nn.softmax(model(images)), 1e-6)
