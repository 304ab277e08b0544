"""How the weights that come with minisd are trained. README.md in this folder says how to run it."""
