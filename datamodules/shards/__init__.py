"""The shard format: written, read, indexed, cached; docs/shards.md is the same for humans."""
