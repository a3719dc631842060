"""How long things take: iterations, transfers, and what memory and energy they need."""
