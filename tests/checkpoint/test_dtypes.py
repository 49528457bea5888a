"""Decode tables and rounding, against ml_dtypes and NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from diffai_jupyter.checkpoint.dtypes import (
    DTYPES,
    F4,
    F8_E4M3,
    F8_E8M0,
    F32,
    cast_equals,
    dtype_of,
    half_ulp,
    round_to,
)

ORACLE = {
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "f8_e4m3": ml_dtypes.float8_e4m3fn,
    "f8_e5m2": ml_dtypes.float8_e5m2,
    "f8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "f8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "f8_e8m0": ml_dtypes.float8_e8m0fnu,
    "f4": ml_dtypes.float4_e2m1fn,
}
SMALL = sorted(ORACLE)


def all_codes(name: str) -> np.ndarray:
    dtype = DTYPES[name]
    return np.arange(2**dtype.bits).astype("u2" if dtype.bits == 16 else "u1")


def oracle_values(name: str) -> np.ndarray:
    return all_codes(name).view(ORACLE[name]).astype(np.float32)


def edge_values(name: str) -> np.ndarray:
    """Return every value of a dtype, every midpoint and its neighbours, and random numbers around."""
    with np.errstate(invalid="ignore"):
        values = np.unique(oracle_values(name)[np.isfinite(oracle_values(name))]).astype(np.float64)
    middles = (values[1:] + values[:-1]) / 2
    random = np.random.default_rng(0).standard_normal(20_000) * 10.0 ** np.random.default_rng(1).uniform(
        -9, 6, 20_000
    )
    largest = values[-1]
    beyond = largest * np.array([1.01, 1.03, 1.0625, 1.1, 1.5, 4.0])
    with np.errstate(over="ignore"):
        found = np.concatenate([values, middles, random, beyond, -beyond, [0.0, -0.0]]).astype(np.float32)
        found = np.concatenate(
            [found, np.nextafter(found, np.float32(0)), np.nextafter(found, np.float32(np.inf))]
        )
    return np.concatenate([found, np.float32([np.inf, -np.inf, np.nan])])


@pytest.mark.parametrize("name", SMALL)
def test_decode_is_bit_equal_over_all_codes(name: str) -> None:
    codes = all_codes(name).view("<f2") if name == "f16" else all_codes(name)
    ours, theirs = DTYPES[name].decode(codes), oracle_values(name)
    assert ours.dtype == np.float32
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    number = ~np.isnan(theirs)
    assert np.array_equal(ours.view("u4")[number], theirs.view("u4")[number])


@pytest.mark.parametrize("name", [name for name in SMALL if name != "f4"])
def test_round_to_equals_the_oracle_cast(name: str) -> None:
    values = edge_values(name)
    if name == "f8_e8m0":
        # the format has neither sign nor zero, and the oracle turns what is out of range into NaN or a limit
        values = values[(values >= 2.0**-126) & (values < 2.0**127)]
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = values.astype(ORACLE[name]).astype(np.float64)
    ours = round_to(DTYPES[name], values)
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_round_to_f4_within_its_range_equals_the_oracle_cast() -> None:
    values = edge_values("f4")
    values = values[np.abs(values) <= 7]
    theirs = values.astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    inside = np.abs(values) < 7
    assert np.array_equal(round_to(F4, values)[inside], theirs[inside])
    assert not np.isfinite(round_to(F4, np.float32([7.5]))).any()


@pytest.mark.parametrize("name", SMALL)
def test_cast_equals_accepts_the_oracle_cast_and_not_its_neighbour(name: str) -> None:
    values = edge_values(name)
    values = values[~np.isnan(values)]
    if name == "f8_e8m0":
        values = values[(values >= 2.0**-126) & (values < 2.0**127)]
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(ORACLE[name]).astype(np.float32)
    assert cast_equals(values, cast, DTYPES[name]).all()
    table = np.unique(oracle_values(name)[np.isfinite(oracle_values(name))])
    at = np.searchsorted(table, cast[np.isfinite(cast)])
    neighbour = table[np.where(at > 0, at - 1, 1)]
    assert not cast_equals(values[np.isfinite(cast)], neighbour, DTYPES[name]).any()


@pytest.mark.parametrize("stored", [np.nan, 448.0, np.inf])
def test_overflow_may_be_stored_in_any_convention_but_not_with_the_other_sign(stored: float) -> None:
    source, target = np.float32([1000.0]), np.float32([stored])
    assert cast_equals(source, target, F8_E4M3).all()
    if not np.isnan(stored):
        assert not cast_equals(source, -target, F8_E4M3).any()
    assert not cast_equals(source, np.float32([240.0]), F8_E4M3).any()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_half_ulp_is_half_of_numpy_spacing(kind: type[np.floating]) -> None:
    values = np.random.default_rng(2).standard_normal(500).astype(kind)
    values = np.concatenate([values, kind([1, 2, 0.5, np.finfo(kind).smallest_normal, 0])])
    expected = np.spacing(np.abs(values)).astype(np.float64) / 2
    found = half_ulp(dtype_of(values), values)
    # half of the smallest double is no double; there both are zero
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("f16", "f8_e8m0")])
def test_half_ulp_of_small_floats_is_half_the_gap_above(name: str) -> None:
    table = np.unique(np.abs(oracle_values(name)[np.isfinite(oracle_values(name))])).astype(np.float64)
    assert np.array_equal(half_ulp(DTYPES[name], table[:-1]), np.diff(table) / 2)


def test_integers_have_no_gap() -> None:
    assert not half_ulp(DTYPES["i32"], np.arange(5)).any()


def test_dtype_of_extension_types_and_refusals() -> None:
    for name, kind in ORACLE.items():
        assert dtype_of(np.zeros(1, dtype=kind)).name == name
    assert dtype_of(np.zeros(1, ">f4")) is F32
    for bad in (
        np.array(["a"]),
        np.array([None]),
        np.zeros(1, "V3"),
        np.zeros(1, "M8[s]"),
        np.zeros(1, np.longdouble),
    ):
        with pytest.raises(TypeError, match="cannot be compared"):
            dtype_of(bad)


def test_rounding_to_integers_is_refused() -> None:
    with pytest.raises(TypeError, match="i8 is not a floating-point dtype"):
        round_to(DTYPES["i8"], np.float32([1]))


def test_e8m0_has_no_number_for_zero_and_below() -> None:
    assert np.isnan(round_to(F8_E8M0, np.float32([0.0, -1.0, np.inf]))).all()
