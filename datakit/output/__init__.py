"""Output: shards, their manifest and card, and the transaction that makes them appear all at once."""
