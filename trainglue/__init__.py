"""trainglue: datakit's shards in a trainer."""
