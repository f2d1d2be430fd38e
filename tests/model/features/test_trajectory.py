"""Trajectory vectors: centred, projected, and learned so that neighbours have equal residuals."""

from __future__ import annotations

import numpy as np

from index_builder.neighbours.trajectory_fit import fit_projection
from model.features.trajectory import TrajectorySpace
from model.growth.curve_kernels import N_GROWTH, NOMINAL_AGES_US

DIM = 12


def space_of(shapes: np.ndarray) -> TrajectorySpace:
    return TrajectorySpace.around(shapes.astype(np.float32), np.zeros(len(shapes), np.int64))


def test_vectors_are_moved_by_the_mean_of_their_age() -> None:
    rng = np.random.default_rng(0)
    shapes, bucket = rng.random((60, DIM)).astype(np.float32), np.repeat([2, 9], 30)
    space = TrajectorySpace.around(shapes, bucket)
    vectors = space.vectors(shapes, bucket)
    for at in (2, 9):
        np.testing.assert_allclose(vectors[bucket == at].mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(vectors[bucket == at], shapes[bucket == at] - space.centre[at], atol=1e-6)


def test_missing_shapes_stay_zero() -> None:
    shapes = np.zeros((2, DIM), np.float32)
    shapes[0] = 1
    space = TrajectorySpace(np.full((len(NOMINAL_AGES_US), DIM), 0.5, np.float32), np.eye(DIM, dtype=np.float32))
    vectors = space.vectors(shapes, np.array([3, -1]))
    assert vectors[0].any() and not vectors[1].any()


def test_a_vector_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(1)
    shapes, bucket = rng.random((40, DIM)).astype(np.float32), rng.integers(0, 20, 40)
    space = TrajectorySpace(
        rng.random((len(NOMINAL_AGES_US), DIM)).astype(np.float32), rng.random((DIM, 7)).astype(np.float32)
    )
    whole = space.vectors(shapes, bucket)
    assert whole.shape == (40, space.dim)
    for i in range(40):
        np.testing.assert_array_equal(space.vectors(shapes[i : i + 1], bucket[i : i + 1])[0], whole[i])


def nearest_error(space: TrajectorySpace, shapes: np.ndarray, residual: np.ndarray, bucket: np.ndarray) -> float:
    """The squared error of forecasting each residual by that of the nearest other vector."""
    vectors = space.vectors(shapes, bucket)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -2)
    return float(np.square(residual - residual[cosine.argmax(1)]).mean())


def learning_set(seed: int, informative: int) -> tuple[np.ndarray, ...]:
    """Shapes of many dimensions, of which the first few decide the residual."""
    rng = np.random.default_rng(seed)
    shapes = rng.normal(size=(1500, DIM)).astype(np.float32)
    residual = np.tanh(shapes[:, :2].sum(1, keepdims=True)) * np.ones((1, N_GROWTH)) if informative else 0
    residual = (residual + 0.1 * rng.normal(size=(1500, N_GROWTH))).astype(np.float32)
    return shapes, residual, np.arange(1500), np.zeros(1500, np.int64)


def test_the_projection_finds_what_decides_the_residual() -> None:
    shapes, residual, video, bucket = learning_set(0, informative=2)
    residual[::7, 3:] = np.nan
    fitted = fit_projection(space_of(shapes), shapes, residual, video, bucket, 0)
    new, truth, _, _ = learning_set(1, informative=2)
    assert nearest_error(fitted, new, truth, bucket) < 0.6 * nearest_error(space_of(shapes), new, truth, bucket)


def test_noise_and_few_videos_leave_the_space_as_it_is() -> None:
    shapes, residual, video, bucket = learning_set(0, informative=0)
    for n in (1500, 20):
        space = space_of(shapes[:n])
        fitted = fit_projection(space, shapes[:n], residual[:n], video[:n], bucket[:n], 0)
        np.testing.assert_array_equal(fitted.projection, space.projection)
    nothing = np.full_like(residual, np.nan)
    assert fit_projection(space, shapes, nothing, video, bucket, 0) is space
