"""The shard format, its datamodule, and sources that read foreign formats."""
