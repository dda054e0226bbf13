"""The frame buffer: images as zarr shards, and the SQLite catalog that says which of them count."""
