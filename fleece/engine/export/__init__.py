"""Points for programs of others: taken, held, exported, committed or dropped."""
