"""Mixing: a recipe, the exact plan that follows from it, and the plan's rows as a folder of shards or as a stream."""
