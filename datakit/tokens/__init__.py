"""Texts to token ids, and token ids back to places in the text.

load         a folder, a tokenizer.json or a Hub name, to a `Tokenizer`: plain data that travels to worker processes
encode       texts to ids, with the fast engine where it was seen to agree with the exact one
positions    where in the text each id lies, proven per text from the ids alone
"""
