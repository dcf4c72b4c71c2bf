import os

import numpy as np
import pytest

from lit_guide.engine.data.source import grouped_split, named_split, stratified_split

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


def test_copies_stay_with_the_first_of_their_group_and_the_rest_is_dealt_out_in_proportion():
    labels_N = np.arange(1000) % 2
    copies = [np.array([start, start + 200, start + 401]) for start in range(100)]  # the last is of the other class
    parts = stratified_split(labels_N, FRACTIONS, seed=0, copies=copies)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1000))
    split_of = {row: name for name, rows in parts.items() for row in rows.tolist()}
    assert {tuple({split_of[row] for row in group.tolist()}) for group in copies} == {("train",), ("val",), ("test",)}
    followers = {row for group in copies for row in group[1:].tolist()}
    for name, rows in parts.items():
        assert (np.diff(rows) > 0).all()
        assert len(set(rows.tolist()) - followers) == pytest.approx(FRACTIONS[name] * 800, abs=2)


def test_with_names_a_new_row_moves_hardly_any_other():
    names = [f"photo_{number}.jpg" for number in range(600)]
    labels = np.arange(600) % 3
    before = stratified_split(labels, FRACTIONS, 0, names=names)
    assert {name: len(rows) for name, rows in before.items()} == {"train": 390, "val": 90, "test": 120}
    assert (np.bincount(labels[before["val"]]) == 30).all()
    split_of = {names[row]: split for split, rows in before.items() for row in rows}
    for at, extra in ((0, "a.jpg"), (300, "m.jpg"), (600, "z.jpg")):  # wherever it comes in the list
        more = [*names[:at], extra, *names[at:]]
        kinds = np.insert(labels, at, 1)
        after = {more[row]: split for split, rows in stratified_split(kinds, FRACTIONS, 0, names=more).items() for row in rows}
        assert sum(after[name] != split_of[name] for name in names) <= 2
    other = stratified_split(labels, FRACTIONS, 1, names=names)
    assert len(np.intersect1d(other["test"], before["test"])) < 60
    shuffled = np.random.default_rng(0).permutation(600)  # the order of the list does not matter
    again = stratified_split(labels[shuffled], FRACTIONS, 0, names=[names[row] for row in shuffled])
    assert sorted(names[shuffled[row]] for row in again["test"]) == sorted(names[row] for row in before["test"])


def test_the_splits_of_a_set_stay_what_they_were_in_earlier_versions():
    names = [*(f"cat/фото {n}.jpg" for n in range(18)), os.fsdecode(b"odd \xff.gif"), "z.png"]
    labels_N, copies = np.arange(20) % 2, [np.array([0, 3, 8])]
    parts = [stratified_split(labels_N, FRACTIONS, seed, copies, names) for seed in (0, 1)]
    assert [part["val"].tolist() for part in parts] == [[4, 17], [4, 7]]
    assert [part["test"].tolist() for part in parts] == [[6, 11, 13, 14], [1, 6, 11, 16]]
    unnamed = stratified_split(labels_N, FRACTIONS, 0, copies)
    assert [unnamed["val"].tolist(), unnamed["test"].tolist()] == [[16, 17], [0, 2, 3, 5, 8, 13]]
    grouped = grouped_split(labels_N, [str(row // 3) for row in range(20)], FRACTIONS, 0)
    assert [grouped["val"].tolist(), grouped["test"].tolist()] == [[0, 1, 2], [15, 16, 17]]


def test_empty_groups_of_copies_change_nothing():
    plain = stratified_split(uneven_labels(), FRACTIONS, seed=0)
    with_none = stratified_split(uneven_labels(), FRACTIONS, seed=0, copies=[np.array([], dtype=np.int64), np.array([5])])
    for name in FRACTIONS:
        np.testing.assert_array_equal(plain[name], with_none[name])


# --- grouped_split


def subjects(seed, classes=4):
    """3,000 rows of 200 subjects; every second time a subject has images of one class only."""
    generator = np.random.default_rng(seed)
    group_N = generator.integers(0, 200, 3000)
    labels_N = group_N % classes if seed % 2 else generator.integers(0, classes, 3000)
    return labels_N, [f"subject {group}" for group in group_N]


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_a_group_are_all_in_one_split(seed):
    labels_N, groups = subjects(seed)
    parts = grouped_split(labels_N, groups, FRACTIONS, seed)
    assert list(parts) == ["train", "val", "test"]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(3000))
    for rows in parts.values():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    train, val, test = ({groups[row] for row in rows} for rows in parts.values())
    assert not train & val
    assert not train & test
    assert not val & test
    assert train | val | test == set(groups)


@pytest.mark.parametrize("seed", range(6))
def test_grouped_splits_have_their_share_of_every_class_within_a_group(seed):
    labels_N, groups = subjects(seed)
    largest = np.unique(groups, return_counts=True)[1].max()
    for name, rows in grouped_split(labels_N, groups, FRACTIONS, seed).items():
        for value in range(4):
            total = (labels_N == value).sum()
            assert abs((labels_N[rows] == value).sum() - FRACTIONS[name] * total) <= largest, (name, value)


def test_grouped_split_depends_on_its_seed_alone():
    labels_N, groups = subjects(0)
    np.random.seed(0)
    first = grouped_split(labels_N, groups, FRACTIONS, seed=7)
    drawn = np.random.random()
    np.random.seed(0)
    assert np.random.random() == drawn
    for name, rows in grouped_split(labels_N, groups, FRACTIONS, seed=7).items():
        np.testing.assert_array_equal(rows, first[name])
    assert set(grouped_split(labels_N, groups, FRACTIONS, seed=8)["test"]) != set(first["test"])


def test_groups_of_one_row_are_split_as_rows_are():
    labels_N = np.arange(100) % 2
    parts = grouped_split(labels_N, [str(row) for row in range(100)], FRACTIONS, seed=0)
    assert {name: np.bincount(labels_N[rows]).tolist() for name, rows in parts.items()} == {
        "train": [33, 33],
        "val": [7, 7],
        "test": [10, 10],
    }


def test_a_group_of_half_the_rows_goes_to_the_largest_split():
    groups = ["giant"] * 50 + [str(row) for row in range(50)]
    parts = grouped_split(np.arange(100) % 2, groups, FRACTIONS, seed=3)
    assert set(range(50)) <= set(parts["train"].tolist())
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 66, "val": 14, "test": 20}


def test_a_group_goes_where_most_of_its_rows_are_lacking():
    first, second, third = [0] * 14, [0] * 7 + [1] * 6, [0] * 4 + [1]
    labels_N = np.array([*first, *second, *third, *[1] * 13])
    groups = ["first"] * 14 + ["second"] * 13 + ["third"] * 5 + [f"single {row}" for row in range(13)]
    parts = grouped_split(labels_N, groups, {"a": 0.5, "b": 0.5}, seed=0)
    assert {name: np.bincount(labels_N[rows]).tolist() for name, rows in parts.items()} == {"a": [14, 10], "b": [11, 10]}


def test_a_grouped_share_of_zero_gets_no_group_and_one_group_goes_to_train():
    parts = grouped_split(np.arange(10) % 2, [str(row) for row in range(10)], {"train": 0.8, "val": 0.0, "test": 0.2}, seed=0)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 8, "val": 0, "test": 2}
    alone = grouped_split(np.arange(10) % 2, ["same"] * 10, FRACTIONS, seed=0)
    assert {name: len(rows) for name, rows in alone.items()} == {"train": 10, "val": 0, "test": 0}
    assert alone["val"].dtype == np.int64


def test_no_rows_at_all_give_empty_grouped_splits():
    parts = grouped_split(np.empty(0, dtype=np.int64), [], FRACTIONS, seed=0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [], "val": [], "test": []}


def test_grouped_fractions_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match=r"must be >= 0 and sum to 1.*train"):
        grouped_split(np.array([0, 1]), ["a", "b"], {"train": 0.5, "val": 0.4}, seed=0)


# --- named_split


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
