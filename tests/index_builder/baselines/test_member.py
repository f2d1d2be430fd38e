"""The simple member of the ensemble: what it learns, and how much weight it keeps against other members."""

from __future__ import annotations

import numpy as np

from index_builder.baselines.member import blended, fit_simple, with_weight
from index_builder.samples.samples import Samples
from model.quantiles.head import N_CENTRE, N_PARTS, grid_s
from model.quantiles.simple_growth import SimpleGrowth, unit_growth

VIDEOS, CUTS, LABELS = 400, 6, 4


def samples(seed: int, videos: int = VIDEOS, slope: float = 0.0) -> Samples:
    """Samples whose growth is a known multiple of the unit growth, with noise by video that is skewed upwards."""
    rng = np.random.default_rng(seed)
    n = videos * CUTS
    video = np.arange(videos).repeat(CUTS)
    age_s = np.exp(rng.uniform(np.log(3600), np.log(72 * 3600), n))
    horizon_s = np.exp(rng.uniform(np.log(3600), np.log(48 * 3600), (n, LABELS)))
    value = np.exp(rng.normal(6, 1.5, videos))[video] * age_s / 3600
    level = np.log(value / (age_s / 3600)) - 6
    noise = 1 + rng.exponential(0.5, videos)[video]
    growth = unit_growth(age_s[:, None], horizon_s) * ((0.8 + slope * level) * noise)[:, None]
    cold = np.zeros(n, bool)
    cold[::CUTS] = True
    growth[:, -1] = np.nan
    rest = {name: np.zeros((n, 0), np.float32) for name in Samples.__slots__}
    known = {"video": video, "age_s": age_s, "value_now": value, "cold": cold, "horizon_s": horizon_s}
    return Samples(**rest | known | {"growth": np.maximum(growth, 0)})


def centre(member: SimpleGrowth, of: Samples) -> np.ndarray:
    return member.centre(of.value_now, of.age_s, of.horizon_s)


def test_it_learns_the_mean_and_the_median_of_growth() -> None:
    member = fit_simple(samples(0))
    assert member is not None
    age_s, horizon_s = np.array([10.0, 30.0]) * 3600, np.array([[6.0, 24.0]] * 2) * 3600
    found = member.centre(np.exp(np.array([6.0, 6.0])) * age_s / 3600, age_s, horizon_s)
    unit = unit_growth(age_s[:, None], horizon_s)
    np.testing.assert_allclose(found[..., 0] / unit, 0.8 * 1.5, rtol=0.15)
    # The noise is exponential, so its median is 0.5 ln 2.
    np.testing.assert_allclose(found[..., 1] / unit, 0.8 * (1 + 0.5 * np.log(2)), rtol=0.15)


def test_growth_that_depends_on_the_count_has_a_slope_and_other_growth_has_none() -> None:
    test = samples(9, slope=0.2)
    known = np.isfinite(test.growth) & ~test.cold[:, None]
    with_slope, flat = fit_simple(samples(1, slope=0.2)), fit_simple(samples(1))
    assert with_slope is not None and flat is not None
    assert np.abs(with_slope.slope).mean() > 5 * np.abs(flat.slope).mean()
    errors = [np.square(centre(m, test)[known][:, 0] - test.growth[known]).mean() for m in (with_slope, flat)]
    assert errors[0] < 0.8 * errors[1]


def test_outside_training_it_stays_within_what_training_saw() -> None:
    fit = samples(2, slope=0.2)
    member = fit_simple(fit)
    assert member is not None
    far = member.centre(np.array([0.0, 1e12]), np.array([1.0, 1e9]), np.array([[1.0, 1e7]] * 2))
    assert np.isfinite(far).all() and (far >= 0).all() and (far <= np.nanmax(fit.growth[~fit.cold]) + 1e-6).all()


def weight_of(member: SimpleGrowth, videos: int, better: float) -> float:
    """Mean weight in the mean, against other members whose error is ``better`` times this one's, and partly another error."""
    found = []
    for seed in range(6):
        held = samples(40 + seed, videos)
        own, y = centre(member, held), np.nan_to_num(held.growth)[..., None]
        noise = np.random.default_rng(seed).normal(0, 1, (videos, 1, 1)).repeat(CUTS, 0) * np.abs(own - y).mean()
        others = y + better * (0.8 * (own - y) + 0.6 * noise)
        found.append(with_weight(member, held, others.astype(np.float32)).weight[0])
    return float(np.mean(found))


def test_the_others_get_weight_as_far_as_videos_prove_that_they_are_better() -> None:
    member = fit_simple(samples(3))
    assert member is not None
    assert weight_of(member, 300, 0.5) == 0 and weight_of(member, 300, 1.3) > 0.95
    few, many = weight_of(member, 12, 0.9), weight_of(member, 300, 0.9)
    assert 0.1 < many < few - 0.2 and weight_of(member, 12, 1.3) > 0.95


def test_cold_samples_keep_the_forecast_of_the_others() -> None:
    fit = samples(6, 60)
    member = fit_simple(fit)
    assert member is not None
    parts = np.random.default_rng(0).random((*fit.growth.shape, N_PARTS)).astype(np.float32)
    whole = with_weight(member, fit.take(np.zeros(0, np.int64)), parts[:0, :, :N_CENTRE])
    assert (whole.weight == 1).all()
    out = blended(parts, fit, whole)
    np.testing.assert_array_equal(out[fit.cold], parts[fit.cold])
    np.testing.assert_array_equal(out[..., N_CENTRE:], parts[..., N_CENTRE:])
    np.testing.assert_allclose(out[~fit.cold][..., :N_CENTRE], centre(whole, fit)[~fit.cold], rtol=1e-5)


def test_the_service_reads_the_stored_member_as_the_builder_does() -> None:
    fit = samples(7, 80, slope=0.1)
    fitted = fit_simple(fit)
    assert fitted is not None
    member = with_weight(fitted, fit.take(np.zeros(0, np.int64)), np.zeros((0, LABELS, N_CENTRE), np.float32))
    stored = SimpleGrowth.of({name: array.astype(np.float32) for name, array in member.arrays().items()})
    assert stored is not None and SimpleGrowth.of({}) is None
    warm = fit.take(~fit.cold)
    grid = grid_s(48 * 3600.0)
    horizons = np.broadcast_to(grid, (len(warm.video), len(grid)))
    others = np.zeros((*horizons.shape, N_CENTRE))
    cold = np.zeros(len(warm.video), bool)
    served = stored.blend(others, warm.value_now, warm.age_s, cold, 48 * 3600.0)
    np.testing.assert_array_equal(served, member.centre(warm.value_now, warm.age_s, horizons))
    assert (served[:, 0] == 0).all()
    one = stored.blend(others[3:4], warm.value_now[3:4], warm.age_s[3:4], cold[3:4], 48 * 3600.0)
    np.testing.assert_array_equal(one[0], served[3])
    np.testing.assert_array_equal(stored.blend(others, warm.value_now, warm.age_s, ~cold, 48 * 3600.0), others)


def test_without_labels_there_is_no_member() -> None:
    assert fit_simple(samples(8, 5).take(np.zeros(0, np.int64))) is None
