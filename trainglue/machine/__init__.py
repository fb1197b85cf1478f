"""What this machine and these versions can do: `doctor`, its probe in a process of its own, and `api`."""
