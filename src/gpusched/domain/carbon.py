"""Carbon intensity of electricity by the hour."""

import tomllib
from functools import cache
from importlib import resources

from gpusched.errors import InputError, unknown_name

ZONE_OF_REGION = {
    "france": "FR",
    "germany": "DE",
    "spain": "ES",
    "poland": "PL",
    "uk": "GB",
    "sweden": "SE-SE3",
    "us-west": "US-CAL-CISO",
    "us-south": "US-TEX-ERCO",
    "us-east": "US-MIDA-PJM",
    "india": "IN-WE",
}
"""Built-in zone of a region of the catalog, where there is one."""


@cache
def carbon_profiles() -> dict[str, list[list[float]]]:
    """Return a row a month of means by hour of the day (UTC), g CO2e per kWh, by zone."""
    file = resources.files("gpusched.domain.catalog").joinpath("carbon_profiles.toml")
    zones: dict[str, list[list[float]]] = tomllib.loads(file.read_text("utf-8"))
    return zones


def carbon_profile(zone: str, month: int) -> list[float]:
    """Return a zone's mean intensity by hour of the day in a month from 1 to 12.

    Raises:
        InputError: no such zone.
    """
    zones = carbon_profiles()
    by_name = {name.upper(): name for name in zones} | {
        region.upper(): name for region, name in ZONE_OF_REGION.items()
    }
    if zone.upper() not in by_name:
        raise InputError(
            "cache.carbon: "
            + unknown_name("zone", zone, zones)
            + " (or give a CSV or parquet file with a column g_per_kwh)"
        )
    return zones[by_name[zone.upper()]][month - 1]
