"""Rows that should not be there, or not there: split, dedup, decontaminate.

Each of the three works in two phases: keys of a few bytes per row, then a decision per row (`deal`). What is compared
comes from `texts` and `words`; `keys` makes 16 bytes of it, `minhash` a signature.
"""
