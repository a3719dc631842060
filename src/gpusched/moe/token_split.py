"""The exact split of tokens over the hosts of their experts, by maximum flows below a ceiling.

``cost`` holds the seconds of a token, of an active expert and of a token exchanged; rows of ``base`` are
each rank's tokens, active experts, tokens that come in and tokens that go out before pools are split.
"""

from gpusched.compilation import entry_kernel, kernel

TINY = 1e-9


@kernel
def room(r, ceiling, cost, base):
    """Return how many pooled tokens rank ``r`` can take within a latency of ``ceiling``."""
    fixed = cost[0] * base[0, r] + cost[1] * base[1, r]
    by_compute = (ceiling - fixed - cost[2] * base[3, r]) / cost[0]
    by_exchange = (ceiling - fixed - cost[2] * base[2, r]) / (cost[0] + cost[2])
    return min(by_compute, by_exchange)


@kernel
def ceiling_for(demand, members, low, cost, base):
    """Return the least latency, at least ``low``, within which ranks with ``members`` take ``demand``
    together: Newton's method on a concave function, from below."""
    ranks = base.shape[1]
    ceiling = low
    for _ in range(2 * ranks + 4):
        total, rise = 0.0, 0.0
        for r in range(ranks):
            if members[r]:
                fixed = cost[0] * base[0, r] + cost[1] * base[1, r]
                a = (ceiling - fixed - cost[2] * base[3, r]) / cost[0]
                b = (ceiling - fixed - cost[2] * base[2, r]) / (cost[0] + cost[2])
                total += min(a, b)
                rise += 1.0 / cost[0] if a < b else 1.0 / (cost[0] + cost[2])
        if total >= demand * (1.0 - 1e-12):
            break
        ceiling += (demand - total) / rise
    return ceiling


@entry_kernel
def split_exactly(tokens, cost, hosted, remote, base, pool, left, space, members, queue, parent):
    """Set the split of every pool that makes the largest latency least, and return that latency.

    Pools flow to their hosts' room below a ceiling; a flow that leaves something shows a set of ranks
    too small for the pools confined to it, which raises the ceiling (Newton's method on minimum
    cuts). Every hosted expert with a pool counts as active on its hosts.
    """
    experts, ranks = tokens.shape
    for r in range(ranks):
        base[0, r] = base[1, r] = base[2, r] = base[3, r] = 0.0
        members[r] = 1
    demand = 0.0
    for e in range(experts):
        hosts, only = 0, -1
        pool[e] = 0.0
        for r in range(ranks):
            remote[e, r] = 0.0
            if hosted[e, r]:
                hosts += 1
                only = r
            else:
                pool[e] += tokens[e, r]
                base[3, r] += tokens[e, r]
        for r in range(ranks):
            if hosted[e, r]:
                base[0, r] += tokens[e, r]
                if tokens[e, r] + pool[e] > 0.0:
                    base[1, r] += 1.0
        if hosts == 1:
            remote[e, only] = pool[e]
            base[0, only] += pool[e]
            base[2, only] += pool[e]
            pool[e] = 0.0
        left[e] = pool[e]
        demand += pool[e]
    ceiling = 0.0
    for r in range(ranks):
        exchange_s = cost[2] * max(base[2, r], base[3, r])
        ceiling = max(ceiling, cost[0] * base[0, r] + cost[1] * base[1, r] + exchange_s)
    ceiling = ceiling_for(demand, members, ceiling, cost, base)
    for r in range(ranks):
        space[r] = room(r, ceiling, cost, base)
    small = TINY * (1.0 + demand)
    for _ in range(2 * ranks + experts + 8):
        # augment from every pool with tokens left, breadth first over hosts and shared pools
        stuck = 0.0
        for e in range(experts):
            while left[e] > small:
                for r in range(ranks):
                    parent[r] = -2
                size = 0
                for r in range(ranks):
                    if hosted[e, r]:
                        parent[r] = -1
                        queue[size] = r
                        size += 1
                at, found = 0, -1
                while at < size and found < 0:
                    r = queue[at]
                    at += 1
                    if space[r] > small:
                        found = r
                        break
                    for other in range(experts):
                        if pool[other] > 0.0 and remote[other, r] > small:
                            for s in range(ranks):
                                if hosted[other, s] and parent[s] == -2:
                                    parent[s] = other * ranks + r
                                    queue[size] = s
                                    size += 1
                if found < 0:
                    stuck += left[e]
                    break
                amount = min(left[e], space[found])
                s = found
                while parent[s] >= 0:
                    other, r = parent[s] // ranks, parent[s] % ranks
                    amount = min(amount, remote[other, r])
                    s = r
                space[found] -= amount
                s = found
                while parent[s] >= 0:
                    other, r = parent[s] // ranks, parent[s] % ranks
                    remote[other, s] += amount
                    remote[other, r] -= amount
                    s = r
                remote[e, s] += amount
                left[e] -= amount
        if stuck <= 0.0:
            break
        # ranks reached from the pools with tokens left are full: the set to raise the ceiling for
        for r in range(ranks):
            members[r] = 0
        size = 0
        for e in range(experts):
            if left[e] > small:
                for r in range(ranks):
                    if hosted[e, r] and not members[r]:
                        members[r] = 1
                        queue[size] = r
                        size += 1
        at = 0
        while at < size:
            r = queue[at]
            at += 1
            for other in range(experts):
                if pool[other] > 0.0 and remote[other, r] > small:
                    for s in range(ranks):
                        if hosted[other, s] and not members[s]:
                            members[s] = 1
                            queue[size] = s
                            size += 1
        confined = 0.0
        for e in range(experts):
            if pool[e] > 0.0:
                inside = True
                for r in range(ranks):
                    if hosted[e, r] and not members[r]:
                        inside = False
                if inside:
                    confined += pool[e]
        higher = ceiling_for(confined, members, ceiling, cost, base)
        if higher <= ceiling:
            higher = ceiling * (1.0 + 1e-12)
        ceiling = higher
        for r in range(ranks):
            taken = 0.0
            for e in range(experts):
                if pool[e] > 0.0:
                    taken += remote[e, r]
            space[r] = room(r, ceiling, cost, base) - taken
    for e in range(experts):
        if left[e] > 0.0:  # rounding
            for r in range(ranks):
                if hosted[e, r]:
                    remote[e, r] += left[e]
                    left[e] = 0.0
                    break
    return ceiling
