"""The shipped model: what it draws, and that NumPy and JAX compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stages import model

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 3])
def test_outputs_are_pixels_times_weights_plus_bias(count):
    images = RANDOM.random((5, 4, 2, 3))
    weights = RANDOM.normal(size=(24, count)).astype(np.float32)
    bias = RANDOM.normal(size=count).astype(np.float32)
    params = {"weights": weights.astype(float), "bias": bias.astype(float)}
    outputs = model.forward(params, images)
    expected = [
        [sum(image.flat * params["weights"][:, k]) + bias[k] for k in range(count)]
        for image in images
    ]
    assert outputs.dtype == np.float64
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)
    in_float32 = {"weights": jnp.asarray(weights), "bias": jnp.asarray(bias)}
    by_jax = jax.jit(model.forward)(in_float32, jnp.float32(images))
    np.testing.assert_allclose(by_jax, expected, rtol=1e-4)


def test_untrained_weights_are_normal_and_scaled_by_init_std():
    key, shape = jax.random.key(0), (100, 100, 1)
    params = model.init(key, shape, 2, 3.0)
    assert float(params["weights"].std()) == pytest.approx(3, rel=0.03)
    assert float(params["weights"].mean()) == pytest.approx(0, abs=0.1)
    zeros = model.init(key, (28, 28, 1), 1, 0.0)
    assert not any(jnp.any(array) for array in zeros.values())
