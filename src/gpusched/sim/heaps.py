"""Binary heaps over plain arrays."""

from gpusched.compilation import kernel


@kernel
def push(heap, row, size, key):
    """Insert a key into ``heap[row, :size]``."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if heap[row, parent] <= key:
            break
        heap[row, i] = heap[row, parent]
        i = parent
    heap[row, i] = key


@kernel
def _sift_down(heap, row, size, i, key):
    child = 2 * i + 1
    while child < size:
        if child + 1 < size and heap[row, child + 1] < heap[row, child]:
            child += 1
        if heap[row, child] >= key:
            break
        heap[row, i] = heap[row, child]
        i = child
        child = 2 * i + 1
    heap[row, i] = key


@kernel
def pop(heap, row, size):
    """Remove the least key of ``heap[row, :size]``."""
    _sift_down(heap, row, size - 1, 0, heap[row, size - 1])


@kernel
def remove(heap, row, size, key):
    """Remove a key that is in ``heap[row, :size]``; linear in ``size``."""
    i = 0
    while heap[row, i] != key:
        i += 1
    moved = heap[row, size - 1]
    while i > 0 and heap[row, (i - 1) >> 1] > moved:
        heap[row, i] = heap[row, (i - 1) >> 1]
        i = (i - 1) >> 1
    _sift_down(heap, row, size - 1, i, moved)


@kernel
def push_timed(times, items, size, time_s, item):
    """Insert into the heap ordered by time, then item."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if times[parent] < time_s or (times[parent] == time_s and items[parent] < item):
            break
        times[i] = times[parent]
        items[i] = items[parent]
        i = parent
    times[i] = time_s
    items[i] = item


@kernel
def pop_timed(times, items, size):
    """Remove the earliest entry of the heap ordered by time, then item."""
    time_s = times[size - 1]
    item = items[size - 1]
    size -= 1
    i = 0
    child = 1
    while child < size:
        right = child + 1
        if right < size and (
            times[right] < times[child]
            or (times[right] == times[child] and items[right] < items[child])
        ):
            child = right
        if times[child] > time_s or (times[child] == time_s and items[child] > item):
            break
        times[i] = times[child]
        items[i] = items[child]
        i = child
        child = 2 * i + 1
    times[i] = time_s
    items[i] = item


@kernel
def set_timer(timers_s, winners, engine, time_s):
    """Set one engine's timer and replay its matches up the tournament tree."""
    timers_s[engine] = time_s
    leaves = len(winners) >> 1
    node = (leaves + engine) >> 1
    while node >= 1:
        left = winners[2 * node]
        right = winners[2 * node + 1]
        winners[node] = right if timers_s[right] < timers_s[left] else left
        node >>= 1
