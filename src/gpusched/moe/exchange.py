"""Exact placement under layer and server caps: successive shortest paths over exchanges.

The program is a minimum-cost flow from experts over (layer, server) to servers. In its residual
graph an expert's node is left at once, so experts fold into arcs between the servers of a layer: the
cheapest exchange of an expert from one to the other. That leaves ``layers x servers + servers``
nodes, whatever the number of experts. Costs are integers, so optimality is exact.
"""

from gpusched.compilation import entry_kernel, kernel

FAR = 1 << 60


@kernel
def refresh_row(layer, source, expert_of, at, hosted, cost, cheapest, choice):
    """Set the cheapest exchange of one item from ``source`` to every other server of a layer."""
    items, servers = at.shape[1], hosted.shape[2]
    for target in range(servers):
        cheapest[layer, source, target] = FAR
        choice[layer, source, target] = -1
    for item in range(items):
        if at[layer, item] != source:
            continue
        expert = expert_of[layer, item]
        here = cost[layer, expert, source]
        for target in range(servers):
            more = cost[layer, expert, target] - here
            if more < cheapest[layer, source, target] and not hosted[layer, expert, target]:
                cheapest[layer, source, target] = more
                choice[layer, source, target] = item


@kernel
def move_item(layer, item, target, expert_of, at, hosted, dirty):
    """Move an item, and mark the servers whose exchanges change: both ends, and for an expert with
    copies those that hold one."""
    expert = expert_of[layer, item]
    source = at[layer, item]
    for server in range(hosted.shape[2]):
        if hosted[layer, expert, server]:
            dirty[layer, server] = 1
    if source >= 0:
        hosted[layer, expert, source] = 0
    hosted[layer, expert, target] = 1
    at[layer, item] = target
    dirty[layer, target] = 1


@kernel
def refresh(layer, expert_of, at, hosted, cost, cheapest, choice, dirty):
    """Bring the exchanges of a layer's marked servers up to date."""
    for server in range(dirty.shape[1]):
        if dirty[layer, server]:
            refresh_row(layer, server, expert_of, at, hosted, cost, cheapest, choice)
            dirty[layer, server] = 0


@entry_kernel
def insert_items(
    expert_of, order, cost, layer_cap, at, hosted, count, cheapest, choice, dirty, distance, parent
):
    """Place the items of each layer at least cost under the layer's caps alone, one at a time in the
    given order, each along a shortest path of exchanges.

    Returns the first layer without room, or -1.
    """
    layers, items = at.shape
    servers = count.shape[1]
    for layer in range(layers):
        for server in range(servers):
            refresh_row(layer, server, expert_of, at, hosted, cost, cheapest, choice)
        for turn in range(items):
            item = order[layer, turn]
            expert = expert_of[layer, item]
            for s in range(servers):
                distance[s] = FAR if hosted[layer, expert, s] else cost[layer, expert, s]
                parent[s] = -1
            changed = True
            while changed:
                changed = False
                for s in range(servers):
                    if count[layer, s] == 0 or distance[s] >= FAR:
                        continue
                    for t in range(servers):
                        if cheapest[layer, s, t] >= FAR:
                            continue
                        through = distance[s] + cheapest[layer, s, t]
                        if through < distance[t]:
                            distance[t] = through
                            parent[t] = s
                            changed = True
            best = -1
            for s in range(servers):
                room = count[layer, s] < layer_cap[layer, s] and distance[s] < FAR
                if room and (best < 0 or distance[s] < distance[best]):
                    best = s
            if best < 0:
                return layer
            count[layer, best] += 1
            t = best
            while parent[t] >= 0:
                s = parent[t]
                move_item(layer, choice[layer, s, t], t, expert_of, at, hosted, dirty)
                dirty[layer, s] = 1
                t = s
            move_item(layer, item, t, expert_of, at, hosted, dirty)
            refresh(layer, expert_of, at, hosted, cost, cheapest, choice, dirty)
    return -1


@entry_kernel
def fill_exchanges(expert_of, cost, at, hosted, cheapest, choice):
    """Compute the exchanges of a placement from scratch."""
    for layer in range(at.shape[0]):
        for server in range(hosted.shape[2]):
            refresh_row(layer, server, expert_of, at, hosted, cost, cheapest, choice)


@entry_kernel
def potentials(layer_cap, total_cap, count, total, cheapest, potential, with_sink):
    """Set shortest distances from a root joined to every node of the residual graph, so that no arc
    has a negative reduced cost; the last node is the sink where ``with_sink``.

    Returns whether there are such distances, that is whether no exchange gains.
    """
    layers, servers = count.shape
    first = layers * servers
    sink = first + servers
    for node in range(sink + 1):
        potential[node] = 0
    for _ in range(sink + 2):
        changed = False
        for s in range(servers):
            if with_sink:
                if total[s] < total_cap[s] and potential[first + s] < potential[sink]:
                    potential[sink] = potential[first + s]
                    changed = True
                if total[s] > 0 and potential[sink] < potential[first + s]:
                    potential[first + s] = potential[sink]
                    changed = True
        for layer in range(layers):
            for s in range(servers):
                here = layer * servers + s
                if count[layer, s] < layer_cap[layer, s] and potential[here] < potential[first + s]:
                    potential[first + s] = potential[here]
                    changed = True
                if count[layer, s] == 0:
                    continue
                if potential[first + s] < potential[here]:
                    potential[here] = potential[first + s]
                    changed = True
                for t in range(servers):
                    if cheapest[layer, s, t] >= FAR:
                        continue
                    through = potential[here] + cheapest[layer, s, t]
                    if through < potential[layer * servers + t]:
                        potential[layer * servers + t] = through
                        changed = True
        if not changed:
            return True
    return False


@kernel
def push(heap_key, heap_node, size, key, node):
    """Add an entry to a binary heap and return its size."""
    at = size
    while at > 0:
        up = (at - 1) >> 1
        if heap_key[up] <= key:
            break
        heap_key[at] = heap_key[up]
        heap_node[at] = heap_node[up]
        at = up
    heap_key[at] = key
    heap_node[at] = node
    return size + 1


@kernel
def drop_first(heap_key, heap_node, size):
    """Remove the first entry of a binary heap and return its size."""
    size -= 1
    key, node = heap_key[size], heap_node[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap_key[child + 1] < heap_key[child]:
            child += 1
        if heap_key[child] >= key:
            break
        heap_key[at] = heap_key[child]
        heap_node[at] = heap_node[child]
        at = child
    heap_key[at] = key
    heap_node[at] = node
    return size


@entry_kernel
def relieve(
    expert_of, cost, layer_cap, total_cap, at, hosted, count, total,
    cheapest, choice, dirty, potential, distance, parent, settled, heap_key, heap_node, most_paths,
):  # fmt: skip
    """Move items from servers over their total cap to servers with room, each along a shortest path
    of exchanges (Dijkstra on reduced costs).

    ``potential`` must leave no negative reduced cost. Returns how many items are still to move after
    ``most_paths``, or -1 where an overloaded server reaches no room; the servers it reaches are then
    marked in ``settled``.
    """
    layers, servers = count.shape
    first = layers * servers
    source, sink = first + servers, first + servers + 1
    potential[source] = -FAR
    potential[sink] = FAR
    for s in range(servers):
        if total[s] > total_cap[s]:
            potential[source] = max(potential[source], potential[first + s])
        if total[s] < total_cap[s]:
            potential[sink] = min(potential[sink], potential[first + s])
    paths = 0
    while True:
        excess = 0
        for node in range(sink + 1):
            distance[node] = FAR
            settled[node] = 0
        size = 0
        for s in range(servers):
            if total[s] > total_cap[s]:
                excess += total[s] - total_cap[s]
                distance[first + s] = potential[source] - potential[first + s]
                parent[first + s] = source
                size = push(heap_key, heap_node, size, distance[first + s], first + s)
        if excess == 0 or paths == most_paths:
            return excess
        settled[source] = 1
        distance[source] = 0
        reached = False
        while size > 0:
            key, node = heap_key[0], heap_node[0]
            size = drop_first(heap_key, heap_node, size)
            if settled[node]:
                continue
            settled[node] = 1
            if node == sink:
                reached = True
                break
            base = key + potential[node]
            if node >= first:
                s = node - first
                if total[s] < total_cap[s]:
                    further = base - potential[sink]
                    if further < distance[sink]:
                        distance[sink] = further
                        parent[sink] = node
                        size = push(heap_key, heap_node, size, further, sink)
                for layer in range(layers):
                    if count[layer, s] == 0:
                        continue
                    there = layer * servers + s
                    further = base - potential[there]
                    if further < distance[there]:
                        distance[there] = further
                        parent[there] = node
                        size = push(heap_key, heap_node, size, further, there)
                continue
            layer = node // servers
            s = node - layer * servers
            if count[layer, s] < layer_cap[layer, s]:
                further = base - potential[first + s]
                if further < distance[first + s]:
                    distance[first + s] = further
                    parent[first + s] = node
                    size = push(heap_key, heap_node, size, further, first + s)
            if count[layer, s] == 0:
                continue
            for t in range(servers):
                more = cheapest[layer, s, t]
                if more >= FAR:
                    continue
                there = layer * servers + t
                further = base + more - potential[there]
                if further < distance[there] and further < distance[sink]:
                    distance[there] = further
                    parent[there] = node
                    size = push(heap_key, heap_node, size, further, there)
        if not reached:
            return -1
        length = distance[sink]
        for node in range(sink + 1):
            if settled[node] and distance[node] < length:
                potential[node] += distance[node] - length
        paths += 1
        node = parent[sink]
        total[node - first] += 1
        while parent[node] != source:
            before = parent[node]
            if node >= first:
                count[before // servers, node - first] += 1
            elif before >= first:
                count[node // servers, before - first] -= 1
            else:
                layer = node // servers
                s, t = before - layer * servers, node - layer * servers
                move_item(layer, choice[layer, s, t], t, expert_of, at, hosted, dirty)
                dirty[layer, s] = 1
            node = before
        total[node - first] -= 1
        node = parent[sink]
        while node != source:
            if node < first:
                refresh(node // servers, expert_of, at, hosted, cost, cheapest, choice, dirty)
            node = parent[node]
