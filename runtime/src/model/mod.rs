//! The transformer, cut into shards of layers.
