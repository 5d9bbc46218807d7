"""Encoder-decoders: two graphs, of which the encoder's runs once for each source."""
