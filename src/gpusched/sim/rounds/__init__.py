"""Sessions of many rounds on prefill and decode pools: histories that stay, rounds that are placed."""
