"""Published experiments, rerun beside their published figures: one file a paper."""
