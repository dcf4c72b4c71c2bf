import numpy as np
import pytest

from lit_guide.data.splits import named_split, stratified_split

FRACTIONS = {"train": 0.65, "val": 0.15, "test": 0.2}


def uneven_labels():
    counts = [1, 2, 3, 7, 50, 333, 1000]
    return np.random.default_rng(3).permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize(
    "fractions", [FRACTIONS, {"train": 0.8, "val": 0.0, "test": 0.2}, {"a": 0.1, "b": 0.1, "c": 0.1, "d": 0.7}]
)
def test_every_split_has_its_share_of_every_class_within_one_row(fractions):
    labels_N = uneven_labels()
    parts = stratified_split(labels_N, fractions, seed=0)
    for value in np.unique(labels_N):
        total = (labels_N == value).sum()
        for name, rows in parts.items():
            assert abs((labels_N[rows] == value).sum() - fractions[name] * total) <= 1, (name, value)


def test_split_is_disjoint_and_complete_and_ascending():
    labels_N = uneven_labels()
    parts = stratified_split(labels_N, FRACTIONS, seed=5)
    assert list(parts) == ["train", "val", "test"]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels_N)))
    for rows in parts.values():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


def test_same_seed_gives_the_same_split():
    first, second = (stratified_split(uneven_labels(), FRACTIONS, seed=7) for _ in range(2))
    for name in FRACTIONS:
        np.testing.assert_array_equal(first[name], second[name])


def test_split_does_not_use_or_change_the_global_generator():
    np.random.seed(0)
    first = stratified_split(uneven_labels(), FRACTIONS, seed=7)
    after_split = np.random.random()
    np.random.seed(0)
    assert np.random.random() == after_split
    np.testing.assert_array_equal(stratified_split(uneven_labels(), FRACTIONS, seed=7)["test"], first["test"])


def test_another_seed_gives_another_split_of_the_same_size():
    first, second = (stratified_split(uneven_labels(), FRACTIONS, seed=seed) for seed in (0, 1))
    for name in FRACTIONS:
        assert len(first[name]) == len(second[name])
        assert set(first[name]) != set(second[name])


def test_rows_of_a_split_are_drawn_not_taken_from_the_front():
    test = stratified_split(np.zeros(1000, dtype=np.int64), {"train": 0.8, "test": 0.2}, seed=0)["test"]
    assert 400 < test.mean() < 600
    assert test.min() < 50
    assert test.max() > 950


@pytest.mark.parametrize("fractions", [{"train": 1.1, "val": -0.1}, {"train": 0.5, "val": 0.4}, {"train": 0.9, "val": 0.2}])
def test_fractions_that_are_negative_or_do_not_sum_to_one_are_refused(fractions):
    with pytest.raises(ValueError, match=r"must be >= 0 and sum to 1.*train"):
        stratified_split(np.array([0, 1, 0, 1]), fractions, seed=0)


def test_fractions_with_floating_point_dust_are_accepted():
    parts = stratified_split(np.arange(10) % 2, {"train": 1 - 0.1 - 0.2, "val": 0.1, "test": 0.2}, seed=0)
    assert sum(map(len, parts.values())) == 10


def test_a_share_of_zero_gives_an_empty_integer_array():
    parts = stratified_split(uneven_labels(), {"train": 0.8, "val": 0.0, "test": 0.2}, seed=0)
    assert parts["val"].shape == (0,)
    assert parts["val"].dtype == np.int64


def test_no_rows_at_all_give_empty_splits():
    parts = stratified_split(np.empty(0, dtype=np.int64), FRACTIONS, seed=0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [], "val": [], "test": []}


@pytest.mark.parametrize("dtype", [str, bytes, object])
def test_named_split_gives_the_rows_of_each_name(dtype):
    column = np.array(["test", "train", "train", "test", "train"])
    if dtype is bytes:
        column = column.astype("S")
    parts = named_split(column.astype(object) if dtype is object else column, ["train", "val", "test"])
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [1, 2, 4], "val": [], "test": [0, 3]}


def test_named_split_says_which_row_names_an_unknown_split():
    with pytest.raises(ValueError, match="row 2 names the split 'valid'; use train, val, test"):
        named_split(["train", "val", "valid", "dev"], ["train", "val", "test"])
