"""When a request is released to an engine, held, or refused."""
