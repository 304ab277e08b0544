"""The training of the weights that come with minisd. README.md here says how to run it."""
