"""One answer from several samples: voting, safe mixing, controlled decoding."""
