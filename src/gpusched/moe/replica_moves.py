"""The inner loops of the replica planner: moves by water-filling.

State of a rank: ``served`` tokens, ``active`` experts, tokens that come ``inward`` and go ``outward``.
Its latency is ``token_s served + expert_s active + exchange_s max(inward, outward)``, published as (B8).
"""

from gpusched.compilation import entry_kernel, kernel

TINY = 1e-9


@kernel
def latency(r, cost, rank):
    """Return the latency of rank ``r``."""
    token_s, expert_s, exchange_s = cost[0], cost[1], cost[2]
    return token_s * rank[0, r] + expert_s * rank[1, r] + exchange_s * max(rank[2, r], rank[3, r])


@kernel
def slope(r, cost, rank):
    """Return what one more token from another rank costs rank ``r``."""
    return cost[0] + (cost[2] if rank[2, r] >= rank[3, r] else 0.0)


@kernel
def set_ranks(tokens, hosted, remote, rank):
    """Compute the state of all ranks from scratch."""
    experts, ranks = tokens.shape
    for r in range(ranks):
        rank[0, r] = rank[1, r] = rank[2, r] = rank[3, r] = 0.0
        for e in range(experts):
            if hosted[e, r]:
                served = tokens[e, r] + remote[e, r]
                rank[0, r] += served
                rank[2, r] += remote[e, r]
                if served > 0.0:
                    rank[1, r] += 1.0
            else:
                rank[3, r] += tokens[e, r]


@kernel
def shift(e, source, target, amount, tokens, hosted, remote, rank):
    """Give ``target`` a copy of expert e, if it has none, and ``amount`` of the pool from ``source``."""
    ranks = tokens.shape[1]
    if not hosted[e, target]:
        # what the target holds itself leaves the pool, from the source's part of it first
        own = tokens[e, target]
        hosted[e, target] = 1
        if own > 0.0:
            rank[3, target] -= own
            rank[0, target] += own
            left = own
            for turn in range(ranks + 1):
                r = source if turn == 0 else turn - 1
                taken = min(left, remote[e, r])
                if taken > 0.0:
                    remote[e, r] -= taken
                    rank[0, r] -= taken
                    rank[2, r] -= taken
                    left -= taken
            rank[1, target] += 1.0
    if amount > 0.0:
        if tokens[e, target] + remote[e, target] <= 0.0:
            rank[1, target] += 1.0
        remote[e, source] -= amount
        remote[e, target] += amount
        rank[0, source] -= amount
        rank[2, source] -= amount
        rank[0, target] += amount
        rank[2, target] += amount
        if tokens[e, source] + remote[e, source] <= TINY:
            rank[1, source] -= 1.0


@kernel
def undo(e, before_remote, before_rank, before_host, hosted, remote, rank, target):
    """Restore the state saved by ``save``."""
    ranks = remote.shape[1]
    for r in range(ranks):
        remote[e, r] = before_remote[r]
        for k in range(4):
            rank[k, r] = before_rank[k, r]
    hosted[e, target] = before_host


@kernel
def save(e, before_remote, before_rank, remote, rank):
    """Keep the state that a move of expert e may change."""
    for r in range(remote.shape[1]):
        before_remote[r] = remote[e, r]
        for k in range(4):
            before_rank[k, r] = rank[k, r]


@kernel
def fill(e, source, target, to_mean, cost, tokens, hosted, remote, rank):
    """Move tokens of expert e from ``source`` to ``target`` by water-filling: to the mean latency of
    all ranks as published, or until the two are level."""
    ranks = tokens.shape[1]
    shift(e, source, target, 0.0, tokens, hosted, remote, rank)
    high, low = latency(source, cost, rank), latency(target, cost, rank)
    down, up = slope(source, cost, rank), slope(target, cost, rank)
    if tokens[e, target] + remote[e, target] <= 0.0:
        low += cost[1]
    if to_mean:
        mean = 0.0
        for r in range(ranks):
            mean += latency(r, cost, rank)
        mean /= ranks
        amount = min((high - mean) / down, (mean - low) / up)
    else:
        amount = (high - low) / (down + up)
    amount = min(amount, remote[e, source])
    if amount > TINY:
        shift(e, source, target, amount, tokens, hosted, remote, rank)


@kernel
def worst(cost, rank):
    """Return the largest latency."""
    most = 0.0
    for r in range(rank.shape[1]):
        most = max(most, latency(r, cost, rank))
    return most


@entry_kernel
def plan_moves(
    tokens, home, cost, budget_in, budget_out, max_moves, wide_experts, wide_helpers, to_mean, tolerance,
    hosted, remote, rank, used_in, used_out, before_remote, before_rank, invalid, heavy, light,
):  # fmt: skip
    """Choose replicas greedily and return how many.

    With ``wide_experts = wide_helpers = 1`` this is the published loop: heaviest expert of the slowest
    rank to the fastest rank, next-best pair where the budgets forbid, stop where the gain in the
    largest latency is within ``tolerance`` of it. Otherwise the best of ``wide_experts`` heaviest
    experts and ``wide_helpers`` fastest ranks by how far the slower of the two ranks falls.
    """
    experts, ranks = tokens.shape
    for e in range(experts):
        for r in range(ranks):
            hosted[e, r] = 0
            remote[e, r] = 0.0
    for e in range(experts):
        hosted[e, home[e]] = 1
        for r in range(ranks):
            if r != home[e]:
                remote[e, home[e]] += tokens[e, r]
    set_ranks(tokens, hosted, remote, rank)
    for r in range(ranks):
        used_in[r] = used_out[r] = 0
        for s in range(ranks):
            invalid[r, s] = 0
    published = wide_experts == 1 and wide_helpers == 1
    moves = 0
    steps = 0
    while moves < max_moves and steps < 4 * max_moves + ranks * ranks:
        steps += 1
        source = -1
        for r in range(ranks):
            if invalid[r, r] == 0 and (
                source < 0 or latency(r, cost, rank) > latency(source, cost, rank)
            ):
                source = r
        if source < 0:
            break
        top = latency(source, cost, rank)
        if not published and top < worst(cost, rank) * (1.0 - 1e-12):
            break
        helpers = 0
        for _ in range(wide_helpers):
            best = -1
            for r in range(ranks):
                if r == source or invalid[source, r]:
                    continue
                seen = False
                for k in range(helpers):
                    seen = seen or light[k] == r
                if not seen and (best < 0 or latency(r, cost, rank) < latency(best, cost, rank)):
                    best = r
            if best >= 0:
                light[helpers] = best
                helpers += 1
        if helpers == 0:
            if not published:
                break
            invalid[source, source] = 1
            continue
        chosen = 0
        for _ in range(wide_experts):
            best = -1
            for e in range(experts):
                if not hosted[e, source] or remote[e, source] <= TINY:
                    continue
                seen = False
                for k in range(chosen):
                    seen = seen or heavy[k] == e
                if not seen and (
                    best < 0
                    or tokens[e, source] + remote[e, source]
                    > tokens[best, source] + remote[best, source]
                ):
                    best = e
            if best >= 0:
                heavy[chosen] = best
                chosen += 1
        best_gain, best_expert, best_target = 0.0, -1, -1
        tried = 0
        for i in range(chosen):
            e = heavy[i]
            for k in range(helpers):
                target = light[k]
                if hosted[e, target]:
                    if published:
                        continue
                elif (
                    used_in[target] >= budget_in[target] or used_out[home[e]] >= budget_out[home[e]]
                ):
                    continue
                tried += 1
                before_host = hosted[e, target]
                save(e, before_remote, before_rank, remote, rank)
                ceiling = worst(cost, rank)
                fill(e, source, target, to_mean, cost, tokens, hosted, remote, rank)
                if published:
                    gain = ceiling - worst(cost, rank)
                else:
                    gain = top - max(latency(source, cost, rank), latency(target, cost, rank))
                undo(e, before_remote, before_rank, before_host, hosted, remote, rank, target)
                if gain > best_gain:
                    best_gain, best_expert, best_target = gain, e, target
        if tried == 0:
            for k in range(helpers):
                invalid[source, light[k]] = 1
            continue
        if best_gain <= tolerance * top:
            if published or helpers < wide_helpers:
                break
            for k in range(helpers):
                invalid[source, light[k]] = 1
            continue
        if not hosted[best_expert, best_target]:
            used_in[best_target] += 1
            used_out[home[best_expert]] += 1
            moves += 1
        fill(best_expert, source, best_target, to_mean, cost, tokens, hosted, remote, rank)
        if not published:
            for r in range(ranks):
                for s in range(ranks):
                    invalid[r, s] = 0
    return moves


@entry_kernel
def largest_latency(tokens, hosted, remote, cost, rank):
    """Return the largest latency of a rank under a plan."""
    set_ranks(tokens, hosted, remote, rank)
    return worst(cost, rank)
