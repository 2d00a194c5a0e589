"""Mathematics of a run: benefits, prices, keep probabilities, budgets, and what to keep."""
