"""Prefix affinity: where a prompt goes, and what changes when replicas come and go."""

import os
import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trillion_serve.routing.affinity import AffinityConfig, PrefixAffinity

CONFIG = AffinityConfig(block_tokens=4, most_blocks=8)
NAMES = [f"replica-{n}" for n in range(6)]
prompts = st.lists(st.integers(0, 200_000), min_size=1, max_size=60).map(tuple)


@given(prompts, prompts, prompts)
def test_prompts_share_the_hashes_of_the_blocks_they_share(prefix, one, other):
    affinity = PrefixAffinity(CONFIG)
    left, right = affinity.block_hashes(prefix + one), affinity.block_hashes(prefix + other)
    shared = min(len(prefix) // 4, 8)
    assert left[:shared] == right[:shared]
    assert len(left) <= 8
    for a, b, number in zip(left, right, range(1, 9), strict=False):
        if (prefix + one)[: number * 4] != (prefix + other)[: number * 4]:
            assert a != b


@given(st.lists(prompts, max_size=10), prompts, prompts, st.permutations(NAMES))
def test_a_prompt_goes_where_its_beginning_went(history, prompt, more, names):
    affinity = PrefixAffinity(CONFIG)
    for number, earlier in enumerate(history):
        affinity.learn(affinity.block_hashes(earlier), NAMES[number % len(NAMES)])
    affinity.learn(affinity.block_hashes(prompt), "replica-3")
    assert affinity.rank(affinity.block_hashes(prompt), names)[0] == "replica-3"
    if len(prompt) >= 4:
        extended = affinity.block_hashes(prompt + more)
        if len(extended) == len(prompt) // 4 or not history:
            assert affinity.rank(extended, names)[0] == "replica-3"


@given(st.lists(prompts, min_size=1, max_size=20, unique=True), st.sampled_from(NAMES), st.booleans())
def test_removing_a_replica_moves_only_what_it_had(asked, removed, learned):
    affinity = PrefixAffinity(CONFIG)
    blocks = [affinity.block_hashes(prompt) for prompt in asked]
    before = [affinity.rank(hashes, NAMES)[0] for hashes in blocks]
    if learned:
        for hashes, name in zip(blocks, before, strict=True):
            affinity.learn(hashes, name)
        before = [affinity.rank(hashes, NAMES)[0] for hashes in blocks]
    left = [name for name in NAMES if name != removed]
    after = [affinity.rank(hashes, left)[0] for hashes in blocks]
    assert [new for old, new in zip(before, after, strict=True) if old != removed] == [
        old for old in before if old != removed
    ]
    assert removed not in after


@given(prompts, st.permutations(NAMES))
def test_a_rank_is_a_permutation_that_does_not_depend_on_order(prompt, names):
    affinity = PrefixAffinity(CONFIG)
    ranked = affinity.rank(affinity.block_hashes(prompt), names)
    assert ranked == affinity.rank(affinity.block_hashes(prompt), NAMES)
    assert sorted(ranked) == NAMES


def test_the_longest_known_beginning_counts():
    affinity = PrefixAffinity(CONFIG)
    system, one, other = tuple(range(8)), tuple(range(100, 108)), tuple(range(200, 208))
    affinity.learn(affinity.block_hashes(system + one), "replica-1")
    affinity.learn(affinity.block_hashes(system + other), "replica-2")
    assert affinity.rank(affinity.block_hashes(system + one + other), NAMES)[0] == "replica-1"
    assert affinity.rank(affinity.block_hashes(system + other + one), NAMES)[0] == "replica-2"
    left = [name for name in NAMES if name != "replica-1"]
    assert affinity.rank(affinity.block_hashes(system + one), left)[0] == "replica-2", "it knows the common part"


def test_unknown_prompts_spread_evenly():
    affinity = PrefixAffinity(CONFIG)
    homes = Counter(affinity.rank(affinity.block_hashes((n, n, n, n)), NAMES)[0] for n in range(6000))
    assert all(850 < homes[name] < 1150 for name in NAMES)


def test_gateways_that_share_nothing_agree():
    program = (
        "from trillion_serve.routing.affinity import *; a = PrefixAffinity(AffinityConfig(block_tokens=4));"
        "print([a.rank(a.block_hashes(tuple(range(n, n + 9))), ['a', 'b', 'c', 'd']) for n in range(50)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_what_was_not_used_for_long_is_forgotten():
    affinity = PrefixAffinity(AffinityConfig(block_tokens=4, remembered_blocks=2))
    old, new = affinity.block_hashes((1, 2, 3, 4)), affinity.block_hashes((5, 6, 7, 8))
    natural = affinity.rank(old, NAMES)
    affinity.learn(old, natural[-1])
    assert affinity.rank(old, NAMES)[0] == natural[-1]
    affinity.learn(new, "replica-0")
    affinity.learn(affinity.block_hashes((9, 9, 9, 9)), "replica-0")
    assert affinity.rank(old, NAMES) == natural
