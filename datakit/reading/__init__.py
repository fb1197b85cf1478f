"""Reading: from names on a command line to blocks of undecoded rows."""
