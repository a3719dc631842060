"""What a user describes: GPUs, clusters, models, service levels, specs and plans. Pure data."""
