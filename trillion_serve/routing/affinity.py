"""Which replica likely holds the longest part of a prompt in its prefix cache.

A table remembers where blocks of tokens went last. For what it does not know, rendezvous hashing ranks the
replicas: a form of consistent hashing in which removing a replica moves only the keys it had, and on which
gateways that share nothing agree.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True)
class AffinityConfig:
    """How prompts are told apart.

    Attributes:
        block_tokens: tokens in a block; a shorter common prefix binds prompts to no replica.
        most_blocks: blocks of a prompt that are looked at.
        remembered_blocks: blocks whose replica is remembered, the least recently used are forgotten.
    """

    block_tokens: int = 64
    most_blocks: int = 128
    remembered_blocks: int = 200_000


class PrefixAffinity:
    """Ranks replicas for a prompt and learns from where it went."""

    def __init__(self, config: AffinityConfig) -> None:
        self._config = config
        self._homes: OrderedDict[int, str] = OrderedDict()

    def block_hashes(self, tokens: Sequence[int]) -> list[int]:
        """A hash for each whole block, of the block and all before it; of the whole prompt when it is shorter."""
        size = self._config.block_tokens
        blocks = min(len(tokens) // size, self._config.most_blocks)
        hashes, chained = [], 0
        for start in range(0, blocks * size, size):
            # The hash of a tuple of integers is the same in every process.
            chained = hash((chained, *tokens[start : start + size]))
            hashes.append(chained)
        return hashes or [hash((chained, *tokens))]

    def rank(self, blocks: Sequence[int], names: Iterable[str]) -> list[str]:
        """The names, best first: the home of the longest known prefix, then as rendezvous hashing has them."""
        key = blocks[0].to_bytes(8, "little", signed=True)
        ranked = sorted(names, key=lambda name: blake2b(key + name.encode(), digest_size=8).digest())
        home = next((self._homes[block] for block in reversed(blocks) if self._homes.get(block) in ranked), None)
        if home is not None:
            ranked.remove(home)
            ranked.insert(0, home)
        return ranked

    def learn(self, blocks: Sequence[int], name: str) -> None:
        """The prompt went to a replica."""
        for block in blocks:
            self._homes[block] = name
            self._homes.move_to_end(block)
        while len(self._homes) > self._config.remembered_blocks:
            self._homes.popitem(last=False)
