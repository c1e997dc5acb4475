"""The shard format, its data module, and sources that read data sets of other formats."""
