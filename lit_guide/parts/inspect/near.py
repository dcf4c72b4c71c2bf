"""Images that are nearly the same, by their difference hashes."""

from itertools import combinations, count

import numpy as np
from numpy.typing import NDArray

from lit_guide.engine.photos.examine import alike


def near_duplicates(dhash_N: NDArray[np.uint64], bits: int = 5) -> list[list[int]]:
    """Groups of indices whose 64-bit hashes are alike, in ascending order; images without any contrast (hash 0) are left out.

    Hashes that differ in at most `bits` bits, from 0 to about 10, agree in at least two of `bits + 2` blocks. So for every two
    blocks the hashes are sorted by these, and only neighbours that agree there are compared: a million random hashes take
    seconds, not days. Two images of a group may be joined by others in between.
    """
    rows = np.flatnonzero(dhash_N)
    values, inverse = np.unique(dhash_N[rows], return_inverse=True)
    leader = np.arange(len(values))
    for two in combinations(range(bits + 2), 2):
        masked = values & np.uint64(sum(1 << bit for bit in range(64) if bit % (bits + 2) in two))
        order = np.argsort(masked)
        value, key = values[order], masked[order]
        at = np.arange(len(order))
        for distance in count(1):
            at = at[: np.searchsorted(at, len(order) - distance)]
            at = at[key[at] == key[at + distance]]
            if not len(at):
                break
            near = at[np.bitwise_count(value[at] ^ value[at + distance]) <= bits]
            one, other = order[near], order[near + distance]
            while (apart := leader[one] != leader[other]).any():  # all that such pairs connect get one leader, the lowest
                one, other = one[apart], other[apart]
                ends = leader[one], leader[other]
                leader[np.maximum(*ends)] = np.minimum(*ends)
                while (leader != leader[leader]).any():
                    leader = leader[leader]
    return alike(rows, leader[inverse])
