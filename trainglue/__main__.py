"""`python -m trainglue`."""

from trainglue.cli import main

main()
