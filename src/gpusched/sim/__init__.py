"""The event-leaping simulator of a serving fleet, and its step-by-step reference."""
