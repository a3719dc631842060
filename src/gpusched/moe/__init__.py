"""Inside mixture-of-experts layers: where experts lie, how their work overlaps, how it is evened out."""
