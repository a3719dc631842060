"""What is wrong with a placement and chains, found without the code that made them."""

from collections.abc import Sequence

from gpusched.timing.chains import BlockServers, Placed


def problems(
    servers: BlockServers,
    placed: Placed,
    chains: Sequence[Sequence[tuple[int, int]]] = (),
    tokens: int = 0,
) -> list[str]:
    """Return a sentence for every rule that is broken, none if all is well.

    ``chains`` are of requests served at once, each of ``tokens`` tokens: servers and the blocks run
    at each.
    """
    found = []
    covered = [0] * servers.blocks
    for j, name in enumerate(servers.names):
        first, count = int(placed.first[j]), int(placed.blocks[j])
        if count == 0:
            continue
        if first < 0 or first + count > servers.blocks:
            found.append(f"{name} holds blocks {first} to {first + count - 1} of {servers.blocks}")
            continue
        for block in range(first, first + count):
            covered[block] += 1
        used = count * servers.block_bytes + int(placed.cache_tokens[j]) * servers.cache_token_bytes
        if used > servers.memory_bytes[j] * (1 + 1e-9):
            found.append(f"{name} needs {used:.6g} bytes and has {servers.memory_bytes[j]:.6g}")
    found += [f"nobody holds block {block}" for block, times in enumerate(covered) if not times]
    taken = [0] * servers.count
    for number, chain in enumerate(chains):
        at = 0
        for j, count in chain:
            first, end = int(placed.first[j]), int(placed.first[j] + placed.blocks[j])
            if not (first <= at < end and at + count == end):
                found.append(f"request {number} runs {count} blocks from {at} at {servers.names[j]}, which holds {first} to {end - 1}")  # fmt: skip
            at += count
            taken[j] += count * tokens
        if at != servers.blocks:
            found.append(f"request {number} runs {at} of {servers.blocks} blocks")
    for j, name in enumerate(servers.names):
        if taken[j] > placed.cache_tokens[j]:
            found.append(f"{name} holds {taken[j]} tokens x blocks of cache and has room for {int(placed.cache_tokens[j])}")  # fmt: skip
    return found
