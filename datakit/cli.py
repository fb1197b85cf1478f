"""The command line: `main`, with every command.

Only what parsing needs is imported at the top of these modules: `--help` is quick, and workers start while the rest is
imported.
"""

from datakit.commands import cleaning, converting, formatting, mixing, pairing
from datakit.commands.group import main

__all__ = ["cleaning", "converting", "formatting", "main", "mixing", "pairing"]
