"""One module per family of commands; each command parses, calls the verb of its name, and prints what it returned."""
