"""Networks that metrics ask: images in, features or scores out, each with a record of the weights that made them."""
