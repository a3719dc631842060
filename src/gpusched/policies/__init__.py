"""Online decisions: pure functions over arrays, the same in simulator, gateway and engine."""
