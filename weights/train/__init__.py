"""The recipe of the weights that come with minisd. README.md beside this says how to run it."""
