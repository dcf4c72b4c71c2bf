import numpy as np
import pytest

from lit_guide.parts.inspect.near import near_duplicates


def brute_force(hashes, bits):
    """Connected groups of the hashes that are no 0, each pair compared."""
    near_NN = np.bitwise_count(hashes[:, None] ^ hashes) <= bits
    left, groups = set(np.flatnonzero(hashes).tolist()), []
    while left:
        group, new = set(), {min(left)}
        while new:
            group |= new
            new = {other for one in new for other in np.flatnonzero(near_NN[one]).tolist()} & left - group
        left -= group
        groups.append(sorted(group))
    return [group for group in groups if len(group) > 1]


def flipped(hashes, bits, rng):
    """Each hash with exactly so many bits changed."""
    chosen = [rng.choice(64, bits, replace=False) for _ in hashes]
    return hashes ^ np.array([sum(1 << int(bit) for bit in some) for some in chosen], dtype=np.uint64)


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5, 7, 10])
@pytest.mark.parametrize("seed", range(3))
def test_near_hashes_are_found_as_by_comparing_all_pairs(bits, seed):
    rng = np.random.default_rng(seed)
    apart = rng.integers(1, 2**64, 300, dtype=np.uint64)
    near = flipped(apart[:60], bits, rng)
    chain = flipped(near[:30], bits, rng)
    too_far = flipped(apart[60:120], bits + 1, rng)
    clump = flipped(np.repeat(apart[-1:], 60), bits // 2 + 1, rng)  # all in the same buckets
    hashes = np.concatenate([apart, near, chain, too_far, clump, apart[100:110], np.zeros(5, dtype=np.uint64)])
    hashes = rng.permutation(hashes)
    found = near_duplicates(hashes, bits)
    assert found == brute_force(hashes, bits)
    assert sum(map(len, found)) >= 20 + (150 if bits else 0)
    assert {type(index) for group in found for index in group} == {int}


@pytest.mark.parametrize("bits", [1, 5, 10])
def test_every_place_of_the_bits_that_differ_is_found(bits):
    rng = np.random.default_rng(0)
    ones = rng.integers(1, 2**64, 500, dtype=np.uint64)
    others = flipped(ones, bits, rng)
    assert near_duplicates(np.concatenate([ones, others]), bits) == [[index, 500 + index] for index in range(500)]
    assert near_duplicates(np.concatenate([ones, flipped(ones, bits + 1, rng)]), bits) == []


def test_images_may_be_joined_by_others_in_between():
    chain = np.random.default_rng(0).permutation([2**64 - 2**bit for bit in range(64)]).astype(np.uint64)
    assert near_duplicates(chain, 0) == []
    assert near_duplicates(chain, 1) == [list(range(64))]


def test_images_without_contrast_are_in_no_group_and_join_none():
    hashes = np.array([0, 0b0011, 0, 0b1100, 0b1100], dtype=np.uint64)
    assert near_duplicates(hashes, 2) == [[3, 4]]
    assert near_duplicates(np.zeros(3, dtype=np.uint64)) == []
    assert near_duplicates(np.array([7], dtype=np.uint64)) == []


def test_near_duplicates_of_ten_thousand_images_and_of_fifty_thousand_equal_ones():
    rng = np.random.default_rng(0)
    apart = rng.integers(1, 2**64, 10_000, dtype=np.uint64)
    groups = near_duplicates(np.concatenate([apart, flipped(apart[:500], 4, rng)]))
    assert groups == [[index, 10_000 + index] for index in range(500)]
    same = np.full(50_000, 12345, dtype=np.uint64)
    groups = near_duplicates(np.concatenate([apart, same]))
    assert groups == [list(range(10_000, 60_000))]


@pytest.mark.slow
def test_near_duplicates_of_a_million_images():
    rng = np.random.default_rng(0)
    apart = rng.integers(1, 2**64, 1_000_000, dtype=np.uint64)
    groups = near_duplicates(np.concatenate([apart, flipped(apart[:1000], 5, rng)]))
    assert [[index, 1_000_000 + index] for index in range(1000)] == [group for group in groups if group[-1] >= 1_000_000]
    assert len(groups) < 1010
