"""Round trips between places: measured ones, ones like them, and those of continental backbones."""

import csv
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path

from gpusched.timing.chains import Floats

PLACES = {
    "Taiwan": (24, 120), "Hong Kong": (22, 114), "Tokyo": (36, 140), "Osaka": (35, 136),
    "Seoul": (38, 127), "Mumbai": (19, 73), "Delhi": (29, 77), "Singapore": (1, 104),
    "Jakarta": (-6, 107), "Sydney": (-34, 151), "Melbourne": (-38, 145), "Warsaw": (52, 21),
    "Hamina": (61, 27), "Madrid": (40, -4), "Belgium": (50, 4), "London": (52, 0),
    "Frankfurt": (50, 9), "Netherlands": (53, 7), "Zurich": (47, 8), "Milan": (45, 9),
    "Paris": (49, 2), "Montreal": (46, -74), "Toronto": (44, -79), "Sao Paulo": (-24, -47),
    "Santiago": (-33, -71), "Iowa": (41, -96), "South Carolina": (33, -80),
    "Virginia": (39, -78), "Ohio": (40, -83), "Dallas": (33, -97), "Oregon": (46, -121),
    "Los Angeles": (34, -118), "Salt Lake City": (41, -112), "Las Vegas": (36, -115),
}  # fmt: skip
"""Latitude and longitude of data centres."""

NEAR_S = 3.1e-3
KM_S = 1.53e-5
"""Round trip a kilometre of great circle: fibre at two thirds of the speed of light, half as long
again as the crow flies."""
DETOUR = 0.24
"""Standard deviation of the logarithm. All three fitted to 1,122 round trips between the 34 regions of
a public cloud (R^2 0.76)."""
LOCAL_S = 1e-3
EARTH_KM = 6371.0
FIBRE_KM_S = 2e5


def measured_rtt_s(table: Path) -> Floats:
    """Return the round trips of a table ``src_region, dst_region, rtt_ms`` between the regions that
    it names, sorted by name; unmeasured pairs take the other direction or the mean."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = [
            (r["src_region"], r["dst_region"], float(r["rtt_ms"])) for r in csv.DictReader(file)
        ]
    names = sorted({row[0] for row in rows} | {row[1] for row in rows})
    rtt = np.full((len(names), len(names)), np.nan)
    for source, target, milliseconds in rows:
        rtt[names.index(source), names.index(target)] = milliseconds / 1e3
    rtt = np.where(np.isnan(rtt), rtt.T, rtt)
    rtt[np.isnan(rtt)] = np.nanmean(rtt)
    np.fill_diagonal(rtt, LOCAL_S)
    return rtt


def synthetic_rtt_s(seed: int = 0) -> Floats:
    """Return round trips between ``PLACES`` that are distributed as measured ones are."""
    rng = np.random.default_rng(seed)
    latitude, longitude = np.radians(np.array(list(PLACES.values()), np.float64)).T
    unit = np.stack([
        np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    ], axis=1)  # fmt: skip
    km = EARTH_KM * np.arccos(np.clip(unit @ unit.T, -1.0, 1.0))
    detour = np.exp(DETOUR * np.triu(rng.standard_normal(km.shape), 1))
    detour = np.triu(detour, 1) + np.triu(detour, 1).T
    rtt = NEAR_S + KM_S * km * detour
    np.fill_diagonal(rtt, LOCAL_S)
    return np.asarray(rtt)


def backbone_rtt_s(
    places: int = 23, *, width_km: float = 4000.0, height_km: float = 2000.0, seed: int = 0
) -> Floats:
    """Return round trips over a random backbone like those of the Topology Zoo: nodes in a rectangle,
    a tree of shortest links, and links after Waxman beside it; twice the delay of the shortest
    path."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(0.0, 1.0, (places, 2)) * (width_km, height_km)
    km = np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1))
    diameter = float(np.hypot(width_km, height_km))
    linked = rng.uniform(size=km.shape) < 0.3 * np.exp(-km / (0.2 * diameter))
    linked = np.triu(linked, 1) | (minimum_spanning_tree(km).toarray() > 0)
    path = shortest_path(np.where(linked, km, 0.0), directed=False)
    rtt = 2.0 * path / FIBRE_KM_S
    np.fill_diagonal(rtt, LOCAL_S)
    return np.asarray(rtt)
