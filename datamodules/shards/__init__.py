"""The shard format: writing, reading, indices and latent caches; docs/shards.md describes it."""
