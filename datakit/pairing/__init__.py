"""Pairs and labelled answers: `unpair` and `pair`, and what pairs say about one another."""
