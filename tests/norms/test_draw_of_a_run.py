"""Within a run random starts come again; without one, and between runs, nobody could know them."""

from __future__ import annotations

from lirpa_lip.norms.draw import fresh_seed, seeds_of


def drawn(seed: int) -> list[int]:
    with seeds_of(seed):
        return [fresh_seed() for _ in range(4)]


def test_a_run_repeats_its_starts_and_each_is_another():
    assert drawn(5) == drawn(5) and len(set(drawn(5) + drawn(6))) == 8
    with seeds_of(5):
        first = fresh_seed()
        assert drawn(6) == drawn(6)  # a run within a run leaves it where it was
        assert [first, fresh_seed()] == drawn(5)[:2]
    assert fresh_seed() != fresh_seed()
