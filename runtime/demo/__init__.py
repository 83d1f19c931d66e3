"""The demo that ships: a bundle of the demo model and a clip of its world, asked pruned beside unpruned."""
